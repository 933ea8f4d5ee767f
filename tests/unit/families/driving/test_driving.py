"""Driving windows of a native store: which there are, what
they hold, gaps, commands, bad tokens.
"""

from __future__ import annotations

import itertools
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.arrays import ArrayStore
from support.driving_worlds import drive, write_token_store

from foreact.data.stores.store import ZarrStore, open_store
from foreact.data.stores.writer import StoreWriter
from foreact.data.windows.loader import batches, ordered_batches
from foreact.data.windows.mixing import Concat, HardTurns
from foreact.errors import UserError
from foreact.families.driving.data import ego
from foreact.families.driving.data.drives import driving_spec
from foreact.families.driving.data.windows import DrivingWindows
from foreact.types import Batch, StreamSpec


def drives_of(path: Path, *lengths: int, turn: float = 0.0, **options: Any) -> ZarrStore:
    poses = [drive(n, seed=i, turn=turn, period=0.1) for i, n in enumerate(lengths)]
    write_token_store(path, poses, **options)
    return open_store(path)


def rows_of(batch: Batch) -> list[list[int]]:
    assert batch.index is not None
    return batch.index.tolist()


def test_a_window_holds_frames_plans_and_commands_of_its_rows(tmp_path: Path) -> None:
    poses = [drive(30, period=0.1, turn=0.2), drive(25, seed=1, period=0.1, turn=-0.9, speed=9)]
    tokens = write_token_store(tmp_path / "s", poses)
    windows = DrivingWindows(open_store(tmp_path / "s"), frames=3, stride=4, horizon=2)
    span = 4 * 4
    assert len(windows) == (30 - span) + (25 - span)
    chosen = np.array([13, 14, 0])
    batch = windows.batch(chosen)
    assert batch.index is not None
    assert batch.index.tolist() == [[0, 13 + 8], [1, 8], [0, 8]]
    assert batch.plans is not None
    assert batch.commands is not None
    for b, (episode, first) in enumerate([(0, 13), (1, 0), (0, 0)]):
        frames = [first, first + 4, first + 8]
        np.testing.assert_array_equal(batch.tokens["front"][b], tokens[episode][frames])
        for t, row in enumerate(frames):
            targets = poses[episode][[row + 4, row + 8]]
            np.testing.assert_allclose(
                batch.plans[b, t], ego.waypoints(poses[episode][row], targets), atol=1e-5
            )
            assert batch.commands[b, t] == ego.commands(poses[episode][row], targets[-1], 2.0)
    assert windows.spec.fps == 2.5
    assert windows.yaw_rates(chosen) == pytest.approx([0.2 * 0.4, 0.9 * 0.4, 0.2 * 0.4], rel=0.05)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    frames=st.integers(1, 4),
    stride=st.integers(1, 4),
    future=st.integers(0, 3),
    gap_at=st.sets(st.integers(1, 29), max_size=3),
)
def test_windows_are_all_those_that_fit_between_gaps(
    lengths: list[int], frames: int, stride: int, future: int, gap_at: set[int]
) -> None:
    drives = recorded(lengths, gap_at)
    span = (frames - 1 + future) * stride
    whole, expected = 0, []
    for episode, length in enumerate(lengths):
        for first in range(length - span):
            whole += 1
            if not any(first < gap <= first + span for gap in gap_at):
                expected.append([episode, first + (frames - 1) * stride])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not expected:
            with pytest.raises(
                UserError, match="none fits.* whose time stamps have gaps" if whole else "none fits"
            ):
                DrivingWindows(drives, frames=frames, stride=stride, horizon=None, future=future)
            return
        windows = DrivingWindows(drives, frames=frames, stride=stride, horizon=None, future=future)
    assert windows.anchors.at(np.arange(len(windows))).tolist() == expected
    told = [str(w.message) for w in caught]
    lost = whole - len(expected)
    assert [t.split(" windows")[0] for t in told] == ([f"{lost} of {whole}"] if lost else [])
    kept = DrivingWindows(
        drives, frames=frames, stride=stride, horizon=None, future=future, gaps="keep"
    )
    assert len(kept) == whole


def recorded(lengths: list[int], gaps: set[int]) -> ArrayStore:
    """Drives without content; before the frames `gaps` of each drive, one frame is missing."""
    times = [100_000 * (i + sum(gap <= i for gap in gaps)) for n in lengths for i in range(n)]
    tokens = np.zeros((len(times), 1, 1), np.uint16)
    streams = {"timestamp": np.array(times), "tokens_front": tokens}
    return ArrayStore(StreamSpec(cameras={}, fps=10.0), lengths, streams)


def test_tokens_alone_need_no_future_unless_asked_for(tmp_path: Path) -> None:
    drives = drives_of(tmp_path / "s", 40)
    assert len(DrivingWindows(drives, frames=2, stride=5, horizon=None)) == 35
    assert len(DrivingWindows(drives, frames=2, stride=5, horizon=None, future=6)) == 5
    assert len(DrivingWindows(drives, frames=2, stride=5, horizon=6)) == 5
    batch = DrivingWindows(drives, frames=2, stride=5, horizon=None).batch(np.array([0]))
    assert batch.plans is None
    assert batch.commands is None


def test_the_command_horizon_and_threshold_are_what_is_asked_for(tmp_path: Path) -> None:
    # 5 m/s with 0.25 rad/s: 5 m to the left after 3 s, 0.2 m after 0.6 s.
    drives = drives_of(tmp_path / "s", 60, turn=0.25)

    def command(**options: Any) -> int:
        batch = DrivingWindows(drives, frames=1, stride=5, horizon=6, **options).batch(
            np.array([0])
        )
        assert batch.commands is not None
        return int(batch.commands[0, 0])

    assert command() == ego.LEFT
    assert command(command_horizon="reference") == ego.STRAIGHT
    assert command(command_horizon="reference", command_threshold=0.1) == ego.LEFT
    assert command(command_threshold=7.0) == ego.STRAIGHT


def test_training_draws_the_same_batches_with_and_without_workers(tmp_path: Path) -> None:
    windows = DrivingWindows(drives_of(tmp_path / "s", 30, 30), frames=2, stride=2, horizon=2)
    runs = [
        [
            rows_of(batch)
            for batch in itertools.islice(batches(windows, batch_size=4, seed=1, workers=n), 5)
        ]
        for n in (0, 1)
    ]
    assert runs[0] == runs[1]
    assert sum(len(batch) for batch in ordered_batches(windows, batch_size=9)) == len(windows)
    again = pickle.loads(pickle.dumps(windows))
    np.testing.assert_array_equal(
        again.batch(np.array([3])).plans, windows.batch(np.array([3])).plans
    )


def test_sources_of_several_rates_mix_and_the_sharpest_turns_stay(tmp_path: Path) -> None:
    slow = DrivingWindows(drives_of(tmp_path / "a", 40), frames=2, stride=5, horizon=2)
    fast = DrivingWindows(
        drives_of(tmp_path / "b", 20, turn=1.0, rate_hz=2.0), frames=2, stride=1, horizon=2
    )
    both = Concat([slow, fast])
    assert len(both) == len(slow) + len(fast)
    turns = HardTurns(both, keep=3)
    drawn = np.array([0, len(slow), 1, len(slow) + 1, 2, len(slow) + 2])
    np.testing.assert_array_equal(turns.batch(drawn).plans, fast.batch(np.array([0, 1, 2])).plans)
    with pytest.raises(UserError, match="disagree on 'plans'"):
        Concat([slow, DrivingWindows(slow.store, frames=2, stride=5, horizon=None)]).batch(
            np.array([0, len(slow)])
        )


def test_a_store_of_pixels_alone_says_what_it_lacks(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", driving_spec(10.0, (4, 6))) as writer:
        writer.append({"front": np.zeros((20, 4, 6, 3), np.uint8)})
    drives = open_store(tmp_path / "s")
    assert drives.names == ["0"]
    windows = DrivingWindows(drives, frames=2, stride=5, horizon=None)
    with pytest.raises(UserError, match="no stream 'tokens_front'"):
        windows.load()
    with pytest.raises(UserError, match="no ego poses"):
        DrivingWindows(drives, frames=2, stride=5, horizon=1)


def test_drives_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    drives = drives_of(tmp_path / "s", 10, 20, 30)
    windows = DrivingWindows(drives, frames=2, stride=1, horizon=None, episodes=[2, 0])
    assert len(windows) == 29 + 9
    assert windows.anchors.at([0, 29]).tolist() == [[2, 1], [0, 1]]


def test_gaps_of_a_store_are_found_and_told(tmp_path: Path) -> None:
    drives = drives_of(tmp_path / "s", 20, 20, gaps={1: 10})
    with pytest.warns(
        UserWarning, match="5 of 30 windows of .* cross a gap of more than 1.5 frame periods"
    ):
        windows = DrivingWindows(drives, frames=2, stride=5, horizon=None)
    assert len(windows) == 25


def test_tokens_outside_the_vocabulary_are_named(tmp_path: Path) -> None:
    drives = drives_of(tmp_path / "s", 10, 10, vocab=50)
    windows = DrivingWindows(drives, frames=2, stride=1, horizon=None, vocab=10)
    with pytest.raises(
        UserError, match=r"ids should be in 0\.\.9, found \d\d in step 0 of 'drive-1'"
    ):
        windows.batch(np.array([9]))
    assert (
        len(DrivingWindows(drives, frames=2, stride=1, horizon=None, vocab=50).batch(np.arange(18)))
        == 18
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frames": 0}, "frames, stride and horizon >= 1"),
        ({"horizon": 3, "future": 2}, "future >= horizon"),
        ({"command_horizon": "far"}, "command_horizon 'plan' or 'reference'"),
        ({"frames": 8, "stride": 50}, "spans 651 steps .*none fits"),
        ({"episodes": []}, "no episode at all"),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        DrivingWindows(drives_of(tmp_path / "s", 40), **options)


def test_one_waypoint_tells_no_turn(tmp_path: Path) -> None:
    windows = DrivingWindows(drives_of(tmp_path / "s", 20), frames=2, stride=1, horizon=1)
    with pytest.raises(UserError, match="horizon of 2 or more"):
        windows.yaw_rates(np.array([0]))


def test_plans_need_poses() -> None:
    with pytest.raises(UserError, match="arrays has no ego poses"):
        DrivingWindows(recorded([50], set()), frames=2, stride=1, horizon=2)
    windows = DrivingWindows(recorded([50], set()), frames=2, stride=1, horizon=None)
    with pytest.raises(UserError, match="have no plans"):
        windows.yaw_rates(np.array([0]))
    with pytest.raises(UserError, match=r"There are windows 0\.\.48"):
        windows.batch(np.array([49]))
