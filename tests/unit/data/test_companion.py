"""What is derived from data that are not written to lies in the cache."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from foreact.data.stores.companion import AccompaniedStore, accompanied
from foreact.data.stores.derived import write_stream
from foreact.data.stores.store import open_store
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError
from foreact.types import StreamSpec


def zipped(folder: Path, *, level: int = 7) -> Path:
    spec = StreamSpec(cameras={"cam": (4, 4)}, fps=10.0)
    with StoreWriter(folder / "d.zarr", spec) as writer:
        for length in (3, 5):
            writer.append({"cam": np.full((length, 4, 4, 3), level, np.uint8)})
    path = folder / "d.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((folder / "d.zarr").rglob("*")):
            archive.write(file, str(file.relative_to(folder / "d.zarr")))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOREACT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_store_of_ours_gets_its_streams_itself(tmp_path: Path) -> None:
    zipped(tmp_path)
    store = open_store(tmp_path / "d.zarr")
    assert accompanied(store) is store


def test_a_zip_stays_as_it_is_and_its_streams_are_found_again(tmp_path: Path, cache: Path) -> None:
    path = zipped(tmp_path)
    before = path.read_bytes()
    store = accompanied(open_store(path))
    assert isinstance(store, AccompaniedStore)
    assert not cache.exists()  # nothing is made before it is needed
    codes = np.arange(8, dtype=np.uint16).reshape(8, 1, 1)
    write_stream(store.make_companion(), "tokens_cam", codes, attrs={"tokenizer": "sha256:1"})
    store.refresh()
    moved = path.rename(tmp_path / "moved.zip")
    again = accompanied(open_store(moved))
    for one in (store, again):
        assert one.has("tokens_cam")
        assert one.tokenizer_hash("tokens_cam") == "sha256:1"
        np.testing.assert_array_equal(one.all_rows("tokens_cam"), codes)
    assert again.read(1, 0, 2, ["cam"])["cam"].shape == (2, 4, 4, 3)
    assert moved.read_bytes() == before


def test_other_content_has_another_companion(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = accompanied(open_store(zipped(tmp_path / "a")))
    other = accompanied(open_store(zipped(tmp_path / "b", level=8)))
    assert isinstance(one, AccompaniedStore)
    assert isinstance(other, AccompaniedStore)
    assert one.companion != other.companion


def test_a_damaged_companion_is_made_anew(tmp_path: Path) -> None:
    path = zipped(tmp_path)
    store = accompanied(open_store(path))
    assert isinstance(store, AccompaniedStore)
    (store.make_companion() / "meta" / "episode_ends" / ".zarray").write_text("{")
    again = accompanied(open_store(path))
    assert isinstance(again, AccompaniedStore)
    assert not again.has("tokens_cam")
    codes = np.arange(8, dtype=np.uint16).reshape(8, 1, 1)
    write_stream(again.make_companion(), "tokens_cam", codes, attrs={"tokenizer": "sha256:1"})
    again.refresh()
    np.testing.assert_array_equal(again.all_rows("tokens_cam"), codes)


def test_a_companion_without_streams_is_kept(tmp_path: Path) -> None:
    path = zipped(tmp_path)
    store = accompanied(open_store(path))
    assert isinstance(store, AccompaniedStore)
    (store.make_companion() / "note").touch()
    again = accompanied(open_store(path))
    assert isinstance(again, AccompaniedStore)
    assert (again.make_companion() / "note").exists()


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOREACT_CACHE", str(tmp_path / "file"))
    store = accompanied(open_store(zipped(tmp_path)))
    assert isinstance(store, AccompaniedStore)
    with pytest.raises(UserError, match="name another folder with the variable FOREACT_CACHE"):
        store.make_companion()
