"""Where a film cuts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreact.data.formats.shots import find_shots
from foreact.errors import UserError


def scene(
    seed: int, frames: int, *, speed: int = 0, noise: float = 0.0, size: tuple[int, int] = (40, 72)
) -> np.ndarray:
    """A texture of blocks that moves sideways by `speed` pixels a frame."""
    rng = np.random.default_rng(seed)
    texture = (
        rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    )
    video = np.stack([np.roll(texture, speed * t, axis=1) for t in range(frames)])
    return (video + rng.normal(0.0, noise, video.shape)).clip(0, 255).astype(np.uint8)


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(4, 30), min_size=1, max_size=5))
def test_still_scenes_are_cut_where_they_were_joined(lengths: list[int]) -> None:
    shots = find_shots(np.concatenate([scene(i, n, size=(16, 24)) for i, n in enumerate(lengths)]))
    assert [len(shot) for shot in shots] == lengths
    assert [shot.start for shot in shots] == [0, *np.cumsum(lengths)[:-1]]


def test_noise_and_motion_are_no_cuts_and_do_not_hide_one() -> None:
    video = np.concatenate([scene(0, 20, speed=1, noise=4.0), scene(1, 25, noise=4.0)])
    assert find_shots(video) == [range(20), range(20, 45)]


def test_fast_motion_is_no_cut_though_every_frame_changes_as_much_as_at_a_cut() -> None:
    video = scene(0, 30, speed=6)
    assert np.abs(np.diff(video.astype(int), axis=0)).mean() > 20
    assert find_shots(video) == [range(30)]


def test_a_change_below_the_floor_is_no_cut() -> None:
    dim = np.full((10, 16, 16, 3), 100, np.uint8)
    assert find_shots(np.concatenate([dim, dim + 5])) == [range(20)]
    assert find_shots(np.concatenate([dim, dim + 20])) == [range(10), range(10, 20)]


def test_frames_may_come_one_by_one() -> None:
    assert find_shots(iter([*scene(0, 3), *scene(1, 4)])) == [range(3), range(3, 7)]


def test_a_single_frame_is_a_shot_and_no_frame_is_an_error() -> None:
    assert find_shots(scene(0, 1)) == [range(1)]
    with pytest.raises(UserError, match="without a frame"):
        find_shots([])


def test_frames_of_two_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="one size"):
        find_shots([*scene(0, 1), *scene(0, 1, size=(48, 72))])
