"""OpenDV from its videos into a store: cutting, sampling, damage,
resuming; the command for remaining windows.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.driving_worlds import picture, write_clock, write_opendv
from support.turned_video import turn

from foreact.data.formats.video import write_mp4
from foreact.data.stores.store import ZarrStore, open_store
from foreact.errors import UserError
from foreact.families.driving import data_verbs as driving_data
from foreact.families.driving.data.opendv import import_opendv, opendv_videos
from foreact.families.driving.data.remaining import remaining_of_run

SIZE = (18, 32)


def take(root: Path, **options: Any) -> ZarrStore:
    import_opendv(root, root / "s.zarr", size=SIZE, progress=False, **options)
    return open_store(root / "s.zarr")


def times(store: ZarrStore, episode: int) -> np.ndarray:
    """Seconds in the source that the frames show, by their brightness."""
    frames = store.read(episode, 0, int(store.lengths[episode]), ["front"])["front"]
    return (frames.mean(axis=(1, 2, 3)) - picture(0).mean()) / 20


def test_videos_are_cut_and_sampled_at_ten_hertz(tmp_path: Path) -> None:
    write_opendv(tmp_path, [("whole", "Train", 0, 0), ("cut", "Train", 2, 1.5)], seconds=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = take(tmp_path)
    assert store.spec.fps == 10.0
    assert store.info("name").tolist() == ["whole", "cut"]
    assert store.lengths.tolist() == [80, 45]
    np.testing.assert_allclose(times(store, 0), np.arange(80) / 10, atol=0.1)
    np.testing.assert_allclose(times(store, 1), 2 + np.arange(45) / 10, atol=0.1)
    assert store.info("complaints").tolist() == [0, 0]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_videos_stand_as_their_containers_say(tmp_path: Path, degrees: int) -> None:
    """Drawn with a white left half: to the right, below and so on once it is turned."""
    frames = np.zeros((10, 36, 64, 3), np.uint8)
    frames[:, :, :32] = 255
    (tmp_path / "videos/channel").mkdir(parents=True)
    file = tmp_path / "videos/channel/turned.MP4"
    write_mp4(file, frames, 10)
    turn(file, degrees)
    table = "\ufeffvideo_id\tsplit\tdiscard_start\tdiscard_end\t\r\nturned\ttrain\t0\t0\t\r\n\r\n"
    (tmp_path / "metadata.csv").write_text(table, encoding="utf-8", newline="")
    (tmp_path / "videos/channel/._turned.MP4").write_bytes(bytes(100))
    store = take(tmp_path)
    seen = store.read(0, 5, 6, ["front"])["front"][0].astype(int)
    halves = {
        90: (seen[:8], seen[-8:]),
        180: (seen[:, -12:], seen[:, :12]),
        270: (seen[-8:], seen[:8]),
    }
    white, black = halves[degrees]
    assert white.min() > 150
    assert black.max() < 100


@pytest.mark.parametrize("ending", [".mkv", ".MOV", ".Mp4", ".avi"])
def test_videos_of_all_usual_endings_are_found(tmp_path: Path, ending: str) -> None:
    write_opendv(tmp_path, [("a", "Train", 0, 0)], seconds=1)
    (file,) = (tmp_path / "videos").glob("*/a.*")
    file.rename(file.with_suffix(ending))
    assert [video.name for video in opendv_videos(tmp_path)] == ["a"]


def test_the_reference_cuts_the_end_too_late_by_the_start(tmp_path: Path) -> None:
    write_opendv(tmp_path, [("early", "Train", 1, 3), ("late", "Train", 3, 1)], seconds=8)
    store = take(tmp_path, cutting="reference")
    # To 8 - 3 seconds after the new start; and to the end of the video, which comes before 8 - 1
    # seconds.
    assert store.lengths.tolist() == [50, 50]
    np.testing.assert_allclose(times(store, 0), 1 + np.arange(50) / 10, atol=0.1)
    np.testing.assert_allclose(times(store, 1), 3 + np.arange(50) / 10, atol=0.1)
    with pytest.raises(UserError, match=r"was made from .*'reference'"):
        take(tmp_path, cutting="exact")


def test_splits_names_and_leading_dashes(tmp_path: Path) -> None:
    write_opendv(
        tmp_path, [("a", "Train", 0, 0), ("-b", "Val", 0, 0), ("-c", "Val", 0, 0)], seconds=1
    )
    file = tmp_path / "videos/channel-1/-b.mp4"
    file.rename(file.with_name("@b.mp4"))
    assert [v.name for v in opendv_videos(tmp_path, split="val")] == ["-b", "-c"]
    assert [v.name for v in opendv_videos(tmp_path, names=["-c", "a"])] == ["a", "-c"]
    store = take(tmp_path, split="val")
    assert store.info("name").tolist() == ["-b", "-c"]
    assert store.info("split").tolist() == ["Val", "Val"]
    with pytest.raises(UserError, match="does not list 'z'"):
        opendv_videos(tmp_path, names=["z"])


def test_an_import_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    write_opendv(tmp_path, [("a", "Train", 0, 0), ("b", "Train", 0, 0)], seconds=1)
    path = tmp_path / "videos/channel-1/b.mp4"
    away = path.rename(tmp_path / "away.mp4")
    account = import_opendv(tmp_path, tmp_path / "s.zarr", size=SIZE, progress=False)
    assert account.reasons("episodes") == f"1 not below {tmp_path / 'videos'}, such as b"
    store = open_store(tmp_path / "s.zarr")
    assert len(store) == 1
    away.rename(path)
    (tmp_path / "videos/channel-0/a.mp4").write_bytes(b"")  # is not read again
    store = take(tmp_path)
    assert store.info("name").tolist() == ["a", "b"]
    assert take(tmp_path).lengths.tolist() == [10, 10]


def damage(path: Path, *, share: float) -> None:
    """Overwrite a part of the pictures, which lie behind the index."""
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4 + int(0.3 * len(data))
    noise = np.random.default_rng(0).integers(0, 256, int(share * len(data))).astype(np.uint8)
    data[start : start + len(noise)] = noise.tobytes()
    path.write_bytes(bytes(data))


def test_damaged_parts_are_counted_and_passed_over(tmp_path: Path) -> None:
    write_opendv(tmp_path, [("a", "Train", 0, 0), ("b", "Train", 0, 0)], seconds=4)
    damage(tmp_path / "videos/channel-0/a.mp4", share=0.3)
    with pytest.raises(
        UserError, match=r"a\.mp4: the decoder reported \d+ errors; download it again"
    ):
        take(tmp_path, damage="error")
    with pytest.warns(
        UserWarning, match=r"a\.mp4: the decoder reported \d+ errors; 40 frames are taken"
    ):
        store = take(tmp_path)
    assert store.info("name").tolist() == ["a", "b"]
    assert store.info("complaints")[0] > 0
    assert store.info("complaints")[1] == 0
    np.testing.assert_allclose(times(store, 1), np.arange(40) / 10, atol=0.1)


def test_every_copy_of_a_damaged_video_is_told_of(tmp_path: Path) -> None:
    write_opendv(tmp_path, [("a", "Train", 0, 0), ("b", "Train", 0, 0)], seconds=2)
    for file in sorted((tmp_path / "videos").glob("*/*.mp4")):
        damage(file, share=0.01)
    with pytest.warns(UserWarning, match=r"reported \d+ errors"):
        complaints = take(tmp_path).info("complaints")
    assert complaints[0] == complaints[1] > 0


def test_a_video_that_is_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    write_opendv(tmp_path, [("a", "Train", 0, 0)], seconds=8)
    path = tmp_path / "videos/channel-0/a.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(
        UserWarning, match=r"a\.mp4: .* and it ends \d\.\d s too early; \d\d frames are taken"
    ):
        store = take(tmp_path)
    assert 10 < store.lengths[0] < 70
    np.testing.assert_allclose(times(store, 0)[:10], np.arange(10) / 10, atol=0.1)


def test_videos_that_give_no_frame_are_left_out(tmp_path: Path) -> None:
    write_opendv(
        tmp_path,
        [("a", "Train", 0, 0), ("none", "Train", 0.5, 0.6), ("b", "Train", 0, 0)],
        seconds=1,
    )
    (tmp_path / "videos/channel-0/b.mp4").write_bytes(b"no video at all")
    write_clock(tmp_path / "videos/channel-0/unlisted.mp4", 0.2, 10)
    account = import_opendv(tmp_path, tmp_path / "s.zarr", size=SIZE, progress=False)
    assert (account.found("episodes"), account.episodes) == (3, 1)
    reasons = account.reasons("episodes")
    assert re.search(r"1 because nothing remains after cutting, such as .*none\.mp4", reasons)
    assert re.search(r"1 because it cannot be decoded further .*b\.mp4", reasons)
    assert "unlisted.mp4" in account.reasons("files")
    assert open_store(tmp_path / "s.zarr").info("name").tolist() == ["a"]


def test_an_import_that_gives_no_frame_leaves_no_store(tmp_path: Path) -> None:
    write_opendv(tmp_path, [("a", "Train", 0, 0)], seconds=0.2)
    (tmp_path / "videos/channel-0/a.mp4").write_bytes(b"no video at all")
    with pytest.raises(
        UserError, match=r"None of the 1 videos .* gave a frame \(1 because it canno"
    ):
        take(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metadata.csv", "videos"]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("video_id\tsplit\na\tTrain\n", "tab separated with video_id, split, discard_start"),
        ("video_id\tdiscard_start\tdiscard_end\na\t0\t0\n", "tab separated with video_id, split"),
        ("video_id\tsplit\tdiscard_start\tdiscard_end\na\tTrain\tx\t0\n", "could not convert"),
        ("video_id\tsplit\tdiscard_start\tdiscard_end\na\tTrain\t-1\t0\n", "'a' has"),
        ("video_id\tsplit\tdiscard_start\tdiscard_end\na\tTrain\t0\tnan\n", "'a' has"),
        (
            "video_id\tsplit\tdiscard_start\tdiscard_end\nz\tTrain\t1\t0\n",
            "none of them lies below",
        ),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, table: str, sentence: str) -> None:
    with pytest.raises(UserError, match="There is no table"):
        take(tmp_path)
    write_opendv(tmp_path, [("a", "Train", 0, 0)], seconds=0.2)
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(UserError, match=sentence):
        take(tmp_path)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("size", [(0, 160), (-3, 160), (90, 0)])
def test_frames_without_pixels_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    write_opendv(tmp_path, [("a", "Train", 0, 0)], seconds=0.2)
    with pytest.raises(UserError, match="at least 1 x 1 pixels"):
        import_opendv(tmp_path, tmp_path / "s.zarr", size=size)
    assert not (tmp_path / "s.zarr").exists()


def test_the_command_imports_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_opendv(tmp_path, [("a", "Train", 0, 0), ("b", "Val", 0, 0)], seconds=0.5)
    (tmp_path / "names.json").write_text('["b"]')
    driving_data.import_opendv(
        tmp_path,
        tmp_path / "s.zarr",
        split="val",
        names=tmp_path / "names.json",
        height=18,
        width=32,
    )
    assert "1 episodes" in capsys.readouterr().out
    assert open_store(tmp_path / "s.zarr").info("name").tolist() == ["b"]


def test_the_command_writes_remaining_windows(tmp_path: Path) -> None:
    run = tmp_path / "step-00000003"
    run.mkdir()
    config = {"accumulate": 2, "batch_size": 3, "seed": 9}
    (run / "train.json").write_text(json.dumps({"step": 3, "world": 2, "config": config}))
    driving_data.remaining(50, tmp_path / "left.json", run=run)
    assert (
        json.loads((tmp_path / "left.json").read_text())
        == remaining_of_run(50, seed=9, seen=36).tolist()
    )
    driving_data.remaining(103, tmp_path / "theirs.json", world=3, batch_size=4, steps=5)
    assert json.loads((tmp_path / "theirs.json").read_text())[:4] == [53, 79, 72, 37]
    with pytest.raises(UserError, match="not both"):
        driving_data.remaining(103, tmp_path / "x.json", run=run, world=3)
    with pytest.raises(UserError, match="has seen all of its 36"):
        driving_data.remaining(36, tmp_path / "x.json", run=run)
    assert not (tmp_path / "x.json").exists()
