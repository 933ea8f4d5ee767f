"""UMI's files open as they lie; damage is named; nothing is held in memory, whoever reads."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import Blosc
from support.umi_files import LENGTHS, SIZE, poses, who, write_umi, zipped

from foreact.data.inspect import check_store
from foreact.data.stores.companion import accompanied
from foreact.data.stores.frames import FrameReader
from foreact.data.stores.store import ZarrStore, open_store
from foreact.data.windows.members import MemberStore
from foreact.errors import UserError
from foreact.tasks import find_task
from foreact.tasks.umi import umi_spec

SPEC = umi_spec(size=SIZE)
CAMERA = "camera0_rgb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_umi(tmp_path_factory.mktemp("umi") / "cup.zarr")


def assert_right(store: ZarrStore) -> None:
    assert store.lengths.tolist() == list(LENGTHS)
    rows = np.array([[0, 29, 30], [50, 31, 7]])
    frames = store.gather(CAMERA, rows)
    assert frames.dtype == np.uint8
    seen = [who(image) for image in frames.reshape(-1, SIZE, SIZE, 3)]
    assert seen == [(0, 0, 0), (0, 29, 0), (1, 0, 0), (1, 20, 0), (1, 1, 0), (0, 7, 0)]
    for name, values in poses(1, LENGTHS[1]).items():
        got = store.read(1, 3, 9, [f"robot0_{name}"])[f"robot0_{name}"]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, values[3:9], rtol=1e-6)


@pytest.mark.parametrize(
    "top", [None, "", "set.zarr/", "a/set.zarr/"], ids=["folder", "zip", "nested", "deeply nested"]
)
def test_containers(folder: Path, top: str | None) -> None:
    path = folder if top is None else zipped(folder, top)
    store = open_store(path, SPEC)
    assert_right(store)
    assert isinstance(store.reader(CAMERA), FrameReader)
    assert not store.native
    assert_right(pickle.loads(pickle.dumps(store)))


def test_the_task_is_the_real_size() -> None:
    spec = find_task("umi").spec
    assert spec.cameras == {CAMERA: (224, 224)}
    assert (spec.fps, spec.action) == (59.94, None)
    assert {name: len(names) for name, names in spec.state.items()} == {
        "robot0_eef_pos": 3,
        "robot0_eef_rot_axis_angle": 3,
        "robot0_gripper_width": 1,
        "robot0_demo_start_pose": 6,
        "robot0_demo_end_pose": 6,
    }


def test_two_robots_have_a_camera_each(tmp_path: Path) -> None:
    store = open_store(write_umi(tmp_path / "two.zarr", robots=2), umi_spec(2, SIZE))
    first, second = (store.gather(f"camera{n}_rgb", np.array([33]))[0] for n in (0, 1))
    assert (who(first), who(second)) == ((1, 3, 0), (1, 3, 1))


def test_forked_processes_read_one_zip_at_once(folder: Path) -> None:
    store = open_store(zipped(folder), SPEC)
    store.gather(CAMERA, np.arange(8))  # threads and handle are there before the fork
    children = []
    for _ in range(3):
        if (pid := os.fork()) == 0:
            try:
                for _ in range(3):
                    store._cache._blocks.clear()
                    assert_right(store)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]


def test_a_missing_frame_is_no_black_frame(folder: Path) -> None:
    path = zipped(folder, leave_out=f"data/{CAMERA}/17.0.0.0")
    with pytest.raises(UserError, match=r"1 of 51 frames of 'camera0_rgb' are missing.*/17.0.0.0'"):
        open_store(path, SPEC).gather(CAMERA, np.array([0]))
    assert "17.0.0.0" in str(check_store(path, SPEC, windows=2))


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_frame_is_named(tmp_path: Path, damage: str) -> None:
    path = write_umi(tmp_path / "cup.zarr")
    chunk = path / "data" / CAMERA / "17.0.0.0"
    whole = chunk.read_bytes()
    changed = {"cut": whole[: len(whole) // 2], "noise": b"\x17" * len(whole), "empty": b""}
    chunk.write_bytes(changed[damage])
    store = open_store(path, SPEC)
    assert who(store.gather(CAMERA, np.array([16]))[0]) == (0, 16, 0)
    with pytest.raises(UserError, match=r"Frame 17 of 'camera0_rgb'.*17\.0\.0\.0.*copy or down"):
        store.gather(CAMERA, np.arange(10, 20))


def test_a_zip_whose_bytes_changed_is_noticed(folder: Path) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"data/{CAMERA}/4.0.0.0")
    data = bytearray(path.read_bytes())
    data[entry.header_offset + 30 + len(entry.filename) + entry.compress_size - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"Frame 4 of.*checksum differs"):
        open_store(path, SPEC).gather(CAMERA, np.array([4]))


def test_pictures_of_another_size_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"camera0_rgb.*\(N, 224, 224, 3\).*use the task"):
        open_store(folder, umi_spec())


def test_only_a_small_cache_is_kept(folder: Path) -> None:
    store = open_store(folder, SPEC)
    store._cache.limit = 5 * SIZE * SIZE * 3
    for first in range(0, 40, 3):
        frames = store.gather(CAMERA, np.arange(first, first + 8))
        assert [who(f)[1] for f in frames] == [
            r if r < 30 else r - 30 for r in range(first, first + 8)
        ]
        assert store._cache.size <= store._cache.limit


def test_frames_are_decoded_once_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREACT_FRAMES", str(tmp_path / "frames"))
    path = zipped(write_umi(tmp_path / "cup.zarr"))
    store = open_store(path, SPEC)
    store.gather(CAMERA, np.arange(40))
    (kept,) = (tmp_path / "frames").iterdir()
    assert kept.stat().st_size == sum(LENGTHS) * (SIZE * SIZE * 3 + 4)
    again = open_store(path, SPEC).reader(CAMERA)
    assert isinstance(again, FrameReader)

    def refuse(row: int) -> np.ndarray:
        raise AssertionError(f"frame {row} is decoded again")

    monkeypatch.setattr(again, "_decode_file", refuse)
    assert [who(f)[:2] for f in again.rows(np.array([3, 33]))] == [(0, 3), (1, 3)]
    with pytest.raises(AssertionError, match="frame 45 is decoded again"):
        again.rows(np.array([45]))
    # A frame that was cut off by a crash is decoded again; other content has another file.
    with kept.open("r+b") as file:
        file.seek(7 * (SIZE * SIZE * 3 + 4) + 100)
        file.write(b"\xff" * 50)
    third = open_store(path, SPEC)
    assert who(third.gather(CAMERA, np.array([7]))[0]) == (0, 7, 0)
    os.utime(path, ns=(0, 0))
    open_store(path, SPEC).reader(CAMERA)
    assert len(list((tmp_path / "frames").iterdir())) == 2


def test_no_room_for_decoded_frames(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREACT_FRAMES", "/proc/frames")
    with pytest.raises(UserError, match=r"51 decoded frames need .* /proc/frames .*make room"):
        open_store(folder, SPEC).reader(CAMERA)


def test_latents_of_masked_frames_lie_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREACT_CACHE", str(folder.parent / "cache"))
    plain = open_store(folder, SPEC)
    masked = MemberStore(open_store(folder, SPEC), mirror_mask=True)
    companions = {accompanied(s).companion for s in (plain, masked)}  # pyright: ignore
    assert len(companions) == 2
    assert companions == {accompanied(s).companion for s in (masked, plain)}  # pyright: ignore


def test_pusht_m_opens_its_plain_folder(tmp_path: Path) -> None:
    """Float pictures 0..255, no ".zarr" in the name, and a last chunk that is not full."""
    lengths = (20, 17)
    rows = sum(lengths)
    images = np.zeros((rows, 96, 96, 3), np.float32)
    images[:, :48] = (np.arange(rows) * 5.0)[:, None, None, None]
    images[:, 48:, :, 2] = 255.0
    group = zarr.open_group(str(tmp_path / "pusht_multitask"), mode="w", zarr_format=2)
    arrays = {
        "data/img": images,
        "data/state": np.arange(rows * 5, dtype=np.float32).reshape(rows, 5),
        "data/action": np.arange(rows * 2, dtype=np.float32).reshape(rows, 2),
        "meta/episode_ends": np.cumsum(lengths),
    }
    for name, values in arrays.items():
        group.create_array(
            name, data=values, chunks=(16, *values.shape[1:]), compressors=Blosc("zstd")
        )
    store = open_store(tmp_path / "pusht_multitask", find_task("pusht-m").spec)
    assert store.lengths.tolist() == list(lengths)
    last = store.read(1, 16, 17, ["img", "state", "action"])
    assert last["img"].dtype == np.uint8
    assert last["img"][0, 0, 0].tolist() == [180, 180, 180]  # 5 times row 36
    assert last["img"][0, 95, 0].tolist() == [0, 0, 255]
    assert last["state"][0].tolist() == [180.0, 181.0, 182.0, 183.0, 184.0]
    assert last["action"][0].tolist() == [72.0, 73.0]
