"""Stores packed as one file and unpacked whole, or not at all."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from support.umi_files import SIZE, who, write_umi, zipped

from foreact.cli import main
from foreact.data.stores.store import open_store
from foreact.released import packed_stores
from foreact.released.packed_stores import pack_store, unpack_store
from foreact.tasks.umi import umi_spec

frame = pytest.importorskip("lz4.frame")
Refused = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_umi(tmp_path / "cup.zarr", (6, 5))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def packed(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(frame.compress(raw.getvalue()))
    return path


def file(name: str, data: bytes = b"{}") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), data


@pytest.mark.parametrize("top", [None, "", "dataset.zarr/"], ids=["folder", "zip", "nested zip"])
def test_what_is_packed_comes_back(store: Path, tmp_path: Path, top: str | None) -> None:
    source = store if top is None else zipped(store, top)
    (store / "._0.0.0.0").write_bytes(b"of a Mac")
    main(f"data pack {source} --out {tmp_path}/one.zarr.tar.lz4".split())
    main(f"data unpack {tmp_path}/one.zarr.tar.lz4 --to {tmp_path}/memory/sets".split())
    (store / "._0.0.0.0").unlink()
    back = tmp_path / "memory/sets/one.zarr"
    assert contents(back) == contents(store)
    assert [p.name for p in back.parent.iterdir()] == ["one.zarr"]
    frames = open_store(back, umi_spec(size=SIZE)).gather("camera0_rgb", np.array([8]))
    assert who(frames[0]) == (1, 2, 0)


def test_tar_and_lz4_read_it_and_it_is_the_same_every_time(store: Path, tmp_path: Path) -> None:
    one = pack_store(store, tmp_path / "cup.zarr.tar.lz4", progress=False)
    os.utime(store / ".zgroup")
    two = pack_store(store, tmp_path / "b" / "cup.zarr.tar.lz4", progress=False)
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(frame.decompress(one.read_bytes()))) as archive:
        archive.extractall(tmp_path / "plain", filter="data")
    assert contents(tmp_path / "plain/cup.zarr") == contents(store)


def test_an_archive_of_tar_and_lz4_unpacks(store: Path, tmp_path: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        archive.add(store, "cup.zarr")
    path = tmp_path / "cup.zarr.tar.lz4"
    path.write_bytes(frame.compress(raw.getvalue(), store_size=False))
    assert contents(unpack_store(path, tmp_path / "to", progress=False)) == contents(store)


def test_packing_refuses(store: Path, tmp_path: Path, refused: Refused) -> None:
    assert "NAME.zarr.tar.lz4" in refused("data", "pack", store, "--out", "cup.tar.gz")
    assert "no store at" in refused("data", "pack", "none.zarr", "--out", "x.zarr.tar.lz4")
    (tmp_path / "empty").mkdir()
    assert "not a zarr store" in refused("data", "pack", "empty", "--out", "x.zarr.tar.lz4")
    (tmp_path / "x.zarr.tar.lz4").write_bytes(b"old")
    assert "exists; remove it" in refused("data", "pack", store, "--out", "x.zarr.tar.lz4")
    (store / "link").symlink_to("/etc/hostname")
    assert "is a link" in refused("data", "pack", store, "--out", "y.zarr.tar.lz4")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("../out.zarr/.zgroup", "outside its folder"),
        ("/tmp/out.zarr/.zgroup", "outside its folder"),
        ("cup.zarr/../../.zgroup", "outside its folder"),
        ("cup.zarr/.zgroup/x", "twice or in an impossible place"),
        ("other.zarr/.zgroup", "should hold one zarr store"),
    ],
)
def test_unsafe_archives(
    tmp_path: Path,
    refused: Refused,
    name: str,
    sentence: str,
) -> None:
    packed(tmp_path / "a.zarr.tar.lz4", file("cup.zarr/.zgroup"), file(name))
    said = refused("data", "unpack", "a.zarr.tar.lz4", "--to", "to", may_begin=True)
    assert sentence in said
    assert not (tmp_path / "to").exists()


def test_links_are_refused(tmp_path: Path, refused: Refused) -> None:
    info = tarfile.TarInfo("cup.zarr/.zgroup")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
    packed(tmp_path / "a.zarr.tar.lz4", (info, b""))
    said = refused("data", "unpack", "a.zarr.tar.lz4", "--to", "to", may_begin=True)
    assert "is a link, a device or sparse" in said


def test_a_packed_store_is_not_read_as_it_is(store: Path, tmp_path: Path, refused: Refused) -> None:
    path = pack_store(store, tmp_path / "cup.zarr.tar.lz4", progress=False)
    said = refused("data", "check", "--store", path, "--task", "umi")
    assert "is a packed store; extract it with `foreact data unpack" in said


def test_a_folder_that_is_no_store(tmp_path: Path, refused: Refused) -> None:
    packed(tmp_path / "a.zarr.tar.lz4", file("photos/a.jpg"))
    said = refused("data", "unpack", "a.zarr.tar.lz4", "--to", "to", may_begin=True)
    assert "should hold one zarr store, found ['photos']" in said


@pytest.mark.parametrize("damage", ["cut", "flip", "no frame", "empty"])
def test_damaged_archives_leave_nothing(
    store: Path,
    tmp_path: Path,
    refused: Refused,
    damage: str,
) -> None:
    path = pack_store(store, tmp_path / "cup.zarr.tar.lz4", progress=False)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 16
    changed = {"cut": data[:-20], "flip": data, "no frame": b"tar" * 99, "empty": b""}
    path.write_bytes(changed[damage])
    said = refused("data", "unpack", path, "--to", "to", may_begin=True)
    assert "cup.zarr.tar.lz4 is" in said
    assert not (tmp_path / "to").exists()


def test_what_is_there_is_not_replaced(
    store: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    path = pack_store(store, tmp_path / "a" / "cup.zarr.tar.lz4", progress=False)
    said = refused("data", "unpack", path, "--to", tmp_path, may_begin=True)
    assert "cup.zarr exists; remove it" in said


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_room_is_looked_for_before(
    store: Path,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = pack_store(store, tmp_path / "a" / "cup.zarr.tar.lz4", progress=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(100, 0, 100))
    assert "has 100 bytes free, and the store needs" in refused(
        "data", "unpack", path, "--to", "to/deep"
    )


@pytest.mark.parametrize("what", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_stopped_half_way_nothing_passes_for_complete(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: BaseException
) -> None:
    path = pack_store(store, tmp_path / "a" / "cup.zarr.tar.lz4", progress=False)
    whole = packed_stores.extract

    def stopped(*args: object, **options: object) -> None:
        whole(*args, **options)  # pyright: ignore
        raise what

    monkeypatch.setattr(packed_stores, "extract", stopped)
    with pytest.raises(BaseException, match=r"make room|^$"):
        unpack_store(path, tmp_path / "to", progress=False)
    assert not (tmp_path / "to").exists()
    monkeypatch.undo()
    assert unpack_store(path, tmp_path / "to", progress=False).is_dir()
