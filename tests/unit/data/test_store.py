"""Episode stores: what is written is read, from every container;
damage and misuse give one clear sentence.
"""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr
import zarr.storage._local
from numcodecs import Blosc

from foreact.data.stores.chunks import RowReader
from foreact.data.stores.store import StoreWriter, ZarrStore, open_store
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec

ACTION = ActionSpec(
    names=("x", "y"), units=("px", "px"), frame="world", mode="absolute", rate_hz=10.0
)
SPEC = StreamSpec(
    cameras={"img": (6, 8)}, fps=10.0, action=ACTION, state={"state": ("a", "b", "c")}
)
LENGTHS = (40, 70, 33)


def make_episode(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "img": rng.integers(0, 256, (length, 6, 8, 3), dtype=np.uint8),
        "state": rng.normal(size=(length, 3)).astype(np.float32),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
    }


EPISODES = [make_episode(n, i) for i, n in enumerate(LENGTHS)]


def write_store(path: Path) -> Path:
    with StoreWriter(path, SPEC, attrs={"made_by": "test"}) as writer:
        for i, episode in enumerate(EPISODES):
            writer.append(episode, seed=100 + i, goal=np.full(3, i / 2), text=f"push {i}")
    return path


def write_foreign(
    path: Path,
    *,
    zarr_format: Literal[2, 3] = 2,
    img_dtype: type = np.float32,
    **change: np.ndarray,
) -> Path:
    """A store as other projects write it: no spec, floats in 0..255, extra streams."""
    arrays = {
        f"data/{k}": np.concatenate([e[k] for e in EPISODES]) for k in ("img", "state", "action")
    }
    arrays["data/img"] = arrays["data/img"].astype(img_dtype)
    arrays["data/n_contacts"] = np.zeros((sum(LENGTHS), 1), np.float32)
    arrays["meta/episode_ends"] = np.cumsum(LENGTHS)
    arrays |= {k.replace("__", "/"): v for k, v in change.items()}
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    for name, values in arrays.items():
        options = {"compressors": Blosc("zstd")} if zarr_format == 2 else {}
        chunks = (16, *values.shape[1:])
        group.create_array(
            name, data=values, chunks=chunks, config={"write_empty_chunks": True}, **options
        )
    return path


def zipped(folder: Path) -> Path:
    target = folder.with_suffix(".zarr.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return target


def assert_same_content(store, spec_streams=("img", "state", "action")) -> None:
    assert store.lengths.tolist() == list(LENGTHS)
    for i, episode in enumerate(EPISODES):
        got = store.read(i, 3, 31, spec_streams)
        picked = np.array([[0, 0, 5], [LENGTHS[i] - 1, 17, 2]])
        for name in spec_streams:
            assert got[name].dtype == episode[name].dtype
            np.testing.assert_array_equal(got[name], episode[name][3:31])
            steps = store.gather(name, store.starts[i] + picked)
            np.testing.assert_array_equal(steps, episode[name][picked])


def in_memory(store: ZarrStore, stream: str) -> bool:
    reader = store.reader(stream)
    return isinstance(reader, RowReader) and reader.in_memory


@pytest.mark.parametrize("memory_limit", [0, 2**30], ids=["block-wise", "in memory"])
def test_what_is_written_is_read(tmp_path: Path, memory_limit: int) -> None:
    store = open_store(write_store(tmp_path / "s.zarr"), memory_limit=memory_limit)
    assert store.spec == SPEC
    assert store.native
    assert store.attrs == {"made_by": "test"}
    assert_same_content(store)
    assert in_memory(store, "img") == (memory_limit > 0)
    assert store.info("seed").tolist() == [100, 101, 102]
    assert store.info("goal").tolist() == [[0.0] * 3, [0.5] * 3, [1.0] * 3]
    assert store.info("text").tolist() == ["push 0", "push 1", "push 2"]


def test_memory_limit_holds_what_fits_and_the_cache_stays_bounded(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr")
    steps = sum(LENGTHS)
    store = open_store(path, memory_limit=steps * 3 * 4)
    store.gather("state", np.arange(steps))
    store.gather("action", np.arange(steps))
    assert in_memory(store, "state")
    assert not in_memory(store, "action")
    store = open_store(path, memory_limit=0)
    store._cache.limit = 2 * 32 * 6 * 8 * 3
    for row in range(0, steps, 7):
        store.gather("img", np.array([row]))
        assert store._cache.size <= store._cache.limit
    assert store._cache.size > 0


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("container", ["folder", "zip"])
@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_foreign_stores_open_as_they_are(
    tmp_path: Path, zarr_format: Literal[2, 3], container: str, memory_limit: int
) -> None:
    path = write_foreign(tmp_path / "pusht.zarr", zarr_format=zarr_format)
    if container == "zip":
        path = zipped(path)
    store = open_store(path, SPEC, memory_limit=memory_limit)
    assert not store.native
    assert_same_content(store)


def test_jpeg_xl_zip_opens(tmp_path: Path) -> None:
    """UMI's layout: a zip whose images are JPEG-XL, one frame a chunk."""
    codecs = pytest.importorskip("imagecodecs.numcodecs")
    codecs.register_codecs()
    flat = (
        np.repeat(np.arange(1, sum(LENGTHS) + 1, dtype=np.uint8)[:, None, None, None], 64, 1)
        .repeat(64, 2)
        .repeat(3, 3)
    )
    spec = StreamSpec(cameras={"img": (64, 64)}, fps=10.0)
    group = zarr.open_group(str(tmp_path / "umi.zarr"), mode="w", zarr_format=2)
    array = group.create_array(
        "data/img",
        shape=flat.shape,
        chunks=(1, 64, 64, 3),
        dtype="uint8",
        compressors=codecs.Jpegxl(level=99),
    )
    array[:] = flat
    group.create_array("meta/episode_ends", data=np.cumsum(LENGTHS))
    code = textwrap.dedent(
        f"""
        from foreact.data.stores.store import open_store
        from foreact.types import StreamSpec
        spec = StreamSpec(cameras={{"img": (64, 64)}}, fps=10.0)
        store = open_store({str(zipped(tmp_path / "umi.zarr"))!r}, spec)
        print(store.read(1, 5, 6, ["img"])["img"].mean())
        """
    )
    # Another process: the codecs are registered there by the store alone.
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert abs(float(run.stdout) - (LENGTHS[0] + 6)) < 2
    assert open_store(tmp_path / "umi.zarr", spec).lengths.tolist() == list(LENGTHS)


def test_opening_reads_no_stream(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr")
    for chunk in (path / "data" / "img").glob("[0-9]*"):
        chunk.unlink()
    store = open_store(path)
    assert store.read(0, 0, 5, ["state"])["state"].shape == (5, 3)


def test_a_store_survives_forking_and_pickling(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "pusht.zarr")
    store = open_store(zipped(path), SPEC, memory_limit=0)
    store.read(0, 0, 4, ["img"])
    assert_same_content(pickle.loads(pickle.dumps(store)))
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(5):
                    assert_same_content(store)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]


# --- writing --------------------------------------------------------------------------------------


def test_writer_resumes(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    for i, episode in enumerate(EPISODES):
        with StoreWriter(path, SPEC) as writer:
            assert writer.episodes == i
            writer.append(episode)
    assert_same_content(open_store(path))


def test_a_killed_writer_leaves_a_valid_store(tmp_path: Path) -> None:
    """Killed at any write, the store holds whole episodes, and a new
    writer completes it to the same content.
    """
    outcomes = set()
    for left in range(1, 100, 11):
        path = tmp_path / f"killed_{left}.zarr"
        StoreWriter(path, SPEC)
        pid = os.fork()
        if pid == 0:
            append_and_die(path, left)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL)
        with StoreWriter(path, SPEC) as writer:
            done = writer.episodes
        assert (done == len(EPISODES)) or status != 0
        if done:
            store = open_store(path)
            assert store.lengths.tolist() == list(LENGTHS[:done])
            for i in range(done):
                np.testing.assert_array_equal(
                    store.read(i, 0, LENGTHS[i], ["img"])["img"], EPISODES[i]["img"]
                )
        outcomes.add(done)
        with StoreWriter(path, SPEC) as writer:
            append_rest(writer)
        assert_same_content(open_store(path))
        assert open_store(path).info("text").tolist() == ["push 0", "push 1", "push 2"]
    assert len(outcomes) >= 3, f"the kills should hit different episodes, they hit {outcomes}"


def append_rest(writer: StoreWriter) -> None:
    for i in range(writer.episodes, len(EPISODES)):
        writer.append(EPISODES[i], seed=100 + i, goal=np.full(3, i / 2), text=f"push {i}")


def append_and_die(path: Path, left: int) -> None:
    """In a forked child: append until `left` files were written, then die as by kill -9."""
    real = zarr.storage._local._put

    def counted(*args, **kwargs):
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*args, **kwargs)

    try:
        zarr.storage._local._put = counted
        append_rest(StoreWriter(path, SPEC))
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_an_entry_without_its_number_does_not_count(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.zarr")
    ends = zarr.open_group(str(path), mode="r+")["meta/episode_ends"]
    assert isinstance(ends, zarr.Array)
    ends.resize((4,))  # what a kill between making room and writing leaves
    assert len(open_store(path)) == 3
    with StoreWriter(path, SPEC) as writer:
        assert writer.episodes == 3


def test_full_disk_is_one_sentence_and_the_store_stays_valid(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    big = StreamSpec(cameras={"img": (64, 64)}, fps=10.0)
    rng = np.random.default_rng(0)
    small = {"img": np.zeros((4, 64, 64, 3), np.uint8)}
    noise = {"img": rng.integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with StoreWriter(path, big) as writer:
        writer.append(small)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
            with pytest.raises(
                UserError, match=r"could not be written .* the 1 whole episodes before it are kept"
            ):
                writer.append(noise)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert open_store(path).lengths.tolist() == [4]
        writer.append(noise)
    store = open_store(path)
    assert store.lengths.tolist() == [4, 64]
    np.testing.assert_array_equal(store.read(1, 0, 64, ["img"])["img"], noise["img"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"img": np.zeros((5, 6, 9, 3), np.uint8)},
            r"'img' should be uint8 \(T, 6, 8, 3\), found uint8 \(5, 6, 9, 3\)",
        ),
        ({"img": np.zeros((5, 6, 8, 3), np.float32)}, "'img' should be uint8"),
        ({"action": np.zeros((5, 3))}, r"'action' should be float32 \(T, 2\)"),
        ({"state": np.zeros((4, 3))}, "one length"),
        (
            {"action": np.array([[0, 0]] * 3 + [[0, np.nan]] + [[0, 0]])},
            "found nan at step 3, dim 1",
        ),
        ({"other": np.zeros((5, 1))}, r"should have the streams \['action', 'img', 'state'\]"),
    ],
)
def test_an_episode_that_contradicts_the_spec_is_refused(
    tmp_path: Path, change: dict, sentence: str
) -> None:
    with StoreWriter(tmp_path / "s.zarr", SPEC) as writer:
        with pytest.raises(UserError, match=sentence):
            writer.append(make_episode(5) | change)
        assert writer.episodes == 0
        writer.append(make_episode(5))
    assert open_store(tmp_path / "s.zarr").lengths.tolist() == [5]


def test_an_episode_without_steps_is_refused(tmp_path: Path) -> None:
    with (
        StoreWriter(tmp_path / "s.zarr", SPEC) as writer,
        pytest.raises(UserError, match="at least 1 step"),
    ):
        writer.append(make_episode(0))


def test_info_must_stay_the_same(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s.zarr", SPEC) as writer:
        writer.append(make_episode(5), seed=1)
        for info in ({}, {"seed": 1, "noise": 0.1}):
            with pytest.raises(UserError, match=r"Every episode .* carries \['seed'\]"):
                writer.append(make_episode(5), **info)
        with pytest.raises(UserError, match="should have shape"):
            writer.append(make_episode(5), seed=np.arange(2))
        assert writer.episodes == 1


def test_text_is_required_where_the_spec_says_so(tmp_path: Path) -> None:
    spec = StreamSpec(cameras={}, fps=10.0, action=ACTION, has_text=True)
    with StoreWriter(tmp_path / "s.zarr", spec) as writer:
        with pytest.raises(UserError, match="text"):
            writer.append({"action": np.zeros((3, 2))})
        writer.append({"action": np.zeros((3, 2))}, text="an instruction")
        writer.append(
            {"action": np.zeros((3, 2))}, text="a very much longer instruction than the first"
        )
    assert open_store(tmp_path / "s.zarr").info("text")[1].endswith("than the first")


def test_writer_refuses_other_peoples_paths(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not an episode store"):
        StoreWriter(tmp_path / "folder", SPEC)
    assert (tmp_path / "folder" / "thesis.txt").exists()
    with pytest.raises(UserError, match="another make"):
        StoreWriter(write_foreign(tmp_path / "foreign.zarr"), SPEC)
    with pytest.raises(UserError, match="written as folders"):
        StoreWriter(tmp_path / "s.zarr.zip", SPEC)
    other = StreamSpec(cameras={"img": (6, 8)}, fps=20.0, action=ACTION, state=SPEC.state)
    with pytest.raises(UserError, match=r"disagree on 'fps'.* 10.0.* 20.0"):
        StoreWriter(write_store(tmp_path / "s.zarr"), other)


# --- bad stores -----------------------------------------------------------------------------------


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no store at"):
        open_store(tmp_path / "none.zarr", SPEC)
    (tmp_path / "text.zarr.zip").write_text("not a zip")
    (tmp_path / "folder").mkdir()
    zarr.open_group(str(tmp_path / "empty.zarr"), mode="w")
    for name in ("text.zarr.zip", "folder", "empty.zarr"):
        with pytest.raises(UserError, match="replay-buffer layout"):
            open_store(tmp_path / name, SPEC)


def test_a_spec_is_needed_and_must_agree(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say what its streams mean"):
        open_store(write_foreign(tmp_path / "f.zarr"))
    other = StreamSpec(cameras={"img": (6, 8)}, fps=20.0, action=ACTION, state=SPEC.state)
    with pytest.raises(UserError, match="disagree on 'fps'"):
        open_store(write_store(tmp_path / "s.zarr"), other)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"meta__episode_ends": np.array([40, 40, 143])},
            "should increase, but entry 1 is 40 after 40",
        ),
        ({"meta__episode_ends": np.array([0, 40, 143])}, "should increase, but entry 0 is 0"),
        (
            {"meta__episode_ends": np.array([40, 110, 200])},
            "has 143 steps and meta/episode_ends says 200",
        ),
        (
            {"meta__episode_ends": np.array([40, 110])},
            "has 143 steps and meta/episode_ends says 110",
        ),
        ({"meta__episode_ends": np.array([40.0, 143.0])}, "should be integers"),
        (
            {"data__action": np.zeros((143, 3), np.float32)},
            r"'action' .* should be float32 \(N, 2\)",
        ),
        (
            {"data__img": np.zeros((143, 3, 6, 8), np.uint8)},
            r"'img' .* should be uint8 \(N, 6, 8, 3\)",
        ),
        ({"data__img": np.zeros((143, 6, 8, 3), np.int64)}, "'img' .* should be uint8"),
    ],
)
def test_contradictions_are_found_on_opening(tmp_path: Path, change: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_store(write_foreign(tmp_path / "f.zarr", **change), SPEC)


def test_missing_stream_names_what_is_there(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "f.zarr")
    shutil.rmtree(path / "data" / "action")
    with pytest.raises(
        UserError, match=r"no stream 'action'; it has \['img', 'n_contacts', 'state'\]"
    ):
        open_store(path, SPEC)


@pytest.mark.parametrize("memory_limit", [0, 2**30])
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_truncated_chunks_are_errors_not_zeros(
    tmp_path: Path, memory_limit: int, damage: str
) -> None:
    path = write_store(tmp_path / "s.zarr")
    chunk = path / "data" / "img" / "1.0.0.0"
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:50])
    store = open_store(path, memory_limit=memory_limit)
    with pytest.raises(
        UserError, match="is truncated" if damage == "missing" else "cannot be decoded"
    ):
        store.read(0, 30, 40, ["img"])


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_chunks_left_out_on_purpose_can_be_filled(tmp_path: Path, memory_limit: int) -> None:
    path = write_foreign(tmp_path / "f.zarr", zarr_format=3)
    (path / "data" / "action" / "c" / "0" / "0").unlink()
    with pytest.raises(UserError, match="--fill-missing"):
        open_store(path, SPEC, memory_limit=memory_limit).read(0, 0, 20, ["action"])
    got = open_store(path, SPEC, memory_limit=memory_limit, fill_missing=True).read(
        0, 0, 20, ["action"]
    )["action"]
    assert not got[:16].any()
    np.testing.assert_array_equal(got[16:], EPISODES[0]["action"][16:20])


@pytest.mark.parametrize("images", [np.full((143, 6, 8, 3), 300.0), np.full((143, 6, 8, 3), -1.0)])
def test_float_images_out_of_range(tmp_path: Path, images: np.ndarray) -> None:
    store = open_store(
        write_foreign(tmp_path / "f.zarr", data__img=images.astype(np.float32)), SPEC
    )
    with pytest.raises(UserError, match=r"should hold images in 0\.\.255"):
        store.read(0, 0, 5, ["img"])


def test_float_images_in_unit_range_are_not_silently_black(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((143, 6, 8, 3), dtype=np.float32)
    store = open_store(write_foreign(tmp_path / "f.zarr", data__img=images), SPEC)
    with pytest.raises(UserError, match=r"should hold images in 0\.\.255"):
        store.read(0, 0, 5, ["img"])


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    store = open_store(write_store(tmp_path / "s.zarr"))
    with pytest.raises(UserError, match=r"episodes 0\.\.2; 3 was asked for"):
        store.read(3, 0, 1, ["img"])
    with pytest.raises(UserError, match=r"steps 0\.\.40; steps 0\.\.41 were asked for"):
        store.read(0, 0, 41, ["img"])
    with pytest.raises(UserError, match="no stream 'depth'"):
        store.read(0, 0, 1, ["depth"])
    with pytest.raises(
        UserError, match=r"no 'noise' per episode; it has \['goal', 'seed', 'text'\]"
    ):
        store.info("noise")
