"""nuScenes from its raw layout into a store: frames, poses, times, splits, resuming, bad input."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.driving_worlds import SIZE, START, drive, picture, write_nuscenes

from foreact.data.formats.frames import read_frame, read_names
from foreact.data.stores.derived import write_stream
from foreact.data.stores.store import open_store
from foreact.errors import UserError
from foreact.families.driving.data import drives as drives_module
from foreact.families.driving.data.nuscenes import nuscenes_records
from foreact.families.driving.data.token_folders import TrajectoryTokens
from foreact.families.driving.data.trajectories import Trajectories
from foreact.families.driving.data.windows import DrivingWindows
from foreact.families.driving.data_verbs import import_nuscenes
from foreact.families.driving.released.trajectories import open_trajectories

SCENES = {"scene-0103": drive(9, seed=3, turn=0.4), "scene-0061": drive(7, seed=1)}


def take(root: Path, out: Path, **options: Any) -> None:
    import_nuscenes(root, out, height=SIZE[0], width=SIZE[1], **options)


def test_key_frames_poses_and_times_come_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nuscenes(tmp_path / "raw", SCENES)
    take(tmp_path / "raw", tmp_path / "s.zarr")
    assert "2 episodes" in capsys.readouterr().out
    drives = open_store(tmp_path / "s.zarr")
    assert drives.names == ["scene-0061", "scene-0103"]
    assert drives.spec.fps == 2.0
    np.testing.assert_array_equal(
        drives.all_rows("ego_pose"), np.concatenate([SCENES[name] for name in drives.names])
    )
    np.testing.assert_array_equal(np.diff(drives.all_rows("timestamp"))[:6], [500_000] * 6)
    assert drives.all_rows("timestamp")[7] == START
    frames = drives.read(1, 0, 9, ["front"])["front"]
    small = picture(3 * 4).reshape(18, 5, 32, 5, 3).mean(axis=(1, 3))
    assert np.abs(frames[4].astype(float) - small).max() < 6
    assert abs(float(frames[5].mean()) - float(frames[4].mean()) - 3) < 1

    found = open_trajectories(tmp_path / "s.trajectories.jsonl", "CAM_FRONT")
    np.testing.assert_array_equal(found.poses, drives.all_rows("ego_pose"))
    assert found.files[0] == f"samples/CAM_FRONT/scene-0061__CAM_FRONT__{START + 10**9}.jpg"
    record = json.loads((tmp_path / "s.trajectories.jsonl").read_text().splitlines()[0])
    assert record["CAM_FRONT"]["sensor_to_ego_tran"] == [1.7, 0.0, 1.5]
    assert np.shape(record["CAM_FRONT"]["intrinsic"]) == (3, 3)


def test_the_store_and_the_token_folder_give_the_same_windows(tmp_path: Path) -> None:
    write_nuscenes(tmp_path / "raw", SCENES)
    take(tmp_path / "raw", tmp_path / "s.zarr")
    found = open_trajectories(tmp_path / "s.trajectories.jsonl", "CAM_FRONT")
    tokens = np.random.default_rng(0).integers(0, 99, (16, 2, 3)).astype(np.uint16)
    write_stream(tmp_path / "s.zarr", "tokens_front", tokens, attrs={})
    (tmp_path / "tokens/samples/CAM_FRONT").mkdir(parents=True)
    for file, grid in zip(found.files, tokens, strict=True):
        np.save((tmp_path / "tokens" / file).with_suffix(".npy"), grid)
    native, foreign = (
        DrivingWindows(drives, frames=2, stride=1, horizon=3)
        for drives in (
            open_store(tmp_path / "s.zarr"),
            TrajectoryTokens(found, tmp_path / "tokens", rate_hz=2.0),
        )
    )
    assert len(native) == len(foreign) == 3 + 5
    one, other = (windows.batch(np.arange(8)) for windows in (native, foreign))
    for name in ("plans", "commands", "index"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.tokens["front"], other.tokens["front"])


def test_chosen_scenes_only_and_more_of_them_later(tmp_path: Path) -> None:
    write_nuscenes(tmp_path / "raw", SCENES)
    (tmp_path / "one.txt").write_text("scene-0103\n")
    (tmp_path / "both.json").write_text(json.dumps(list(SCENES)))
    out = tmp_path / "s.zarr"
    take(tmp_path / "raw", out, scenes=tmp_path / "one.txt")
    assert open_store(out).info("name").tolist() == ["scene-0103"]
    take(tmp_path / "raw", out, scenes=tmp_path / "both.json")
    drives = open_store(out)
    assert drives.names == list(SCENES)
    np.testing.assert_array_equal(
        drives.all_rows("ego_pose"), np.concatenate(list(SCENES.values()))
    )
    with pytest.raises(UserError, match="holds 'scene-0061', which is not imported now"):
        take(tmp_path / "raw", out, scenes=tmp_path / "one.txt")
    (tmp_path / "one.txt").write_text("scene-9999")
    with pytest.raises(UserError, match="no scene 'scene-9999'"):
        take(tmp_path / "raw", out, scenes=tmp_path / "one.txt")


def test_missing_images_are_counted_and_make_a_gap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nuscenes(tmp_path / "raw", SCENES)
    for file in (tmp_path / "raw/samples/CAM_FRONT").glob("scene-0061*"):
        file.unlink()
    sorted((tmp_path / "raw/samples/CAM_FRONT").glob("scene-0103*"))[4].unlink()
    take(tmp_path / "raw", tmp_path / "s.zarr")
    table = capsys.readouterr().out
    assert "1 without any image in" in table
    assert "8 not in" in table
    drives = open_store(tmp_path / "s.zarr")
    np.testing.assert_array_equal(
        drives.all_rows("ego_pose"), np.delete(SCENES["scene-0103"], 4, axis=0)
    )
    with pytest.warns(UserWarning, match="2 of 6 windows"):
        assert len(DrivingWindows(drives, frames=3, stride=1, horizon=None)) == 4


def test_scenes_without_key_frames_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nuscenes(tmp_path / "raw", {**SCENES, "scene-0200": drive(3)})
    file = tmp_path / "raw/v1.0-mini/sample_data.json"
    rows = json.loads(file.read_text())
    for row in rows:
        row["is_key_frame"] &= not row["sample_token"].startswith("scene-0200")
        if row["sample_token"] == "scene-0061-6":
            row["sample_token"] = "nowhere"
    file.write_text(json.dumps(rows))
    take(tmp_path / "raw", tmp_path / "s.zarr")
    table = capsys.readouterr().out
    assert "1 without a key frame of camera CAM_FRONT, such as scene-0200" in table
    assert "1 of a sample or scene that is in no table, such as samples/CAM_FRONT/" in table
    assert open_store(tmp_path / "s.zarr").lengths.sum() == 15


def test_a_damaged_image_leaves_nothing_of_a_first_import(tmp_path: Path) -> None:
    write_nuscenes(tmp_path / "raw", SCENES)
    file = sorted((tmp_path / "raw/samples/CAM_FRONT").glob("scene-0103*"))[4]
    whole = file.read_bytes()
    file.write_bytes(whole[:500])
    with pytest.raises(UserError, match="cannot be decoded") as caught:
        take(tmp_path / "raw", tmp_path / "s.zarr")
    assert str(file) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]
    file.write_bytes(whole)
    take(tmp_path / "raw", tmp_path / "s.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        windows = DrivingWindows(
            open_store(tmp_path / "s.zarr"), frames=2, stride=1, horizon=2, gaps="keep"
        )
        assert len(windows) == 4 + 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "s.trajectories.jsonl", "s.zarr"]


def test_a_damaged_image_takes_back_what_was_added_to_a_store(tmp_path: Path) -> None:
    write_nuscenes(tmp_path / "raw", SCENES | {"scene-0200": drive(3), "scene-0300": drive(3)})
    (tmp_path / "two.json").write_text(json.dumps(list(SCENES)))
    take(tmp_path / "raw", tmp_path / "s.zarr", scenes=tmp_path / "two.json")
    file = next((tmp_path / "raw/samples/CAM_FRONT").glob("scene-0300*"))
    whole = file.read_bytes()
    file.write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be decoded"):
        take(tmp_path / "raw", tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").names == sorted(SCENES)
    assert open_store(tmp_path / "s.zarr").has("ego_pose")
    file.write_bytes(whole)
    take(tmp_path / "raw", tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").lengths.tolist() == [7, 9, 3, 3]


def test_an_interrupted_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nuscenes(tmp_path / "raw", SCENES)
    read, decoded = drives_module.read_frames, []

    def stops(paths: list[Path], size: tuple[int, int]) -> Iterator[np.ndarray]:
        decoded.append(len(paths))
        if len(decoded) == 2:
            raise KeyboardInterrupt
        return read(paths, size)

    monkeypatch.setattr(drives_module, "read_frames", stops)
    with pytest.raises(KeyboardInterrupt):
        take(tmp_path / "raw", tmp_path / "s.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".s.zarr.unfinished", "raw"]
    take(tmp_path / "raw", tmp_path / "s.zarr")
    assert decoded == [7, 9, 9]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "s.trajectories.jsonl", "s.zarr"]


def test_a_scene_whose_images_have_changed_is_not_mixed_with_its_old_self(tmp_path: Path) -> None:
    write_nuscenes(tmp_path / "raw", SCENES)
    file = sorted((tmp_path / "raw/samples/CAM_FRONT").glob("scene-0061*"))[4]
    file.rename(tmp_path / "aside.jpg")
    take(tmp_path / "raw", tmp_path / "s.zarr")
    (tmp_path / "aside.jpg").rename(file)
    with pytest.raises(UserError, match="holds 6 frames of 'scene-0061', of which 7 are there now"):
        take(tmp_path / "raw", tmp_path / "s.zarr")
    poses = open_store(tmp_path / "s.zarr").all_rows("ego_pose")
    assert poses is not None
    assert len(poses) == 15


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (
            lambda raw: (raw / "v1.0-mini/ego_pose.json").unlink(),
            "There is no table .*ego_pose.json",
        ),
        (
            lambda raw: (raw / "v1.0-mini/sample.json").write_text("[{"),
            "sample.json cannot be read",
        ),
        (
            lambda raw: (raw / "v1.0-mini/scene.json").write_text('[{"token": 1}]'),
            "list of rows with token, name",
        ),
        (lambda raw: (raw / "v1.0-mini/ego_pose.json").write_text("[]"), "16 ego poses"),
        (
            lambda raw: (raw / "v1.0-mini/sensor.json").write_text("[]"),
            "no key frame of camera 'CAM_FRONT'",
        ),
        (lambda raw: (raw / "v1.0-trainval").mkdir(), "name the version"),
        (lambda raw: (raw / "samples").rename(raw / "elsewhere"), "None of the 16 images is there"),
    ],
)
def test_bad_tables_are_named(
    tmp_path: Path, harm: Callable[[Path], object], sentence: str
) -> None:
    write_nuscenes(tmp_path / "raw", SCENES)
    harm(tmp_path / "raw")
    with pytest.raises(UserError, match=sentence):
        take(tmp_path / "raw", tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_records_are_of_the_asked_camera(tmp_path: Path) -> None:
    write_nuscenes(tmp_path, SCENES)
    found = Trajectories.from_records(
        nuscenes_records(tmp_path, camera="CAM_BACK"), "CAM_BACK", "raw"
    )
    assert found.lengths.tolist() == [7, 9]
    assert found.timestamps[7] == START + 10
    np.testing.assert_array_equal(found.poses[7:, :3], SCENES["scene-0103"][:, :3] + 1)


def test_frames_are_reduced_as_a_whole_and_never_cropped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (900, 1600, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    frame = read_frame(tmp_path / "a.png", (288, 512))
    assert (frame.dtype, frame.shape) == (np.uint8, (288, 512, 3))
    # Antialiased: the noise of 3.125 x 3.125 pixels is averaged.
    assert frame.std() < noise.std() / 2
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png", (900, 1600)), noise)
    with pytest.raises(UserError, match="another aspect ratio than 500x288"):
        read_frame(tmp_path / "a.png", (288, 500))


def test_a_picture_that_was_taken_on_its_side_comes_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png", (8, 6)), np.rot90(pixels, 3))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("n.json", "{}"),
        ("n.json", "[1]"),
        ("n.json", "["),
        ("n.txt", " "),
        ("n.txt", "x" * 300),
        ("n.json", '["a\\u0000b"]'),
    ],
)
def test_lists_of_names_are_checked(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match="should hold names"):
        read_names(tmp_path / file)
    with pytest.raises(UserError, match="cannot be read"):
        read_names(tmp_path / "none")


def test_names_stand_one_per_line(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("scene-0061\n\n  a name of words \r\n")
    assert read_names(tmp_path / "n.txt") == ["scene-0061", "a name of words"]
