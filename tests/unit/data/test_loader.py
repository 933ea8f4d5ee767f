"""Batches: what they hold, and that order and augmentation depend on (seed, position) alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from foreact.data.stores.derived import write_stream
from foreact.data.stores.store import StoreWriter, ZarrStore, open_store
from foreact.data.windows import loader
from foreact.data.windows.augment import CropAndBlur
from foreact.data.windows.loader import WindowDataset, batches, order, ordered_batches
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.types import ActionSpec, Batch, StreamSpec

ACTION = ActionSpec(
    names=("x", "y"), units=("px", "px"), frame="world", mode="absolute", rate_hz=10.0
)
SPEC = StreamSpec(cameras={"img": (12, 12)}, fps=10.0, action=ACTION, state={"state": ("a",)})
LENGTHS = (9, 14, 6)
WINDOW = Window(
    video={"img": (-2, 0, 2)},
    latents={"img": (-2, 0, 2)},
    tokens={"img": (-2, 0, 2)},
    actions=(0, 1, 2),
    past_actions=(-2, -1),
    state={"state": (0,)},
    pad_before=1,
    pad_after=2,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every number says which step it comes from."""
    target = tmp_path_factory.mktemp("store") / "s.zarr"
    rng = np.random.default_rng(0)
    ends = np.cumsum(LENGTHS)
    with StoreWriter(target, SPEC) as writer:
        for n, end in zip(LENGTHS, ends, strict=True):
            rows = np.arange(end - n, end, dtype=np.float32)
            images = rng.integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
            writer.append(
                {"img": images, "state": rows[:, None], "action": np.stack([rows, -rows], 1)}
            )
    for name, shape, dtype in (
        ("latents_img", (2, 3, 3), np.float16),
        ("tokens_img", (3, 3), np.uint16),
    ):
        rows = np.arange(ends[-1], dtype=dtype).reshape(-1, *[1] * len(shape))
        write_stream(
            target, name, np.broadcast_to(rows, (ends[-1], *shape)), attrs={"tokenizer": "h"}
        )
    return target


def identity(store: ZarrStore) -> Normalizer:
    return Normalizer.fit_store(store, modes="identity")


def same(a: Batch, b: Batch) -> bool:
    flat = [
        [
            *(batch.video | batch.latents | batch.tokens | batch.state | batch.valid).items(),
            ("actions", batch.actions),
            ("past", batch.past_actions),
            ("index", batch.index),
            *((f"video {k}", v) for k, v in batch.video.items()),
        ]
        for batch in (a, b)
    ]
    return [k for k, _ in flat[0]] == [k for k, _ in flat[1]] and all(
        torch.equal(x, y) for (_, x), (_, y) in zip(*flat, strict=True)
    )


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_batch_against_plain_reading(path: Path, memory_limit: int) -> None:
    store = open_store(path, memory_limit=memory_limit)
    dataset = WindowDataset(store, WINDOW, [0, 1], identity(store))
    chosen = np.array([0, len(dataset) - 1, 5])
    batch = dataset.batch(chosen)
    assert batch.index is not None
    assert batch.actions is not None
    assert batch.past_actions is not None
    assert batch.index.tolist() == dataset.index[chosen].tolist()
    for b, (episode, anchor) in enumerate(batch.index.tolist()):
        length = LENGTHS[episode]
        start = sum(LENGTHS[:episode])

        def at(offsets, anchor=anchor, length=length):
            return np.clip(np.array(offsets) + anchor, 0, length - 1)

        frames = at((-2, 0, 2))
        video = store.gather("img", start + frames)
        np.testing.assert_array_equal(batch.video["img"][b].numpy(), video.transpose(0, 3, 1, 2))
        assert (batch.latents["img"][b, :, 0, 0, 0] == torch.from_numpy(start + frames)).all()
        assert (batch.tokens["img"][b, :, 0, 0] == torch.from_numpy(start + frames)).all()
        assert batch.actions[b, :, 0].tolist() == (start + at((0, 1, 2))).tolist()
        assert batch.actions[b, :, 1].tolist() == (-(start + at((0, 1, 2)))).tolist()
        assert batch.past_actions[b, :, 0].tolist() == (start + at((-2, -1))).tolist()
        assert batch.state["state"][b, :, 0].tolist() == (start + at((0,))).tolist()
        assert batch.valid["action"][b].tolist() == [anchor + i < length for i in (0, 1, 2)]
        assert batch.valid["past_action"][b].tolist() == [anchor + i >= 0 for i in (-2, -1)]
        assert batch.valid["img"][b].tolist() == [0 <= anchor + i < length for i in (-2, 0, 2)]
    assert batch.latents["img"].dtype == torch.float32
    assert batch.tokens["img"].dtype == torch.int64
    assert batch.video["img"].dtype == torch.uint8
    assert not batch.valid["action"].all()


def test_actions_are_normalised(path: Path) -> None:
    store = open_store(path)
    normalizer = Normalizer.fit_store(store, np.array([0]), "limits")
    batch = next(ordered_batches(WindowDataset(store, WINDOW, [0], normalizer), batch_size=100))
    assert batch.actions is not None
    assert batch.actions.abs().max() == pytest.approx(1.0)
    assert batch.actions.dtype == torch.float32


def test_order_is_one_permutation_per_epoch() -> None:
    n = 7
    whole = order(n, 3, np.arange(4 * n)).reshape(4, n)
    for epoch in whole:
        assert sorted(epoch) == list(range(n))
    assert len({tuple(epoch) for epoch in whole}) > 1
    for first, size in ((0, 5), (5, 9), (20, 3)):
        np.testing.assert_array_equal(
            order(n, 3, np.arange(first, first + size)), whole.ravel()[first : first + size]
        )
    assert (order(n, 4, np.arange(4 * n)) != whole.ravel()).any()


def pixel_dataset(path: Path) -> WindowDataset:
    store = open_store(path)
    return WindowDataset(store, WINDOW, [0, 1, 2], identity(store), augment=CropAndBlur(crop=9))


def first(n: int, dataset: WindowDataset, **options) -> list[Batch]:
    return list(itertools.islice(batches(dataset, batch_size=4, seed=11, **options), n))


@pytest.mark.parametrize("pipe_bytes", [0, 2**20])
def test_workers_change_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, pipe_bytes: int
) -> None:
    monkeypatch.setattr(loader, "PIPE_BYTES", pipe_bytes)
    alone = first(9, pixel_dataset(path))
    for a, b in zip(alone, first(9, pixel_dataset(path), workers=2), strict=True):
        assert same(a, b)


def test_resuming_and_ranks_see_the_same_stream(path: Path) -> None:
    dataset = pixel_dataset(path)
    whole = first(10, dataset)
    assert not same(whole[0], whole[1])
    for a, b in zip(whole[6:], first(4, dataset, start=6), strict=True):
        assert same(a, b)
    ranks = [first(4, dataset, start=2, rank=r, world=2) for r in (0, 1)]
    for i, batch in enumerate(whole[2:10]):
        assert same(batch, ranks[i % 2][i // 2])


def numpy_state() -> np.ndarray:
    return np.random.get_state(legacy=False)["state"]["key"].copy()


def test_iterating_takes_nothing_from_the_global_generators(path: Path) -> None:
    before = torch.get_rng_state(), numpy_state()
    first(3, pixel_dataset(path))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], numpy_state())


def test_augmentation_differs_between_epochs_and_spares_evaluation(path: Path) -> None:
    dataset = pixel_dataset(path)
    n = len(dataset)
    plain = next(ordered_batches(dataset, batch_size=n)).video["img"]
    seen: dict[int, list[torch.Tensor]] = {i: [] for i in range(n)}
    rows = order(n, 11, np.arange(5 * n))
    videos = torch.cat([b.video["img"] for b in first(5 * n // 4, dataset)])
    for row, video in zip(rows, videos, strict=False):
        seen[int(row)].append(video)
    assert any(not torch.equal(v[0], v[1]) for v in seen.values() if len(v) > 1)
    assert any(not torch.equal(v[0], plain[i]) for i, v in seen.items() if v)
    np.testing.assert_array_equal(plain, pixel_dataset(path).batch(np.arange(n)).video["img"])


def test_ordered_batches_cover_every_window_once(path: Path) -> None:
    store = open_store(path)
    dataset = WindowDataset(store, WINDOW, [1, 2], identity(store))
    found = torch.cat(
        [b.index for b in ordered_batches(dataset, batch_size=5) if b.index is not None]
    )
    np.testing.assert_array_equal(found.numpy(), dataset.index)
    chosen = np.array([3, 1])
    only = list(ordered_batches(dataset, batch_size=5, chosen=chosen))
    assert len(only) == 1
    np.testing.assert_array_equal(only[0].index, dataset.index[chosen])


def test_memory_stays_flat_over_many_windows(path: Path) -> None:
    """Block-wise reading of far more windows than fit in the cache holds no more than the cache."""
    store = open_store(path, memory_limit=0)
    dataset = WindowDataset(store, WINDOW, [0, 1, 2], identity(store))
    store._cache.limit = 4000
    for _ in itertools.islice(batches(dataset, batch_size=2, seed=0), 150):
        assert store._cache.size <= 4000 or len(store._cache._blocks) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_nan_actions_are_one_sentence(tmp_path: Path, workers: int) -> None:
    import zarr

    spec = StreamSpec(cameras={}, fps=10.0, action=ACTION)
    with StoreWriter(tmp_path / "s.zarr", spec) as writer:
        writer.append({"action": np.zeros((8, 2))})
    actions = zarr.open_group(str(tmp_path / "s.zarr"), mode="r+")["data/action"]
    assert isinstance(actions, zarr.Array)
    actions[3, 1] = np.nan
    store = open_store(tmp_path / "s.zarr")
    plain = Normalizer.fit({"action": np.eye(2)}, "identity")
    dataset = WindowDataset(store, Window(actions=(0, 1)), [0], plain)
    with pytest.raises(UserError, match="hold NaN or infinite values") as caught:
        first(4, dataset, workers=workers)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_loaded_is_refused_at_once(path: Path) -> None:
    store = open_store(path)
    plain = identity(store)
    for window, normalizer, sentence in (
        (Window(video={"top": (0,)}), plain, r"has cameras \['img'\], not 'top'"),
        (Window(state={"pose": (0,)}), plain, "not 'pose'"),
        (Window(actions=(0,)), None, "give a normalizer"),
        (Window(actions=(0,)), Normalizer({}), "no statistics for stream 'action'"),
        (Window(actions=tuple(range(50))), plain, "none fits"),
    ):
        with pytest.raises(UserError, match=sentence):
            WindowDataset(store, window, [0, 1], normalizer)
    with pytest.raises(UserError, match="Augmentation changes pixels"):
        WindowDataset(store, Window(actions=(0,)), [0], plain, augment=CropAndBlur())
    with pytest.raises(UserError, match="no stream 'latents_top'"):
        next(
            batches(
                WindowDataset(store, Window(latents={"top": (0,)}), [0], None), batch_size=1, seed=0
            )
        )
    for options in (
        {"batch_size": 0},
        {"batch_size": 1, "rank": 2, "world": 2},
        {"batch_size": 1, "start": -1},
    ):
        with pytest.raises(UserError, match="Expected batch_size"):
            batches(WindowDataset(store, Window(actions=(0,)), [0], plain), seed=0, **options)
