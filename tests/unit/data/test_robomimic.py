"""robomimic's files: opened as they are, by our convention of time; bad ones are one sentence."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.manipulation_files import (
    SIZE,
    arm_actions,
    hand,
    robomimic_demo,
    stamps,
    write_demos,
    write_robomimic,
)

from foreact.data.formats.robomimic import is_robomimic, open_robomimic
from foreact.data.formats.robomimic_actions import mode_of, pose_action, to_poses
from foreact.data.formats.robomimic_file import read_masks
from foreact.data.formats.robomimic_store import RobomimicStore
from foreact.data.rotations import convert
from foreact.data.stores import hdf5
from foreact.data.stores.opening import open_episodes
from foreact.data.windows.loader import WindowDataset, ordered_batches
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.tasks import find_task
from foreact.types import ActionSpec, StreamSpec

TASK = find_task("tool-hang")
SPEC = dataclasses.replace(TASK.spec, cameras=dict.fromkeys(TASK.spec.cameras, (SIZE, SIZE)))
FRONT, WRIST = SPEC.cameras


def with_action(action: ActionSpec | None) -> StreamSpec:
    return dataclasses.replace(SPEC, action=action)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_robomimic(tmp_path / "image_abs.hdf5")


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "gzip"}, {"chunks": (2, 8, 8, 1), "compression": "lzf"}],
    ids=["plain", "gzip", "chunks"],
)
def test_a_step_has_what_was_seen_and_then_done(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", next_obs=True, **options)
    store = open_episodes(path, SPEC)
    assert isinstance(store, RobomimicStore)
    assert (store.lengths.tolist(), store.starts.tolist()) == ([5, 7, 6], [0, 5, 12])
    assert store.streams == [*SPEC.cameras, *SPEC.state, "action"]
    for episode, length in enumerate((5, 7, 6)):
        read = store.read(episode, 1, length, store.streams)
        truth = robomimic_demo(episode, length)
        assert stamps(read[FRONT]) == [(episode, t, 0) for t in range(1, length)]
        assert stamps(read[WRIST]) == [(episode, t, 1) for t in range(1, length)]
        for name in SPEC.state:
            np.testing.assert_array_equal(read[name], truth[f"obs/{name}"][1:].astype(np.float32))
        np.testing.assert_allclose(
            read["action"][:, :3], truth["actions"][1:, :3], rtol=0, atol=1e-6
        )
        np.testing.assert_array_equal(read["action"][:, 9], truth["actions"][1:, 6])
        assert read["action"].dtype == np.float32


def test_poses_turn_as_the_axis_angles_do(file: Path) -> None:
    action = open_robomimic(file, SPEC).read(1, 0, 7, ["action"])["action"]
    stored = arm_actions(1, 7, "absolute")
    back = convert(action[:, 3:9], "rows_6d", "axis_angle")
    np.testing.assert_allclose(back, stored[:, 3:6], atol=1e-5)
    matrix = convert(stored[:, 3:6], "axis_angle", "matrix")
    np.testing.assert_allclose(action[:, 3:6], matrix[:, 0], atol=1e-6)  # rows, not columns
    assert np.abs(matrix[:, 0] - matrix[:, :, 0]).max() > 0.1


def test_a_rotation_of_zero_is_none() -> None:
    pose = to_poses(np.zeros((1, 7)))
    assert pose[0, 3:9].tolist() == [1, 0, 0, 0, 1, 0]


def test_each_of_two_arms_stays_whole(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", arms=2)
    action = open_robomimic(path, with_action(pose_action(20.0, arms=2))).read(0, 0, 5, ["action"])[
        "action"
    ]
    assert action.shape == (5, 20)
    for arm, demo in enumerate((0, 5)):
        np.testing.assert_allclose(
            action[:, 10 * arm : 10 * arm + 10],
            to_poses(arm_actions(demo, 5, "absolute")),
            atol=1e-6,
        )


def test_rows_of_all_episodes_are_gathered_at_once(file: Path) -> None:
    store = open_robomimic(file, SPEC)
    rows = np.array([[17, 0], [4, 5], [12, 11]])
    found = store.gather(WRIST, rows)
    assert found.shape == (3, 2, SIZE, SIZE, 3)
    assert stamps(found.reshape(6, SIZE, SIZE, 3)) == [
        (2, 5, 1), (0, 0, 1), (0, 4, 1), (1, 0, 1), (2, 0, 1), (1, 6, 1),
    ]  # fmt: skip


def test_demonstrations_come_by_number_and_may_have_holes(tmp_path: Path) -> None:
    demos = {f"demo_{i}": robomimic_demo(i, 3) for i in (10, 2, 0)}
    store = open_robomimic(write_demos(tmp_path / "a.hdf5", demos), SPEC)
    assert store.names == ["demo_0", "demo_2", "demo_10"]
    assert stamps(store.gather(FRONT, store.starts)) == [(0, 0, 0), (2, 0, 0), (10, 0, 0)]
    notes = [str(finding) for finding in store.findings()]
    assert any("has no demo_1, 8 numbers are left out" in note for note in notes)


def test_without_a_task_the_file_says_what_it_holds(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", mode="delta")
    with h5py.File(path, "r+") as file:  # neither a picture nor numbers
        file["data/demo_0/obs/sideview_depth"] = np.zeros((5, SIZE, SIZE, 1), np.float32)
    store = open_robomimic(path)
    assert store.native
    assert "sideview_depth" not in store.streams
    assert store.spec.fps == 20.0
    assert set(store.spec.cameras) == {FRONT, WRIST}
    assert len(store.spec.state["object"]) == 44
    assert store.spec.action is not None
    assert (store.spec.action.mode, store.spec.action.dim) == ("delta", 7)
    np.testing.assert_array_equal(
        store.read(0, 0, 5, ["action"])["action"], arm_actions(0, 5, "delta").astype(np.float32)
    )
    absolute = open_robomimic(write_robomimic(tmp_path / "b.hdf5"))
    assert absolute.spec.action is not None
    assert absolute.spec.action.units == ("m",) * 3 + ("rad",) * 3 + ("unitless",)


def test_masks_choose_demonstrations(tmp_path: Path) -> None:
    path = write_robomimic(
        tmp_path / "a.hdf5", masks={"valid": ["demo_2", "demo_0"], "train": ["demo_1"]}
    )
    assert read_masks(path) == {"train": ["demo_1"], "valid": ["demo_0", "demo_2"]}
    store = open_robomimic(path, SPEC, mask="valid")
    assert (store.names, store.lengths.tolist()) == (["demo_0", "demo_2"], [5, 6])
    assert stamps(store.gather(FRONT, np.array([5]))) == [(2, 0, 0)]
    assert pickle.loads(pickle.dumps(store)).names == store.names
    with pytest.raises(UserError, match="no mask 'vald'; did you mean 'valid'"):
        open_robomimic(path, SPEC, mask="vald")


def test_a_mask_of_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", masks={"train": ["demo_1", "demo_9"], "none": []})
    with pytest.raises(UserError, match=r"names 1 demonstrations that .* such as 'demo_9'"):
        open_robomimic(path, SPEC, mask="train")
    with pytest.raises(UserError, match=r"'none' of .* names no demonstration"):
        open_robomimic(path, SPEC, mask="none")


def test_episodes_begin_where_the_simulator_was(file: Path) -> None:
    store = open_robomimic(file, SPEC)
    states = store.info("initial_state")
    assert states.dtype == np.float64
    np.testing.assert_array_equal(states[:, 0], [0.0, 100.0, 200.0])
    np.testing.assert_array_equal(store.initial_state(1), [100.0, 100.1, 100.2, 100.3])
    assert store.attrs["env_args"]["image_abs.hdf5"]["env_name"] == "ToolHang"
    with pytest.raises(UserError, match=r"episodes 0\.\.2; 3 was asked"):
        store.initial_state(3)


@pytest.mark.parametrize(
    ("flip", "turned"),
    [("none", lambda x: x), ("vertical", lambda x: x[::-1]), ("turn", lambda x: x[::-1, ::-1])],
)
def test_pictures_are_flipped_as_asked(
    file: Path, flip: Any, turned: Callable[[np.ndarray], np.ndarray]
) -> None:
    picture = open_robomimic(file, SPEC, flip=flip).read(0, 2, 3, [FRONT])[FRONT][0]
    assert stamps(turned(picture)[None]) == [(0, 2, 0)]


def test_the_convention_of_a_file_makes_its_pictures_upright(tmp_path: Path) -> None:
    demo = robomimic_demo(0, 3)
    demo[f"obs/{FRONT}"] = demo[f"obs/{FRONT}"][:, ::-1]
    path = write_demos(
        tmp_path / "a.hdf5", {"demo_0": demo}, attrs={"macros_image_convention": "opengl"}
    )
    # This attribute is LIBERO's mark; a single file is opened by name here.
    assert stamps(open_robomimic(path, SPEC).read(0, 0, 3, [FRONT])[FRONT])[2] == (0, 2, 0)
    with pytest.raises(UserError, match="one of the ways auto, none, vertical, turn, not 'up'"):
        open_robomimic(path, SPEC, flip="up")  # pyright: ignore[reportArgumentType]


def test_actions_are_known_by_their_values(tmp_path: Path) -> None:
    deltas = write_robomimic(tmp_path / "image.hdf5", mode="delta")
    goals = write_robomimic(tmp_path / "image_abs.hdf5")
    with pytest.raises(
        UserError, match="are delta by their values, those of the task are absolute"
    ):
        open_robomimic(deltas, SPEC)
    delta_action = ActionSpec(
        names=tuple("abcdefg"), units=("unitless",) * 7, frame="world", mode="delta", rate_hz=20.0
    )
    with pytest.raises(
        UserError, match="are absolute by their values, those of the task are delta"
    ):
        open_robomimic(goals, with_action(delta_action))
    assert open_robomimic(deltas, with_action(delta_action)).has("action")


def test_hands_far_from_their_goals_tell_deltas_and_large_numbers_tell_goals() -> None:
    position, _ = hand(0, 9)
    goals, deltas = arm_actions(0, 9, "absolute"), arm_actions(0, 9, "delta")
    assert (mode_of(goals, position), mode_of(deltas, position)) == ("absolute", "delta")
    assert (mode_of(goals, None), mode_of(deltas, None)) == ("absolute", "delta")
    goals[3] = np.nan
    assert mode_of(goals, position) == "absolute"


def test_newer_files_keep_absolute_actions_beside_the_deltas(tmp_path: Path) -> None:
    demo = robomimic_demo(0, 5, mode="delta")
    demo["actions_abs"] = arm_actions(0, 5, "absolute")
    store = open_robomimic(write_demos(tmp_path / "a.hdf5", {"demo_0": demo}), SPEC)
    np.testing.assert_allclose(
        store.read(0, 0, 5, ["action"])["action"], to_poses(demo["actions_abs"]), atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({f"obs/{FRONT}": 4}, rf"'actions' with 5 steps and 'obs/{FRONT}' with 4"),
        ({"states": 4}, "'actions' with 5 steps and 'states' with 4"),
        ({"actions": None}, "has no 'actions'"),
        ({f"obs/{WRIST}": None}, f"'demo_1' of .* has no observation '{WRIST}'"),
    ],
)
def test_demonstrations_with_missing_rows_or_arrays_are_named(
    tmp_path: Path, change: dict[str, int | None], sentence: str
) -> None:
    demo = robomimic_demo(1, 5)
    for key, length in change.items():
        demo[key] = demo[key][:length]
        if length is None:
            del demo[key]
    path = tmp_path / "a.hdf5"
    if "actions" in demo:
        write_demos(path, {"demo_0": robomimic_demo(0, 4), "demo_1": demo})
    else:
        write_demos(path, {"demo_1": robomimic_demo(1, 5)})
        with h5py.File(path, "r+") as file:
            del file["data/demo_1/actions"]
    with pytest.raises(UserError, match=sentence):
        open_robomimic(path, SPEC)


def test_actions_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    demo = robomimic_demo(0, 4) | {"actions": np.array([b"left"] * 4)}
    path = write_demos(tmp_path / "a.hdf5", {"demo_0": demo})
    with pytest.raises(UserError, match=r"'actions' of 'demo_0' in .* should be numbers \(T, D\)"):
        open_robomimic(path, SPEC)


def test_files_without_pictures_say_how_to_render_them(tmp_path: Path) -> None:
    demo = {key: x for key, x in robomimic_demo(0, 4).items() if not key.startswith("obs/")}
    path = write_demos(tmp_path / "demo.hdf5", {"demo_0": demo})
    assert is_robomimic(path)
    with pytest.raises(UserError, match="no 'obs'; render its observations"):
        open_robomimic(path, SPEC)


def test_other_sizes_rates_and_widths_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"should be uint8 \(T, 240, 240, 3\), .* found uint8 \(T, 16"
    ):
        open_robomimic(file, TASK.spec)
    with pytest.raises(UserError, match="recorded at 20 Hz, the task has 10 Hz"):
        open_robomimic(file, dataclasses.replace(SPEC, fps=10.0))
    with pytest.raises(
        UserError, match=r"7 numbers a step \(as poses 10\), .* of the task have 20"
    ):
        open_robomimic(file, with_action(pose_action(20.0, arms=2)))
    with pytest.raises(UserError, match="no instructions"):
        open_robomimic(file, dataclasses.replace(SPEC, has_text=True))
    with pytest.raises(UserError, match="no rewards"):
        open_robomimic(file, dataclasses.replace(SPEC, has_reward=True))
    state = {**SPEC.state, "robot0_eef_pos": ("x", "y")}
    with pytest.raises(UserError, match=r"should be numbers \(T, 2\), .* found float64 \(T, 3\)"):
        open_robomimic(file, dataclasses.replace(SPEC, state=state))
    unknown = write_demos(tmp_path / "b.hdf5", {"demo_0": robomimic_demo(0, 3)}, attrs={})
    with pytest.raises(UserError, match="how many steps a second"):
        open_robomimic(unknown)


def test_demonstrations_of_several_kinds_are_refused(tmp_path: Path) -> None:
    two_arms = {"demo_0": robomimic_demo(0, 4), "demo_1": robomimic_demo(1, 4, arms=2)}
    path = write_demos(tmp_path / "a.hdf5", two_arms)
    with pytest.raises(UserError, match=r"'demo_1' in .* has 14 .* 20\), the actions of the task"):
        open_robomimic(path, SPEC)
    with pytest.raises(UserError, match=r"actions of 'demo_0' of a.hdf5 have 7; keep recordings"):
        open_robomimic(path)
    sizes = {"demo_0": robomimic_demo(0, 4), "demo_1": robomimic_demo(1, 4, size=8)}
    path = write_demos(tmp_path / "b.hdf5", sizes)
    with pytest.raises(UserError, match=r"16, 3\), as 'demo_0' of b.hdf5 has it, found uint8"):
        open_robomimic(path)


def test_demonstrations_without_steps_or_states_are_named(tmp_path: Path) -> None:
    empty = {key: x[:0] for key, x in robomimic_demo(0, 4).items()}
    path = write_demos(tmp_path / "a.hdf5", {"demo_0": robomimic_demo(0, 4), "demo_1": empty})
    with pytest.raises(UserError, match=r"'demo_1' of .* holds no step"):
        open_robomimic(path, SPEC)
    demo = robomimic_demo(0, 4)
    del demo["states"]
    store = open_robomimic(write_demos(tmp_path / "b.hdf5", {"demo_0": demo}), SPEC)
    assert store.info_names == ["name"]
    with pytest.raises(UserError, match=r"'demo_0' of .* holds no states"):
        store.initial_state(0)
    with pytest.raises(UserError, match="has no stream 'reward'"):
        store.reader("reward")


def test_pictures_that_were_never_written_are_refused(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", [4])
    with h5py.File(path, "r+") as file:
        del file[f"data/demo_0/obs/{FRONT}"]
        file.create_dataset(
            f"data/demo_0/obs/{FRONT}", (4, SIZE, SIZE, 3), np.uint8, chunks=(2, SIZE, SIZE, 3)
        )
    with pytest.raises(UserError, match=r"has 0 of 2 chunks; its writing was cut short"):
        open_robomimic(path, SPEC).read(0, 0, 1, [FRONT])


def test_damaged_and_empty_files_are_one_sentence(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with h5py.File(other / "empty.hdf5", "w") as empty:
        empty.create_group("data")
    with pytest.raises(UserError, match=r"should hold demonstrations as groups data/demo_0"):
        open_robomimic(other / "empty.hdf5")
    with pytest.raises(UserError, match=r"is a folder; name one of its files .* image_abs.hdf5"):
        open_episodes(file.parent, SPEC)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError, match="is no whole HDF5 file"):
        open_robomimic(file)


def test_many_demonstrations_need_few_open_files(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", [2] * 40)
    store = open_robomimic(path, SPEC)
    before = len(os.listdir("/proc/self/fd"))
    store.gather(FRONT, np.arange(80))
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_window_decodes_no_block_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", [20], compression="gzip", chunks=(4, SIZE, SIZE, 3))
    decoded: list[tuple[int, int]] = []
    real = hdf5.BlockRows._decode

    def counted(self: Any, start: int, stop: int) -> np.ndarray:
        decoded.append((start, stop))
        return real(self, start, stop)

    monkeypatch.setattr(hdf5.BlockRows, "_decode", counted)
    store = open_robomimic(path, SPEC)
    for start in range(9):
        store.read(0, start, start + 12, [FRONT])
    assert sorted(decoded) == [(n, n + 4) for n in range(0, 20, 4)]


def test_windows_read_the_file(file: Path) -> None:
    store = open_robomimic(file, SPEC)
    window = Window(
        video={FRONT: (-1, 0), WRIST: (0,)}, actions=(0, 1), state={"robot0_eef_pos": (0,)}
    )
    streams = {n: store.all_rows(n) for n in ("action", "robot0_eef_pos")}
    dataset = WindowDataset(
        store,
        window,
        np.arange(3),
        Normalizer.fit(streams, {"action": "positions", "robot0_eef_pos": "range"}),
    )
    batch = next(iter(ordered_batches(dataset, batch_size=4)))
    assert batch.video[FRONT].shape == (4, 2, 3, SIZE, SIZE)
    assert batch.actions is not None
    positions = batch.actions[..., :3]
    assert float(positions.abs().max()) <= 1.0 + 1e-5
