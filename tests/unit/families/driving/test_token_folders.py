"""Token folders and trajectory files of other make, opened as they are."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.driving_worlds import START, drive

from foreact.errors import UserError
from foreact.families.driving.data.token_folders import TokenFolders, TrajectoryTokens
from foreact.families.driving.data.trajectories import (
    Trajectories,
    read_trajectories,
    write_trajectories,
)
from foreact.families.driving.data.windows import DrivingWindows
from foreact.families.driving.released.trajectories import open_trajectories, read_trajectory_pickle


def write_grids(folder: Path, count: int, *, seed: int = 0) -> np.ndarray:
    grids = np.random.default_rng(seed).integers(0, 90, (count, 2, 3)).astype(np.uint16)
    folder.mkdir(parents=True)
    for i, grid in enumerate(grids):
        np.save(folder / f"t_{i + 1:06d}.npy", grid)
    return grids


def records(scenes: dict[str, int], camera: str = "CAM_FRONT") -> list[dict]:
    found = []
    for name, length in scenes.items():
        for i, pose in enumerate(drive(length)):
            entry = {
                "file_path": f"samples/{name}-{i}.jpg",
                "timestamp": START + 500_000 * i,
                "ego_to_world_tran": pose[:3].tolist(),
                "ego_to_world_rot": pose[3:].tolist(),
            }
            found.append(
                {
                    "scene": {"name": name, "description": ""},
                    camera: entry,
                    "annotations": [{"x": 1}],
                }
            )
    return [found[i] for i in np.random.default_rng(1).permutation(len(found))]


def test_videos_come_in_the_order_of_the_list(tmp_path: Path) -> None:
    first, second = write_grids(tmp_path / "b", 5), write_grids(tmp_path / "@a", 4, seed=1)
    drives = TokenFolders(tmp_path, ["b", "-a"])
    assert drives.names == ["b", "-a"]
    windows = DrivingWindows(drives, frames=2, stride=3, horizon=None, vocab=90)
    assert len(windows) == 3
    tokens = windows.batch(np.array([2, 0])).tokens["front"].numpy()
    np.testing.assert_array_equal(tokens, [second[[0, 3]], first[[0, 3]]])
    again = pickle.loads(pickle.dumps(windows))
    np.testing.assert_array_equal(again.batch(np.array([2, 0])).tokens["front"], tokens)


def test_missing_videos_are_refused_or_left_out_aloud(tmp_path: Path) -> None:
    write_grids(tmp_path / "a", 5)
    with pytest.raises(UserError, match=r"1 of 2 videos have no folder in .*, such as 'gone'"):
        TokenFolders(tmp_path, ["gone", "a"])
    with pytest.warns(UserWarning, match="such as 'gone'; they are left out"):
        assert TokenFolders(tmp_path, ["gone", "a"], skip_missing=True).names == ["a"]
    with pytest.raises(UserError, match="2 of 2"):
        TokenFolders(tmp_path, ["gone", "too"], skip_missing=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no token file for any of the 1 videos"):
        TokenFolders(tmp_path, ["empty"])


def test_holes_in_the_numbering_are_counted_and_no_window_crosses_them(tmp_path: Path) -> None:
    write_grids(tmp_path / "a", 12)
    write_grids(tmp_path / "b", 6)
    for number in (5, 6):
        (tmp_path / f"a/t_{number:06d}.npy").unlink()
    with pytest.warns(UserWarning, match="2 frames are missing .* of 1 of 2 videos .* such as 'a'"):
        drives = TokenFolders(tmp_path, ["a", "b"])
    with pytest.warns(UserWarning, match="cross a gap"):
        windows = DrivingWindows(drives, frames=3, stride=1, horizon=None)
    assert len(windows) == 2 + 4 + 4


def test_names_whose_numbers_tell_no_order_are_taken_as_they_come(tmp_path: Path) -> None:
    write_grids(tmp_path / "a", 3)
    for file in (tmp_path / "a").iterdir():
        file.rename(file.with_name(f"{file.stem}_v2.npy"))
    assert not TokenFolders(tmp_path, ["a"]).has("timestamp")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (Path.unlink, "There is no token file"),
        (cut, "cannot be read"),
        (lambda file: file.write_bytes(b""), "cannot be read"),
        (
            lambda file: np.save(file, np.zeros((3, 3), np.uint16)),
            r"grid of \(3, 3\) tokens and .* one of \(2, 3\)",
        ),
        (
            lambda file: np.save(file, np.zeros((2, 3))),
            r"should hold integers \(h, w\), found float64",
        ),
        (lambda file: np.save(file, np.array([{}])), "cannot be read"),
        (
            lambda file: np.savez(file.open("wb"), np.zeros((2, 3), np.uint16)),
            "found several arrays",
        ),
        (
            lambda file: np.save(file, np.full((2, 3), 90)),
            r"ids should be in 0\.\.89, found 90 in .*t_000002.npy",
        ),
    ],
)
def test_bad_token_files_are_named(
    tmp_path: Path, harm: Callable[[Path], object], sentence: str
) -> None:
    write_grids(tmp_path / "a", 3)
    windows = DrivingWindows(
        TokenFolders(tmp_path, ["a"]), frames=3, stride=1, horizon=None, vocab=90
    )
    harm(tmp_path / "a/t_000002.npy")
    with pytest.raises(UserError, match=sentence) as caught:
        windows.batch(np.array([0]))
    assert "t_000002.npy" in str(caught.value)


def test_trajectories_of_a_pickle_and_of_json_lines_are_the_same(tmp_path: Path) -> None:
    found = records({"scene-b": 4, "scene-a": 6})
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(found))
    write_trajectories(tmp_path / "data.jsonl", found)
    assert list(read_trajectories(tmp_path / "data.jsonl")) == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl", "data.pkl"]
    one, other = (
        open_trajectories(tmp_path / f"data.{kind}", "CAM_FRONT") for kind in ("pkl", "jsonl")
    )
    assert one.names == other.names == ["scene-a", "scene-b"]
    assert one.files == other.files
    assert one.lengths.tolist() == [6, 4]
    assert one.files[6:] == [f"samples/scene-b-{i}.jpg" for i in range(4)]
    np.testing.assert_array_equal(one.poses, other.poses)
    np.testing.assert_array_equal(one.poses[6:], drive(4))

    (tmp_path / "samples").mkdir()
    for i in range(6):
        np.save(tmp_path / f"samples/scene-a-{i}.npy", np.full((2, 3), i))
    windows = DrivingWindows(
        TrajectoryTokens(one, tmp_path, rate_hz=2.0), frames=2, stride=1, horizon=2
    )
    assert len(windows) == 3 + 1
    assert windows.batch(np.array([2])).tokens["front"][0, :, 0, 0].tolist() == [2, 3]


def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"posix\.system"):
        read_trajectory_pickle(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="list of one dict per frame"):
        read_trajectory_pickle(path)
    path.write_bytes(pickle.dumps(records({"s": 3}))[:-20])
    with pytest.raises(UserError, match="damaged"):
        read_trajectory_pickle(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_trajectory_pickle(tmp_path / "none.pkl")


def test_malformed_records_are_named(tmp_path: Path) -> None:
    found = records({"s": 3})
    with pytest.raises(
        UserError, match=r"Record 0 of here has no usable entry for camera 'CAM_F0'.*'CAM_FRONT'"
    ):
        Trajectories.from_records(found, "CAM_F0", "here")
    with pytest.raises(UserError, match="no frame of camera"):
        Trajectories.from_records([], "CAM_F0", "here")
    found[1]["CAM_FRONT"]["ego_to_world_rot"] = [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match=r"Record 1 of here should have 3 \+ 4 pose values"):
        Trajectories.from_records(found, "CAM_FRONT", "here")
    found[1]["CAM_FRONT"]["ego_to_world_rot"] = [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(UserError, match="unit quaternions"):
        Trajectories.from_records(found, "CAM_FRONT", "here")
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(found[0]) + "\n" + json.dumps(found[1])[:-5])
    with pytest.raises(UserError, match=r"Line 2 of .* is not one JSON record"):
        open_trajectories(path, "CAM_FRONT")
    with pytest.raises(UserError, match="no trajectory file"):
        open_trajectories(tmp_path / "none.jsonl", "CAM_FRONT")
