from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from support.arrays import ArrayStore

from foreact.data.formats.video import read_video
from foreact.errors import UserError
from foreact.evals.seen import Recordings
from foreact.evals.video import ROUNDING_PSNR, psnr, save_examples, ssim, video_quality
from foreact.types import ActionSpec, Seen, StreamSpec

SPEC = StreamSpec(
    cameras={"img": (24, 32)},
    fps=10.0,
    action=ActionSpec(names=("x",), units=("px",), frame="world", mode="absolute", rate_hz=10.0),
)


def grey_episodes(lengths: Sequence[int], slope: int = 3, noise: bool = False) -> ArrayStore:
    """Episodes whose frames are a flat grey that rises by `slope` per step; the action of a step
    is its number.
    """
    steps = np.concatenate([np.arange(length) for length in lengths])
    episode = np.arange(len(lengths)).repeat(lengths)
    grey = (10 * episode + slope * steps).astype(np.uint8)
    frames = np.broadcast_to(grey[:, None, None, None], (len(steps), 24, 32, 3)).copy()
    if noise:
        draw = np.random.default_rng(0)
        frames += draw.integers(0, 60, frames.shape, dtype=np.uint8)
    return ArrayStore(SPEC, lengths, {"img": frames, "action": steps[:, None].astype(np.float32)})


def recordings(lengths: list[int], noise: bool = False) -> Recordings:
    return Recordings(grey_episodes(lengths, noise=noise))


class Seer:
    """Adds what happens in a stride to the last frame, given the slope; `error` is added on top."""

    frames, context_stride, reads_text = 3, 4, False
    cameras = foreseen = ("img",)
    offsets, action_offsets = (-8, -4, 0), tuple(range(12))
    state_offsets: tuple[int, ...] = ()
    past_offsets: tuple[int, ...] = ()

    def __init__(self, slope: int = 3, error: int = 0) -> None:
        self.slope, self.error = slope, error
        self.actions: list[np.ndarray] = []

    def predict_video(self, seen: Seen, *, rng: torch.Generator) -> dict[str, np.ndarray]:
        rise = (np.arange(3) + 1) * self.slope * self.context_stride + self.error
        now = seen.frames["img"][:, -1:].astype(int)
        return {"img": (now + rise[:, None, None, None]).astype(np.uint8)}

    def predict_dynamics(
        self, seen: Seen, actions: np.ndarray, *, rng: torch.Generator
    ) -> dict[str, np.ndarray]:
        self.actions.append(actions)
        return self.predict_video(seen, rng=rng)


def test_psnr_of_known_errors() -> None:
    a = np.zeros((3, 12, 12, 3), dtype=np.uint8)
    b = a.copy()
    b[1] += 255
    b[2] += 5
    assert psnr(a, b)[0] == np.inf
    assert psnr(a, b)[1] == pytest.approx(0.0)
    assert psnr(a, b)[2] == pytest.approx(20 * np.log10(255 / 5))


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    a, b = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b)[0] == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), abs=1e-9)
    assert ssim(a, a)[0] == pytest.approx(1.0)


def test_ssim_of_an_inverted_image_is_negative() -> None:
    board = ((np.indices((32, 32)).sum(0) % 2) * 255).astype(np.uint8)
    a = np.repeat(board[None, :, :, None], 3, axis=3)
    assert ssim(a, 255 - a)[0] < -0.9


def test_ssim_equals_the_formula_with_scipys_filter() -> None:
    draw = np.random.default_rng(0)
    a = draw.integers(0, 256, (5, 20, 27, 3), dtype=np.uint8)
    b = np.clip(a + draw.normal(0, 40, a.shape), 0, 255).astype(np.uint8)

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma=1.5, radius=5)[5:-5, 5:-5]

    for row in range(len(a)):
        values = []
        for channel in range(3):
            x, y = a[row, ..., channel].astype(float), b[row, ..., channel].astype(float)
            mx, my = blur(x), blur(y)
            vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append(
                (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
            )
        assert ssim(a, b)[row] == pytest.approx(np.mean(values), abs=1e-6)


def test_many_images_give_what_single_ones_give() -> None:
    draw = np.random.default_rng(1)
    a, b = draw.integers(0, 256, (2, 70, 12, 12, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        ssim(a, b), [ssim(a[i : i + 1], b[i : i + 1])[0] for i in range(70)], atol=1e-12
    )
    assert ssim(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_unlike_stacks_are_refused(metric) -> None:
    a = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    for b in (a[:1], a.astype(np.float32), a[..., 0]):
        with pytest.raises(UserError, match="of one shape"):
            metric(a, b)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    tiny = np.zeros((1, 10, 16, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="at least 11 x 11"):
        ssim(tiny, tiny)


@pytest.mark.parametrize("mode", ["video", "dynamics"])
def test_a_model_that_knows_the_future_is_perfect_and_copying_is_not(mode) -> None:
    (found,) = video_quality(
        Seer(), recordings([40, 22, 60]), [0, 1, 2], mode=mode, windows_per_episode=3, batch=2
    )
    assert found.estimates["psnr"].mean == pytest.approx(ROUNDING_PSNR)
    assert found.estimates["ssim"].mean == pytest.approx(1.0)
    assert found.estimates["psnr"].n == 3
    assert found.steps_ahead == [4, 8, 12]
    # Copying errs by slope * steps grey levels at every pixel.
    for ahead, copied in zip(found.steps_ahead, found.curves["psnr_copy"], strict=True):
        assert copied.mean == pytest.approx(20 * np.log10(255 / (3 * ahead)))
    assert found.estimates["psnr_copy"].mean == pytest.approx(
        np.mean([c.mean for c in found.curves["psnr_copy"]])
    )


def test_a_known_error_shows_in_every_frame() -> None:
    (found,) = video_quality(Seer(error=5), recordings([40, 50]), [0, 1])
    assert [e.mean for e in found.curves["psnr"]] == pytest.approx([20 * np.log10(51)] * 3)


def test_dynamics_is_given_the_actions_that_start_now() -> None:
    model = Seer()
    (found,) = video_quality(model, recordings([60]), [0], mode="dynamics", windows_per_episode=5)
    actions = np.concatenate(model.actions)
    assert actions.shape == (5, 12, 1)
    assert found.windows == 5
    assert (np.diff(actions[..., 0], axis=1) == 1).all()
    assert found.examples[0].anchor == actions[0, 0, 0]
    # "Now" is the last frame of the context.
    assert found.examples[0].context[-1, 0, 0, 0] == 3 * found.examples[0].anchor


def test_windows_fill_short_episodes_and_repeat_with_the_seed() -> None:
    # 8 steps before now and 12 after: 21 steps give one window, 20 none.
    (short,) = video_quality(
        Seer(), recordings([20, 21, 23]), [0, 1, 2], windows_per_episode=4, seed=5
    )
    assert short.windows == 1 + 3
    assert short.estimates["psnr"].n == 2
    (again,) = video_quality(
        Seer(), recordings([20, 21, 23]), [0, 1, 2], windows_per_episode=4, seed=5
    )
    assert [(e.episode, e.anchor) for e in short.examples] == [
        (e.episode, e.anchor) for e in again.examples
    ]
    with pytest.raises(UserError, match="21 steps"):
        video_quality(Seer(), recordings([20, 5]), [0, 1])


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match="'dreams'"):
        video_quality(Seer(), recordings([40]), [0], mode="dreams")  # pyright: ignore[reportArgumentType]


def test_examples_become_a_strip_and_a_film(tmp_path: Path) -> None:
    (found,) = video_quality(Seer(), recordings([40, 50], noise=True), [0, 1], examples=2)
    paths = save_examples(found, tmp_path, fps=10.0)
    assert [p.suffix for p in paths] == [".png", ".mp4"] * 2
    picture = Image.open(paths[0])
    # Two rows of three seen and three future frames of 24 x 32 pixels, five times as large.
    assert picture.width >= 6 * 32 * 5
    assert picture.height >= 2 * 24 * 5
    frames, fps = read_video(paths[1])
    assert len(frames) == 6
    assert fps == 4.0
