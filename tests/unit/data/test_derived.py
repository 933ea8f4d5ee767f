"""Derived streams: the same rows whoever writes which shard, in
whatever order, killed at whatever moment.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreact.data.stores.derived import DerivedStream, Shard, open_stream, write_stream
from foreact.data.stores.store import StoreWriter, open_store
from foreact.errors import UserError
from foreact.types import StreamSpec

SPEC = StreamSpec(cameras={"img": (4, 4)}, fps=10.0)
LENGTHS = (40, 70, 33)
TOTAL = sum(LENGTHS)
CHUNK = 8
SHAPE = (2, 3)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreact.data.stores.layout.CHUNK_BYTES", CHUNK * 2 * int(np.prod(SHAPE)))


def write_store(path: Path, lengths: tuple[int, ...] = LENGTHS) -> Path:
    with StoreWriter(path, SPEC) as writer:
        for length in lengths:
            writer.append({"img": np.zeros((length, 4, 4, 3), np.uint8)})
    return path


def truth(start: int, stop: int, value: int = 0) -> np.ndarray:
    """Every number says which row it comes from."""
    rows = np.arange(start, stop, dtype=np.uint16)[:, None, None]
    return np.broadcast_to(rows * 7 + value, (stop - start, *SHAPE)).copy()


def begin(path: Path, tokenizer: str = "h", **changes: object) -> DerivedStream:
    given: dict = {"shape": SHAPE, "dtype": np.uint16, "attrs": {"tokenizer": tokenizer}, **changes}
    return open_stream(path, "tokens_img", **given)


def fill(stream: DerivedStream, shards: list[Shard], value: int = 0) -> None:
    for shard in shards:
        stream.write(shard, truth(shard.start, shard.stop, value))


def stored(path: Path) -> np.ndarray:
    """The stream as readers get it."""
    return open_store(path).gather("tokens_img", np.arange(TOTAL))


def entries(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "data").iterdir() if p.is_dir())


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("empty") / "s.zarr")


@pytest.fixture
def path(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty, tmp_path / "s.zarr"))


# --- one process ----------------------------------------------------------------------------------


def test_shards_are_whole_chunks_and_cover_every_row_once(path: Path) -> None:
    stream = begin(path)
    assert stream.chunk == CHUNK
    for steps, size in ((1, 8), (8, 8), (9, 16), (40, 40), (1000, 1000)):
        shards = stream.shards(steps)
        assert [s.index for s in shards] == list(range(-(-TOTAL // size)))
        assert all(s.start % CHUNK == 0 for s in shards)
        assert [row for s in shards for row in range(s.start, s.stop)] == list(range(TOTAL))


def test_readers_see_the_stream_once_it_is_finished(path: Path) -> None:
    stream = begin(path)
    fill(stream, stream.shards(16)[::-1])
    with pytest.raises(UserError, match="no stream 'tokens_img'"):
        stored(path)
    stream.finish()
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL))
    assert stored(path).dtype == np.uint16
    assert entries(path) == ["img", "tokens_img"]
    assert not (path / "data/tokens_img/done").exists()


def test_a_finished_stream_leaves_nothing_to_do(path: Path) -> None:
    write_stream(path, "tokens_img", truth(0, TOTAL), attrs={"tokenizer": "h"})
    stream = begin(path)
    assert stream.finished
    assert stream.missing(8) == []
    stream.finish()
    with pytest.raises(UserError, match="whole already"):
        stream.write(Shard(0, 0, 8), truth(0, 8))
    assert entries(path) == ["img", "tokens_img"]


def test_an_unfinished_stream_is_refused_with_what_it_lacks(path: Path) -> None:
    stream = begin(path)
    shards = stream.shards(16)
    fill(stream, [s for s in shards if s.index not in (2, 5)])
    with pytest.raises(UserError, match="lacks 32 of 143 rows, the first at 32; run again"):
        stream.finish()
    assert [s.index for s in begin(path).missing(16)] == [2, 5]
    fill(stream, [shards[2], shards[5]])
    stream.finish()
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL))


def test_shards_of_another_size_keep_what_they_cover(path: Path) -> None:
    stream = begin(path)
    fill(stream, stream.shards(16)[:3])  # rows 0..48
    assert [s.start for s in stream.missing(8)] == list(range(48, TOTAL, 8))
    assert [s.start for s in stream.missing(40)] == [40, 80, 120]


def test_rows_that_do_not_fit_are_refused(path: Path) -> None:
    stream = begin(path)
    shard = stream.shards(8)[1]
    for rows in (truth(8, 15), truth(8, 16).astype(np.int64), truth(8, 16)[:, :1]):
        with pytest.raises(UserError, match=r"Rows 8..16 .* should be uint16 \(8, 2, 3\), found"):
            stream.write(shard, rows)
    assert len(stream.missing(8)) == len(stream.shards(8))
    with pytest.raises(UserError, match="should have 143 rows, one per step, found 142"):
        write_stream(path, "tokens_img", truth(1, TOTAL), attrs={})


def test_rows_of_zeros_are_written_too(path: Path) -> None:
    write_stream(path, "tokens_img", np.zeros((TOTAL, *SHAPE), np.uint16), attrs={})
    assert len(list((path / "data" / "tokens_img").glob("*.0.0"))) == -(-TOTAL // CHUNK)
    assert not stored(path).any()


def test_only_folders_take_streams(path: Path) -> None:
    target = path.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in path.rglob("*"):
            archive.write(file, file.relative_to(path))
    with pytest.raises(UserError, match="Only a store that is a folder"):
        begin(target)


# --- other tokenizers, growing stores -------------------------------------------------------------


def test_another_tokenizer_replaces_the_stream_at_the_end(path: Path) -> None:
    write_stream(path, "tokens_img", truth(0, TOTAL), attrs={"tokenizer": "old"})
    stream = begin(path, "new")
    fill(stream, stream.shards(64), value=1)
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL))
    stream.finish()
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL, value=1))
    assert entries(path) == ["img", "tokens_img"]


def test_work_for_two_tokenizers_does_not_mix(path: Path) -> None:
    one, two = begin(path, "one"), begin(path, "two")
    fill(one, one.shards(64)[:1])
    fill(two, two.shards(64)[1:], value=1)
    assert [s.index for s in begin(path, "one").missing(64)] == [1, 2]
    assert [s.index for s in begin(path, "two").missing(64)] == [0]
    assert len(begin(path, "one", shape=(2, 4)).missing(64)) > 0
    fill(two, two.shards(64)[:1], value=1)
    two.finish()
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL, value=1))
    assert entries(path) == ["img", "tokens_img"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_stream_follows_a_store_that_grew(tmp_path: Path, finished: bool) -> None:
    path = write_store(tmp_path / "s.zarr", LENGTHS[:2])  # 110 rows: the last chunk is not full
    stream = begin(path)
    fill(stream, stream.shards(8))
    if finished:
        stream.finish()
    write_store(path, LENGTHS[2:])
    assert not open_store(path).has("tokens_img")
    grown = begin(path)
    assert [s.start for s in grown.missing(8)] == [104, 112, 120, 128, 136]
    fill(grown, grown.missing(8))
    grown.finish()
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL))
    assert entries(path) == ["img", "tokens_img"]


def test_a_store_that_grows_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr", LENGTHS[:2])
    stream = begin(path)
    fill(stream, stream.shards(64))
    write_store(path, LENGTHS[2:])
    with pytest.raises(
        UserError, match="grew from 110 to 143 steps while stream 'tokens_img' was made"
    ):
        stream.finish()
    assert "tokens_img" not in entries(path)


def test_a_writer_that_comes_too_late_does_no_harm(path: Path) -> None:
    late, stream = begin(path), begin(path)
    fill(stream, stream.shards(64))
    stream.finish()
    fill(late, late.shards(64)[:1])  # to a folder that is no more
    assert late.missing(8) == []
    late.finish()  # the one in its place is the same, and stays
    assert begin(path).finished
    assert sorted(p.name for p in (path / "data").glob("tokens_img*")) == ["tokens_img"]
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL))
    write_store(path, (10,))
    grown = begin(path)
    assert 0 < len(grown.missing(8)) < len(grown.shards(8))


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_rows_are_noticed_and_made_anew(path: Path, damage: str) -> None:
    stream = begin(path)
    shards = stream.shards(16)
    fill(stream, shards)
    chunk = stream.notes.parent / "5.0.0"  # rows 40..48, in shard 2
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-5])
    np.testing.assert_array_equal(stream.read(shards[1]), truth(16, 32))
    with pytest.raises(
        UserError, match=r"Rows 32..48 .*chunk '.*5.0.0' is missing or cut short\); run again"
    ):
        stream.read(shards[2])
    stream.discard(shards[2])
    assert [s.index for s in stream.missing(16)] == [2]
    fill(stream, stream.missing(16))
    stream.finish()
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL))


# --- many processes -------------------------------------------------------------------------------


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_division_of_the_work_and_any_cut_give_the_same_array(
    empty: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Several processes with shards of different sizes, each
    cut somewhere; then one that finishes.
    """
    path = tmp_path / "any.zarr"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(empty, path)
    for _ in range(data.draw(st.integers(0, 4), label="runs")):
        stream = begin(path)
        steps = data.draw(st.sampled_from([1, 8, 20, 64, 200]), label="steps")
        fill(
            stream,
            data.draw(st.lists(st.sampled_from(stream.shards(steps)), max_size=6), label="shards"),
        )
        undone = {s.start for s in stream.missing(1)}
        torn = [s for s in stream.shards(steps) if undone.issuperset(range(s.start, s.stop, CHUNK))]
        if torn and data.draw(st.booleans(), label="killed"):
            shard = data.draw(st.sampled_from(torn), label="in shard")
            stream._array[shard.start : shard.stop] = truth(
                shard.start, shard.stop, value=1
            )  # wrong, and no mark
    last = begin(path)
    fill(last, last.missing(data.draw(st.sampled_from([8, 48]), label="last steps")))
    last.finish()
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL))


WORKER = """
    import sys, time
    import numpy as np
    import foreact.data.stores.layout as layout
    from foreact.data.stores.derived import open_stream
    path, rank, count, pause = sys.argv[1], *map(float, sys.argv[2:])
    layout.CHUNK_BYTES = 8 * 2 * 6
    attrs = {"tokenizer": "h"}
    stream = open_stream(path, "tokens_img", shape=(2, 3), dtype=np.uint16, attrs=attrs)
    print("open", flush=True)
    for shard in stream.missing(8):
        if shard.index % count == rank:
            rows = np.arange(shard.start, shard.stop, dtype=np.uint16)[:, None, None]
            stream.write(shard, np.broadcast_to(rows * 7, (len(shard), 2, 3)))
            print(shard.index, flush=True)
            time.sleep(pause)
"""


def worker(path: Path, rank: int, count: int, pause: float = 0.0) -> subprocess.Popen:
    words = [sys.executable, "-c", textwrap.dedent(WORKER), path, rank, count, pause]
    return subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, text=True)


def test_kill_9_in_the_middle_loses_at_most_one_shard(path: Path) -> None:
    process = worker(path, 0, 1, pause=0.02)
    assert process.stdout is not None
    written = 0
    for line in process.stdout:
        written += line != "open\n"
        if written == 5:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    stream = begin(path)
    missing = stream.missing(8)
    assert 0 < len(missing) <= len(stream.shards(8)) - 5
    kept = {p.name: p.stat().st_mtime_ns for p in stream.notes.parent.glob("[0-4].0.0")}
    time.sleep(0.01)
    fill(stream, missing)
    assert kept == {p.name: p.stat().st_mtime_ns for p in stream.notes.parent.glob("[0-4].0.0")}
    stream.finish()
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL))


def test_processes_that_begin_at_the_same_moment_fill_one_stream(path: Path) -> None:
    processes = [worker(path, rank, 2) for rank in range(2)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    begin(path).finish()
    np.testing.assert_array_equal(stored(path), truth(0, TOTAL))
    assert entries(path) == ["img", "tokens_img"]
