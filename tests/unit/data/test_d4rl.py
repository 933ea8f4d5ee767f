"""Shards of V-D4RL: opened as they are, by our convention of time, in
bounded memory; bad ones are one sentence.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.d4rl_worlds import (
    ACTIONS,
    SIZE,
    shard_arrays,
    write_npz_episode,
    write_shard,
    write_shards,
)

from foreact.data import inspect
from foreact.data.formats import d4rl
from foreact.data.formats.d4rl import TOKENS, open_d4rl
from foreact.data.formats.d4rl_spec import resolve_spec
from foreact.data.formats.replay_buffer import import_d4rl, import_store
from foreact.data.stores import hdf5
from foreact.data.stores.opening import open_episodes
from foreact.data.stores.store import open_store
from foreact.data.windows.loader import WindowDataset, batches, ordered_batches
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec

OFFSETS = (-2, -1, 0, 1)
STREAMS = ("pixels", "action", "reward", TOKENS)
GZIP: dict[str, Any] = {"chunks": (4, 3, SIZE, SIZE), "compression": "gzip"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Episodes of 5 and 7 steps in one file, of 6 in another."""
    return write_shards(tmp_path / "cheetah_train" / "vq_latents")


def truth(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a shard says, by our convention."""
    first = arrays["step_type"] == 0
    last = np.append(first[1:], True)
    after = np.concatenate([arrays["action"][1:], arrays["action"][:1]])
    return {
        "pixels": np.moveaxis(arrays["observation"], 1, -1),
        "action": np.where(last[:, None], 0, after).astype(np.float32),
        "reward": np.where(first, 0, arrays["reward"]).astype(np.float32)[:, None],
        TOKENS: arrays["vae_latents"].reshape(len(first), 2, 2),
    }


def test_steps_hold_the_action_after_their_frame_and_the_reward_that_came_with_it(
    tmp_path: Path,
) -> None:
    arrays = shard_arrays((3, 2))
    store = open_d4rl(write_shard(tmp_path / "walker.hdf5", arrays))
    assert store.lengths.tolist() == [3, 2]
    first, second = (store.read(e, 0, int(n), STREAMS) for e, n in enumerate(store.lengths))
    np.testing.assert_array_equal(first["action"], [*arrays["action"][1:3], np.zeros(ACTIONS)])
    np.testing.assert_array_equal(second["action"], [arrays["action"][4], np.zeros(ACTIONS)])
    assert first["reward"].tolist() == [[0.0], [1.5], [2.5]]
    assert second["reward"].tolist() == [[0.0], [4.5]]
    np.testing.assert_array_equal(second["pixels"][1], np.moveaxis(arrays["observation"][4], 0, -1))
    assert first[TOKENS].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert [first[name].dtype for name in STREAMS] == [np.uint8, np.float32, np.float32, np.uint16]


@given(
    files=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=3),
    layout=st.sampled_from(
        [{}, {"chunks": (2, 1, 5, 7)}, GZIP, {"chunks": (100, 3, 4, 4), "compression": "lzf"}]
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_any_rows_of_any_layout_are_those_of_the_arrays(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[int]],
    layout: dict[str, Any],
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("walker")
    arrays = [shard_arrays(lengths, seed=seed + i) for i, lengths in enumerate(files)]
    for number, shard in enumerate(arrays):
        fitting = {
            k: (min(v[0], len(shard["reward"])), *v[1:]) if k == "chunks" else v
            for k, v in layout.items()
        }
        write_shard(folder / f"{number}.hdf5", shard, **fitting)
    store = open_d4rl(folder, fps=20.0)
    assert store.lengths.tolist() == [n for lengths in files for n in lengths]
    assert store.starts.tolist() == [0, *np.cumsum(store.lengths)[:-1]]
    expected = [truth(shard) for shard in arrays]
    rows = np.random.default_rng(seed).integers(0, int(store.lengths.sum()), (2, 3))
    for name in STREAMS:
        whole = np.concatenate([shard[name] for shard in expected])
        np.testing.assert_array_equal(store.gather(name, rows), whole[rows])
        assert store.read(0, 1, 1, [name])[name].shape == (0, *whole.shape[1:])


def test_windows_are_those_of_a_native_store_of_the_same_episodes(
    folder: Path, tmp_path: Path
) -> None:
    import_d4rl(folder, tmp_path / "native.zarr", progress=False)
    window = Window(
        video={"pixels": OFFSETS},
        tokens={"pixels": OFFSETS},
        rewards=(1,),
        actions=(0,),
        pad_before=2,
    )
    plain = Normalizer.fit({"action": np.eye(2, ACTIONS)}, "identity")
    shards, native = open_d4rl(folder), open_store(tmp_path / "native.zarr")
    ours, theirs = (WindowDataset(s, window, np.arange(3), plain) for s in (shards, native))
    assert len(ours) == len(theirs) == 4 + 6 + 5
    for a, b in zip(*(ordered_batches(d, batch_size=4) for d in (ours, theirs)), strict=True):
        assert a.tokens["pixels"].equal(b.tokens["pixels"])
        assert a.video["pixels"].equal(b.video["pixels"])
        assert a.actions is not None
        assert b.actions is not None
        assert a.actions.equal(b.actions)
        assert a.rewards is not None
        assert b.rewards is not None
        assert a.rewards.equal(b.rewards)
        assert a.valid["pixels"].equal(b.valid["pixels"])


def test_no_window_touches_two_episodes(folder: Path) -> None:
    store = open_d4rl(folder)
    number = np.repeat(np.arange(len(store)), store.lengths)  # episode of each row
    window = Window(tokens={"pixels": (-2, -1, 0, 1)}, rewards=(1,), pad_before=2)
    dataset = WindowDataset(store, window, np.arange(len(store)), None)
    codes = store.gather(TOKENS, np.arange(len(number)))
    for batch in ordered_batches(dataset, batch_size=1):
        assert batch.index is not None
        episode, step = batch.index[0].tolist()
        own, start = codes[number == episode], store.starts[episode]
        stack = [own[max(0, step + o)] for o in (-2, -1, 0, 1)]
        np.testing.assert_array_equal(batch.tokens["pixels"][0], stack)
        assert batch.rewards is not None
        assert (
            batch.rewards[0].tolist()
            == store.gather("reward", np.array([start + step + 1]))[0].tolist()
        )


@pytest.mark.parametrize("layout", [{}, GZIP])
def test_worker_processes_read_the_same(tmp_path: Path, layout: dict[str, Any]) -> None:
    write_shard(tmp_path / "walker.hdf5", shard_arrays((9, 8)), **layout)
    dataset = WindowDataset(
        open_d4rl(tmp_path), Window(video={"pixels": (0, 3)}), np.arange(2), None
    )
    dataset.batch(np.arange(3))  # the parent has its files open when it forks

    def first(workers: int) -> list[Any]:
        stream = batches(dataset, batch_size=3, seed=0, workers=workers)
        return [next(stream).video["pixels"] for _ in range(4)]

    assert all(a.equal(b) for a, b in zip(first(0), first(2), strict=True))


def test_a_spawned_process_opens_the_shards_anew(folder: Path) -> None:
    store = open_d4rl(folder, grid=(1, 4))
    rows = np.arange(18)
    expected = {name: store.gather(name, rows) for name in STREAMS}
    copy = pickle.loads(pickle.dumps(store))
    for name in STREAMS:
        np.testing.assert_array_equal(copy.gather(name, rows), expected[name])


def test_compressed_frames_stay_within_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = 4 * 3 * SIZE * SIZE
    monkeypatch.setattr(d4rl, "CACHE_LIMIT", 2 * block)
    caches = []
    monkeypatch.setattr(
        d4rl, "BlockCache", lambda limit: caches.append(hdf5.BlockCache(limit)) or caches[-1]
    )
    arrays = shard_arrays((40,))
    store = open_d4rl(write_shard(tmp_path / "walker.hdf5", arrays, **GZIP))
    rows = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(store.gather("pixels", rows), truth(arrays)["pixels"][rows])
    assert 0 < caches[0].size <= 2 * block


def test_contiguous_frames_are_read_past_the_library(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_d4rl(folder)
    monkeypatch.setattr(hdf5, "open_hdf5", lambda path: pytest.fail("the file was opened again"))
    assert store.gather("pixels", np.array([0, 17])).shape == (2, SIZE, SIZE, 3)


def test_the_spec_is_read_off_the_files(folder: Path) -> None:
    store = open_d4rl(folder)
    assert store.native
    assert store.spec.cameras == {"pixels": (SIZE, SIZE)}
    assert store.spec.fps == 50.0
    assert store.spec.has_reward
    assert store.spec.action is not None
    assert (store.spec.action.dim, store.spec.action.low) == (ACTIONS, (-1.0,) * ACTIONS)
    assert open_d4rl(folder, fps=7.0).spec.fps == 7.0


def test_a_task_says_what_the_streams_mean(folder: Path) -> None:
    own = open_d4rl(folder).spec
    action = ActionSpec(
        names=("thigh",), units=("unitless",), frame="joints", mode="absolute", rate_hz=50.0
    )
    six = ActionSpec(
        names=tuple("abcdef"),
        units=("unitless",) * 6,
        frame="joints",
        mode="absolute",
        rate_hz=50.0,
    )
    task = StreamSpec(cameras=own.cameras, fps=50.0, action=six, has_reward=True)
    assert open_d4rl(folder, spec=task).spec == task
    for other, sentence in (
        (
            StreamSpec(cameras={"pixels": (64, 64)}, fps=50.0, action=six, has_reward=True),
            "disagree on 'cameras'",
        ),
        (StreamSpec(cameras=own.cameras, fps=50.0, action=six), "disagree on 'has_reward'"),
        (
            StreamSpec(cameras=own.cameras, fps=50.0, action=action, has_reward=True),
            "actions of 6 dims, the task has 1",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            open_d4rl(folder, spec=other)
    assert open_d4rl(folder, spec=task, fps=50.0).spec == task
    with pytest.raises(UserError, match=r"disagree on 'fps': .* has 20\.0, the task has 50\.0"):
        open_d4rl(folder, spec=task, fps=20.0)


def test_codes_are_chosen_by_key_and_shaped_by_grid(tmp_path: Path) -> None:
    arrays = shard_arrays((4,), codes=6)
    arrays["dino_latents"] = arrays["vae_latents"][:, :4] + 1
    store = open_d4rl(write_shard(tmp_path / "walker.hdf5", arrays))
    assert not store.has(TOKENS)
    with pytest.raises(
        UserError, match=r"no stream 'tokens_pixels'.*'dino_latents', 'vae_latents'"
    ):
        store.gather(TOKENS, np.arange(2))
    assert open_d4rl(tmp_path, codes="dino_latents").gather(TOKENS, np.arange(4)).shape == (4, 2, 2)
    assert open_d4rl(tmp_path, codes="vae_latents", grid=(2, 3)).gather(
        TOKENS, np.arange(4)
    ).shape == (4, 2, 3)
    with pytest.raises(UserError, match=r"6 codes a frame .* no grid of 2 x 2"):
        open_d4rl(tmp_path, codes="vae_latents").gather(TOKENS, np.arange(4))
    with pytest.raises(UserError, match="holds no codes 'clip'"):
        open_d4rl(tmp_path, codes="clip")
    assert open_d4rl(tmp_path, codes="vae_latents").tokenizer_hash(TOKENS) is None


# --- bad input ------------------------------------------------------------------------------------


def without(key: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays.__delitem__(key)


def put(key: str, row: Any, value: Any) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays[key].__setitem__(row, value)


def change(
    key: str, make: Callable[[np.ndarray], np.ndarray]
) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays.__setitem__(key, make(arrays[key]))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without("step_type"), r"lacks \['step_type'\]; expected V-D4RL's arrays"),
        (without("observation"), r"lacks \['observation'\]"),
        (change("reward", lambda x: x[:-1]), "should have one length .*'reward': 11"),
        (change("vae_latents", lambda x: x[:-1]), "should have one length .*'vae_latents': 11"),
        (
            change("observation", lambda x: x[:, :1]),
            r"should be uint8 \(N, 3, H, W\), found uint8 \(12, 1, 12, 12\)",
        ),
        (change("observation", lambda x: x.astype(np.float32)), "should be uint8 .* found float32"),
        (change("observation", lambda x: np.moveaxis(x, 1, -1)), r"found uint8 \(12, 12, 12, 3\)"),
        (change("action", lambda x: x.astype("S4")), r"'action' of .* should be numbers \(N, A\)"),
        (
            change("reward", lambda x: np.stack([x, x], 1)),
            r"'reward' of .* should be numbers \(N,\)",
        ),
        (put("reward", 7, np.nan), r"'reward' of .* should be finite, found \[nan\] in row 7"),
        (put("action", (3, 2), np.inf), "'action' of .* should be finite, .* in row 3"),
        (put("step_type", 0, 1), "should begin with 0, the first step of an episode, found 1"),
        (put("step_type", 5, 1), r"a first step \(0\) after each last one \(2\), found 1 in row 5"),
        (
            put("step_type", 3, 7),
            r"should be \(N,\) of 0 \(first\), 1 \(mid\) and 2 \(last\), found .*7",
        ),
        (put("step_type", 3, np.nan), "of 0 .first., 1 .mid. and 2 .last., found .*nan"),
        (
            lambda arrays: arrays.update({k: v[:0] for k, v in arrays.items()}),
            "one length of at least 1 row",
        ),
    ],
)
def test_a_bad_shard_is_one_sentence_that_names_the_file(
    folder: Path, spoil: Callable[[dict[str, np.ndarray]], None], sentence: str
) -> None:
    arrays = shard_arrays((5, 7))
    spoil(arrays)
    bad = write_shard(folder / "1_random_vq_latents.hdf5", arrays)
    with pytest.raises(UserError, match=sentence) as error:
        open_d4rl(folder)
    assert str(bad) in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_of_a_first_row_mean_nothing(tmp_path: Path) -> None:
    arrays = shard_arrays((3, 3))
    arrays["reward"][3], arrays["action"][3] = np.nan, np.nan
    store = open_d4rl(write_shard(tmp_path / "walker.hdf5", arrays))
    np.testing.assert_array_equal(store.gather("reward", np.arange(6))[3], [0.0])
    np.testing.assert_array_equal(store.gather("action", np.arange(6))[2], np.zeros(ACTIONS))


@pytest.mark.parametrize("layout", [{}, GZIP])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.97])
def test_a_file_cut_short_does_not_open(folder: Path, layout: dict[str, Any], share: float) -> None:
    bad = write_shard(folder / "1_random_vq_latents.hdf5", shard_arrays((40,)), **layout)
    raw = bad.read_bytes()
    bad.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(UserError, match=r"1_random_vq_latents\.hdf5 is no whole HDF5 file"):
        open_d4rl(folder)


def test_a_file_that_loses_its_end_later_is_one_sentence(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "walker.hdf5", shard_arrays((40,)))
    store = open_d4rl(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 3)
    with pytest.raises(UserError, match=r"is cut short: it ends within row \d+ of 'observation'"):
        store.gather("pixels", np.arange(40))


def test_damaged_compressed_frames_are_one_sentence(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "walker.hdf5", shard_arrays((8,)), **GZIP)
    with h5py.File(path) as file:
        frames: Any = file["observation"]
        chunk = frames.id.get_chunk_info(1)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * 64)
    with pytest.raises(UserError, match=r"Rows 4\.\.8 of 'observation' in .* cannot be decoded"):
        open_d4rl(path).gather("pixels", np.arange(8))


@pytest.mark.parametrize(
    ("options", "sentence"), [({}, "was never written"), (GZIP, "has 1 of 3 chunks")]
)
def test_frames_that_were_never_written_do_not_open(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    arrays = shard_arrays((12,))
    shape = arrays.pop("observation").shape
    path = write_shard(tmp_path / "walker.hdf5", arrays)
    with h5py.File(path, "r+") as file:
        frames = file.create_dataset("observation", shape, np.uint8, **options)
        if options:
            frames[:4] = 1
    with pytest.raises(UserError, match=sentence):
        open_d4rl(path)


@pytest.mark.parametrize("key", ["reward", "vae_latents"])
@pytest.mark.parametrize(
    ("options", "sentence"), [({}, "was never written"), ({"chunks": True}, "has 0 of 1 chunks")]
)
def test_numbers_and_codes_that_were_never_written_are_not_zeros(
    tmp_path: Path, key: str, options: dict[str, Any], sentence: str
) -> None:
    arrays = shard_arrays((12,))
    shape = arrays.pop(key).shape
    path = write_shard(tmp_path / "walker.hdf5", arrays)
    with h5py.File(path, "r+") as file:
        file.create_dataset(key, shape, np.int64, **options)
    with pytest.raises(UserError, match=sentence):
        open_d4rl(path).gather(TOKENS, np.arange(1))


@pytest.mark.parametrize("layout", [{}, GZIP])
def test_bytes_that_make_no_sense_are_one_sentence(tmp_path: Path, layout: dict[str, Any]) -> None:
    whole = write_shard(tmp_path / "whole.hdf5", shard_arrays((8,)), **layout).read_bytes()
    rng, sentences = np.random.default_rng(0), []
    for trial in range(60):  # a name of its own each: the library remembers files that it has open
        spoilt = bytearray(whole)
        for place in rng.integers(0, 4096, 5):
            spoilt[place] = rng.integers(0, 256)
        path = tmp_path / f"walker_{trial}.hdf5"
        path.write_bytes(spoilt)
        try:
            store = open_d4rl(path)
            for name in STREAMS:
                store.gather(name, np.arange(int(store.lengths.sum())))
        except UserError as error:
            sentences.append(str(error))
    assert len(sentences) > 20
    assert all(f"{tmp_path}/walker_" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("value", "vocab", "limit"), [(-1, None, 65535), (65536, None, 65535), (1024, 1024, 1023)]
)
def test_codes_outside_the_codebook_are_refused_when_read(
    tmp_path: Path, value: int, vocab: int | None, limit: int
) -> None:
    arrays = shard_arrays((5,))
    arrays["vae_latents"][3, 1] = value
    store = open_d4rl(write_shard(tmp_path / "walker.hdf5", arrays), vocab=vocab)
    with pytest.raises(UserError, match=rf"should hold codes 0\.\.{limit}, found {value} in row 3"):
        store.gather(TOKENS, np.arange(2))


def test_shards_of_two_kinds_do_not_mix(tmp_path: Path) -> None:
    write_shard(tmp_path / "0_walker.hdf5", shard_arrays((4,)))
    write_shard(tmp_path / "1_walker.hdf5", shard_arrays((4,), size=8))
    with pytest.raises(UserError, match=r"frame size of .*0_walker.* and of .*1_walker.* differ"):
        open_d4rl(tmp_path)
    write_shard(tmp_path / "1_walker.hdf5", shard_arrays((4,), codes=9))
    with pytest.raises(UserError, match=r"4 codes a frame in .* and 9 in"):
        open_d4rl(tmp_path).gather(TOKENS, np.arange(2))


def test_paths_without_shards_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an empty folder"):
        open_d4rl(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no \.hdf5 or \.h5 file"):
        open_d4rl(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_d4rl(tmp_path / "nowhere")


def test_shards_are_found_as_a_mac_leaves_them_and_in_natural_order(tmp_path: Path) -> None:
    for name in ("10_walker.hdf5", "9_walker.H5", "2_walker.h5"):
        write_shard(tmp_path / name, shard_arrays((4,)))
        (tmp_path / f"._{name}").write_bytes(b"\x00\x05\x16\x07" + bytes(200))
    (tmp_path / ".DS_Store").touch()
    assert d4rl.is_d4rl(tmp_path)
    names = [file.name for file in open_d4rl(tmp_path).files]
    assert names == ["2_walker.h5", "9_walker.H5", "10_walker.hdf5"]


def test_npz_episodes_are_named_with_the_verb_that_reads_them(tmp_path: Path) -> None:
    root = tmp_path / "walker_walk"
    write_npz_episode(root / "a.npz", 6)
    (root / "._a.npz").write_bytes(bytes(200))
    for path in (root, root / "a.npz"):
        with pytest.raises(UserError, match=rf"`foreact data import-d4rl --root {path} --out"):
            open_episodes(path)
    import_store(root, tmp_path / "native.zarr", progress=False)
    assert open_store(tmp_path / "native.zarr").lengths.tolist() == [6]


def test_a_path_that_names_no_domain_needs_a_rate(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.hdf5", shard_arrays((4,)))
    with pytest.raises(UserError, match="how many steps a second"):
        open_d4rl(tmp_path / "a.hdf5")


def test_without_h5py_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r'pip install "foreact\[hdf5\]"'):
        open_d4rl(folder)


# --- looking and importing ------------------------------------------------------------------------


def test_shards_can_be_checked_described_and_shown(folder: Path, tmp_path: Path) -> None:
    report = inspect.check_store(folder, windows=5)
    assert report.ok
    assert "3 episodes, 18 steps" in str(report)
    stats = inspect.store_stats(folder)
    assert stats["reward"].max.tolist() == [11.5]
    written = inspect.show_store(folder, out_dir=tmp_path / "show", episodes=(0,), frames=2)
    assert [path.name for path in written] == ["pixels.png", "pixels_0.mp4"]


def test_a_path_gets_its_reader(folder: Path, tmp_path: Path) -> None:
    import_d4rl(folder, tmp_path / "native.zarr", progress=False)
    for path in (folder, folder / "0_expert_vq_latents.hdf5", tmp_path / "native.zarr"):
        store = open_episodes(path)
        assert store.native
        assert store.lengths[0] == 5
        assert store.has(TOKENS)


def test_an_import_holds_all_streams_and_where_each_episode_comes_from(
    folder: Path, tmp_path: Path
) -> None:
    assert import_d4rl(folder, tmp_path / "native.zarr", progress=False).episodes == 3
    store, shards = open_store(tmp_path / "native.zarr"), open_d4rl(folder)
    assert store.spec == shards.spec
    for name in STREAMS:
        np.testing.assert_array_equal(
            store.gather(name, np.arange(18)), shards.gather(name, np.arange(18))
        )
    assert store.info("grade").tolist() == ["expert", "expert", "random"]
    assert store.info("source").tolist() == ["0_expert_vq_latents.hdf5"] * 2 + [
        "1_random_vq_latents.hdf5"
    ]
    assert store.tokenizer_hash(TOKENS) is None


def test_an_import_that_was_stopped_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "native.zarr"
    read = d4rl.D4RLStore.read

    def dying(self: d4rl.D4RLStore, episode: int, *args: Any) -> dict[str, np.ndarray]:
        if episode == 2:
            raise KeyboardInterrupt
        return read(self, episode, *args)

    monkeypatch.setattr(d4rl.D4RLStore, "read", dying)
    with pytest.raises(KeyboardInterrupt):
        import_d4rl(folder, out, progress=False)
    assert not out.exists()
    assert len(open_store(tmp_path / ".native.zarr.unfinished")) == 2
    again = []
    monkeypatch.setattr(
        d4rl.D4RLStore, "read", lambda self, e, *args: again.append(e) or read(self, e, *args)
    )
    assert import_d4rl(folder, out, progress=False).episodes == 3
    assert again == [2]
    assert open_store(out).has(TOKENS)
    assert import_d4rl(folder, out, progress=False).episodes == 3
    assert again == [2]


def test_codes_outside_the_codebook_leave_nothing_half_imported(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"codes 0\.\.9"):
        import_d4rl(folder, tmp_path / "native.zarr", vocab=10, progress=False)
    assert not (tmp_path / "native.zarr").exists()


def test_npz_episodes_import_alike(tmp_path: Path) -> None:
    root = tmp_path / "walker_walk" / "medium_replay" / "64px"
    raw = write_npz_episode(root / "a-6.npz", 6)
    write_npz_episode(root / "b-3.npz", 3, seed=1)
    assert import_d4rl(root, tmp_path / "native.zarr", progress=False).episodes == 2
    store = open_store(tmp_path / "native.zarr")
    assert (store.spec.fps, store.spec.cameras) == (20.0, {"pixels": (8, 8)})
    assert store.info("grade").tolist() == ["medium_replay"] * 2
    episode = store.read(0, 0, 6, store.streams)
    np.testing.assert_array_equal(episode["pixels"], raw["image"])
    np.testing.assert_array_equal(episode["action"], [*raw["action"][1:], np.zeros(ACTIONS)])
    np.testing.assert_array_equal(episode["reward"][:, 0], [0.0, *raw["reward"][1:]])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda raw: raw.pop("action"), "lacks an array .*'action"),
        (lambda raw: raw.update(image=raw["image"][:-1]), "should hold image uint8"),
        (lambda raw: raw.update(reward=raw["reward"] * np.nan), "not finite"),
        (lambda raw: raw.update(reward=raw["reward"].astype(str)), "should hold .* reward"),
        (lambda raw: raw.update(action=raw["action"][:, :5]), "actions of 5 dims, not 6"),
        (
            lambda raw: raw.update(image=raw["image"][:, :4]),
            r"frames of \(4, 8\) pixels, not \(8, 8\)",
        ),
    ],
)
def test_a_bad_npz_episode_is_one_sentence(
    tmp_path: Path, spoil: Callable[[dict[str, np.ndarray]], None], sentence: str
) -> None:
    root = tmp_path / "walker_walk"
    write_npz_episode(root / "a.npz")
    raw: dict[str, Any] = write_npz_episode(root / "b.npz")
    spoil(raw)
    np.savez(root / "b.npz", **raw)
    with pytest.raises(UserError, match=sentence) as error:
        import_d4rl(root, tmp_path / "native.zarr", progress=False)
    assert "b.npz" in str(error.value)


def test_npz_episodes_have_no_codes(tmp_path: Path) -> None:
    write_npz_episode(tmp_path / "walker" / "a.npz")
    with pytest.raises(UserError, match="no codes; leave out codes, grid and vocab"):
        import_d4rl(tmp_path / "walker", tmp_path / "native.zarr", vocab=1024, progress=False)


def test_codes_of_any_grid_are_imported(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "walker.hdf5", shard_arrays((4,), codes=6))
    assert import_d4rl(path, tmp_path / "native.zarr", grid=(2, 3), progress=False).episodes == 1
    assert open_store(tmp_path / "native.zarr").gather(TOKENS, np.arange(4)).shape == (4, 2, 3)


def test_an_npz_episode_cut_short_is_one_sentence(tmp_path: Path) -> None:
    root = tmp_path / "walker_walk"
    write_npz_episode(root / "a.npz")
    raw = (root / "a.npz").read_bytes()
    (root / "b.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match=r"b\.npz is no whole \.npz file"):
        import_d4rl(root, tmp_path / "native.zarr", progress=False)


@pytest.mark.parametrize(
    ("path", "rate"),
    [
        ("walker_walk/random/64px/a.hdf5", 20.0),
        ("cheetah_train/vq_latents/a.hdf5", 50.0),
        ("Walker-expert.hdf5", 20.0),
        ("skywalker/hopper_hop/a.hdf5", None),
        ("skywalker/a.hdf5", None),
        ("walker/hopper_hop/a.hdf5", None),
        ("cheetahs/a.hdf5", None),
        ("humanoid/cheetah_run/a.hdf5", 50.0),
    ],
)
def test_the_rate_follows_whole_names_of_folders(path: str, rate: float | None) -> None:
    file = Path("/data") / path
    if rate is None:
        with pytest.raises(UserError, match="give --fps"):
            resolve_spec(file, (64, 64), 6, given=None, fps=None)
    else:
        assert resolve_spec(file, (64, 64), 6, given=None, fps=None).fps == rate


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 4), np.float32), ((4, 2, 2), np.int64), ((4, 2, 2), np.float64)]
)
def test_codes_as_floats_or_in_a_grid_are_codes(
    shape: tuple[int, ...], dtype: type, tmp_path: Path
) -> None:
    arrays = shard_arrays((4,))
    codes = arrays["vae_latents"]
    arrays["vae_latents"] = codes.reshape(shape).astype(dtype)
    path = write_shard(tmp_path / "walker.hdf5", arrays)
    account = import_d4rl(path, tmp_path / "native.zarr", progress=False)
    assert account.taken("codes") == 1
    stored = open_store(tmp_path / "native.zarr").gather(TOKENS, np.arange(4))
    np.testing.assert_array_equal(stored, codes.reshape(4, 2, 2))


def test_codes_that_lie_in_a_grid_have_no_other(tmp_path: Path) -> None:
    arrays = shard_arrays((4,), codes=6)
    arrays["vae_latents"] = arrays["vae_latents"].reshape(4, 2, 3)
    path = write_shard(tmp_path / "walker.hdf5", arrays)
    assert open_d4rl(path).gather(TOKENS, np.arange(4)).shape == (4, 2, 3)
    with pytest.raises(UserError, match="which lie as 2 x 3, fill no grid of 3 x 2"):
        open_d4rl(path, grid=(3, 2)).gather(TOKENS, np.arange(4))


def test_whole_numbers_at_first_are_codes_to_the_end(tmp_path: Path) -> None:
    arrays = shard_arrays((80,))
    arrays["vae_latents"] = arrays["vae_latents"].astype(np.float32)
    arrays["vae_latents"][70, 1] = 0.5
    path = write_shard(tmp_path / "walker.hdf5", arrays)
    with pytest.raises(UserError, match=r"should hold codes .*, found 0\.5 in row 70"):
        import_d4rl(path, tmp_path / "native.zarr", progress=False)
    assert not (tmp_path / "native.zarr").exists()


def test_arrays_without_a_place_are_counted(tmp_path: Path) -> None:
    arrays = {**shard_arrays((4,)), "physics": np.full((4, 9), 0.5)}
    path = write_shard(tmp_path / "walker.hdf5", arrays)
    account = import_d4rl(path, tmp_path / "native.zarr", progress=False)
    assert account.reasons("arrays") == "2 without a place in a store, such as discount"
    assert "arrays" in str(account)


def test_codes_of_two_kinds_are_chosen_or_refused(tmp_path: Path) -> None:
    arrays = shard_arrays((4,))
    arrays["dino_latents"] = arrays["vae_latents"] + 1
    path = write_shard(tmp_path / "walker.hdf5", arrays)
    with pytest.warns(UserWarning, match="which hold several kinds"):
        assert not open_d4rl(path).has(TOKENS)
    with (
        pytest.warns(UserWarning, match="No codes are taken"),
        pytest.raises(UserError, match="say which to take with --codes, or --codes none"),
    ):
        import_d4rl(path, tmp_path / "native.zarr", progress=False)
    account = import_d4rl(path, tmp_path / "native.zarr", codes="dino_latents", progress=False)
    assert account.reasons("codes") == "1 not asked for, such as vae_latents"
    account = import_d4rl(path, tmp_path / "bare.zarr", codes="none", progress=False)
    assert account.left_out("codes") == 2
    assert not open_store(tmp_path / "bare.zarr").has(TOKENS)


def test_codes_of_some_shards_only_are_not_dropped_silently(tmp_path: Path) -> None:
    write_shard(tmp_path / "walker/a.hdf5", shard_arrays((4,)))
    write_shard(tmp_path / "walker/b.hdf5", shard_arrays((4,), codes=None))
    with pytest.warns(UserWarning, match=r"not all of them one \('vae_latents' in 1\)"):
        assert not open_d4rl(tmp_path / "walker").has(TOKENS)
