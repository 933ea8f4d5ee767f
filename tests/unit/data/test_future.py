"""Windows with a later state: how far it may lie ahead, who
decides, and that it never leaves its episode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foreact.data.stores.store import StoreWriter, ZarrStore, open_store
from foreact.data.windows.future import FutureWindows
from foreact.data.windows.loader import WindowDataset, batches, ordered_batches
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.types import ActionSpec, Batch, StreamSpec

ACTION = ActionSpec(names=("x",), units=("unitless",), frame="joint", mode="absolute", rate_hz=10.0)
SPEC = StreamSpec(
    cameras={"cam": (2, 2), "other": (2, 2)}, fps=10.0, action=ACTION, has_reward=True
)
LENGTHS = (9, 4, 23)
FRAMES, STEPS = 3, 1  # T, and the frames after the anchor


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZarrStore:
    """Every pixel, action and reward says which row it comes from."""
    path = tmp_path_factory.mktemp("data") / "numbers.zarr"
    ends = np.cumsum(LENGTHS)
    with StoreWriter(path, SPEC) as writer:
        for n, end in zip(LENGTHS, ends, strict=True):
            rows = np.arange(end - n, end)
            frames = np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (n, 2, 2, 3))
            numbers = rows.astype(np.float32)[:, None]
            writer.append({"cam": frames, "other": frames, "action": numbers, "reward": numbers})
    return open_store(path)


def plain(store: ZarrStore, **changes: Any) -> WindowDataset:
    settings = {
        "video": {"cam": tuple(range(1 - FRAMES, STEPS + 1))},
        "actions": (0,),
        "rewards": (1,),
        "pad_before": 2,
    }
    window = Window(**{**settings, **changes})
    return WindowDataset(
        store, window, range(len(LENGTHS)), Normalizer.fit_store(store, modes="identity")
    )


def windows(store: ZarrStore, **options: Any) -> FutureWindows:
    return FutureWindows(plain(store), frames=FRAMES, **options)


def rows(batch: Batch) -> np.ndarray:
    """The store's row of every frame, (B, F)."""
    return batch.video["cam"][:, :, 0, 0, 0].numpy().astype(int)


def ahead(batch: Batch) -> np.ndarray:
    """k of every window, from its frames."""
    return rows(batch)[:, -1] - rows(batch)[:, FRAMES - 1]


def drawn(batch: Batch) -> dict[tuple[int, ...], int]:
    """Window -> its k."""
    assert batch.index is not None
    return {tuple(i): k for i, k in zip(batch.index.tolist(), ahead(batch), strict=True)}


def draws(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, i)) for i in range(count)]


def test_the_window_comes_first_and_the_later_state_behind_it(store: ZarrStore) -> None:
    data = windows(store)
    chosen = np.arange(len(data))
    batch, before = data.batch(chosen, draws(len(chosen))), plain(store).batch(chosen)
    assert batch.video["cam"].shape == (len(data), FRAMES + STEPS + FRAMES, 3, 2, 2)
    assert torch.equal(batch.video["cam"][:, : FRAMES + STEPS], before.video["cam"])
    for name in ("actions", "rewards", "index"):
        assert torch.equal(getattr(batch, name), getattr(before, name))
    later = rows(batch)[:, -FRAMES:]
    assert batch.index is not None
    starts = store.starts[batch.index[:, 0]]
    expected = later[:, -1:] + np.arange(1 - FRAMES, 1)
    np.testing.assert_array_equal(
        later, np.maximum(expected, starts[:, None])
    )  # its first frame stands in before it
    np.testing.assert_array_equal(
        batch.valid["cam"][:, -FRAMES:].numpy(), expected >= starts[:, None]
    )


def test_k_reaches_every_step_up_to_the_limit_and_never_leaves_the_episode(
    store: ZarrStore,
) -> None:
    data = windows(store, reach=5)
    chosen = np.repeat(np.arange(len(data)), 100)
    batch = data.batch(chosen, draws(len(chosen)))
    index = data.windows.index[chosen]
    left = store.lengths[index[:, 0]] - 1 - index[:, 1]
    found = ahead(batch)
    for most in (1, 2, 3, 4, 5):
        seen = found[np.minimum(left, 5) == most]
        assert set(seen) == set(range(1, most + 1))
        assert np.bincount(seen)[1:].min() > 0.7 * len(seen) / most


def test_every_anchor_of_an_episode_serves_but_the_last_step(store: ZarrStore) -> None:
    assert len(windows(store)) == sum(n - 1 for n in LENGTHS)
    assert windows(store).limits.max() == 14
    assert windows(store).limits.min() == 1


def test_validation_is_a_function_of_the_window_alone(store: ZarrStore) -> None:
    data = windows(store)
    whole = torch.cat([b.video["cam"] for b in ordered_batches(data, batch_size=len(data))])
    parts = torch.cat([b.video["cam"] for b in ordered_batches(data, batch_size=5)])
    assert torch.equal(whole, parts)
    assert torch.equal(data.batch(np.array([7])).video["cam"][0], whole[7])
    assert len(set(ahead(data.batch(np.arange(len(data)))))) > 5


def test_training_draws_anew_in_every_epoch_and_again_when_resumed(store: ZarrStore) -> None:
    data = windows(store)
    stream = batches(data, batch_size=len(data), seed=3)
    first, second = (drawn(b) for b in (next(stream), next(stream)))
    assert first.keys() == second.keys()
    assert first != second
    resumed = next(batches(data, batch_size=len(data), seed=3, start=1))
    assert drawn(resumed) == second


def test_all_frames_of_a_window_change_alike_and_only_in_training(store: ZarrStore) -> None:
    def brighten(video: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        return video + int(rng.integers(1, 100))

    chosen = np.arange(6)
    changed = windows(store, augment=brighten).batch(chosen, draws(6)).video["cam"]
    same = windows(store).batch(chosen, draws(6)).video["cam"]
    difference = (changed - same).flatten(1)
    assert (difference == difference[:, :1]).all()
    assert len(set(difference[:, 0].tolist())) > 1
    assert torch.equal(
        windows(store, augment=brighten).batch(chosen).video["cam"],
        windows(store).batch(chosen).video["cam"],
    )


def test_windows_that_cannot_serve_are_told(store: ZarrStore) -> None:
    frames = tuple(range(1 - FRAMES, 1))
    with pytest.raises(UserError, match="a step after every anchor"):
        FutureWindows(plain(store, video={"cam": frames}, rewards=()), frames=FRAMES)
    with pytest.raises(UserError, match="one camera"):
        FutureWindows(plain(store, video={"cam": (0,), "other": (0,)}), frames=1)
    augmented = WindowDataset(
        store, Window(video={"cam": (0,)}, span=(0, 1)), [0], None, augment=lambda v, rng: v
    )
    with pytest.raises(UserError, match="not augmented"):
        FutureWindows(augmented, frames=1)
    with pytest.raises(UserError, match="reach"):
        windows(store, reach=0)
