"""Subsets, concatenations, shares and hard turns of windows, and what a run has not seen."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foreact.data.windows.loader import batches, ordered_batches
from foreact.data.windows.mixing import Concat, HardTurns, Subset, mix
from foreact.errors import UserError
from foreact.families.driving.data.remaining import remaining, remaining_of_run
from foreact.types import Batch


class Numbered:
    """Window i of set s is the number 1000 s + i; the yaw rate of i is i modulo 7."""

    def __init__(self, which: int, length: int, *, width: int = 2, augments: bool = False) -> None:
        self.which, self.length, self.width, self.augments = which, length, width, augments
        self.loaded = False

    def __len__(self) -> int:
        return self.length

    def load(self) -> None:
        self.loaded = True

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        assert ((chosen >= 0) & (chosen < self.length)).all()
        assert (rngs is not None) == (self.augments and rngs is not None)
        ids = torch.from_numpy(1000 * self.which + np.asarray(chosen))
        drawn = torch.tensor(
            [0.0] * len(chosen) if rngs is None else [rng.random() for rng in rngs]
        )
        return Batch(
            tokens={"front": ids[:, None].expand(-1, self.width)},
            state={"drawn": drawn},
            index=ids[:, None],
        )

    def yaw_rates(self, chosen: np.ndarray) -> np.ndarray:
        return (np.asarray(chosen) % 7).astype(np.float64)


def ids(batch: Batch) -> list[int]:
    return batch.tokens["front"][:, 0].tolist()


def test_a_batch_may_hold_windows_of_all_sets_in_any_order() -> None:
    both = Concat([Numbered(0, 3), Subset(Numbered(1, 10), [9, 9, 4]), Numbered(2, 1)])
    assert len(both) == 7
    batch = both.batch(np.array([6, 0, 4, 3, 5, 2, 0]))
    assert ids(batch) == [2000, 0, 1009, 1009, 1004, 2, 0]
    assert batch.index is not None
    assert batch.index[:, 0].tolist() == ids(batch)


def test_augmentation_draws_from_the_generator_of_its_own_window() -> None:
    both = Concat([Numbered(0, 3), Numbered(1, 3, augments=True)])
    assert both.augments
    drawn = both.batch(np.array([4, 0, 3]), [np.random.default_rng(i) for i in range(3)]).state[
        "drawn"
    ]
    expected = [np.random.default_rng(0).random(), 0.0, np.random.default_rng(2).random()]
    assert drawn.tolist() == pytest.approx(expected)


def test_training_and_evaluation_read_mixed_windows() -> None:
    mixed = mix([Numbered(0, 5), Numbered(1, 40)], [0.5, 0.5], 20, seed=3)
    stream = batches(mixed, batch_size=5, seed=1)
    epoch = [i for batch in itertools.islice(stream, 4) for i in ids(batch)]
    assert sorted(epoch) == sorted(
        i for batch in ordered_batches(mixed, batch_size=7) for i in ids(batch)
    )
    inner = [part.windows for part in mixed.parts if isinstance(part, Subset)]
    assert all(isinstance(windows, Numbered) and windows.loaded for windows in inner)
    assert not mixed.augments


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    total=st.integers(5, 200),
    seed=st.integers(0, 99),
)
def test_a_mix_gives_every_set_its_share_as_evenly_as_can_be(
    lengths: list[int], total: int, seed: int
) -> None:
    ratios = [1 / len(lengths)] * len(lengths)
    mixed = mix([Numbered(s, n) for s, n in enumerate(lengths)], ratios, total, seed)
    found = [i for batch in ordered_batches(mixed, batch_size=64) for i in ids(batch)]
    for s, n in enumerate(lengths):
        counts = Counter(i for i in found if i // 1000 == s)
        assert counts.total() == int(ratios[s] * total)
        assert max(counts.values()) - min(counts.get(1000 * s + i, 0) for i in range(n)) <= 1


def test_a_share_of_nothing_leaves_the_set_out() -> None:
    mixed = mix([Numbered(0, 5), Numbered(1, 5)], [1.0, 0.0], 4, seed=0)
    assert len(mixed.parts) == 1
    assert len(mixed) == 4


@pytest.mark.parametrize(
    "ratios", [[0.5, 0.4], [1.5, -0.5], [0.5, 0.6], [1.0], [float("nan"), 1.0]]
)
def test_ratios_that_are_no_shares_are_refused(ratios: list[float]) -> None:
    with pytest.raises(UserError, match="ratios >= 0 that sum to 1"):
        mix([Numbered(0, 5), Numbered(1, 5)], ratios, 10, seed=0)


def test_sets_of_different_kinds_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"disagree on 'tokens\.front'"):
        Concat([Numbered(0, 5), Numbered(1, 5, width=3)]).batch(np.array([0, 9]))
    with pytest.raises(UserError, match=r"A subset expects windows of 0\.\.4"):
        Subset(Numbered(0, 5), [5])


def test_hard_turns_keep_the_sharpest_of_what_is_drawn() -> None:
    turns = HardTurns(Concat([Subset(Numbered(0, 50), np.arange(50)), Numbered(1, 50)]), keep=2)
    assert len(turns) == 100
    # Yaw rates 3, 6, 0, 6, 5; of equals, the first drawn.
    assert ids(turns.batch(np.array([3, 6, 50, 56, 5]))) == [6, 1006]
    assert ids(turns.batch(np.array([5, 5, 5]))) == [5, 5]
    first = [ids(b) for b in itertools.islice(batches(turns, batch_size=6, seed=4), 10)]
    assert first == [ids(b) for b in itertools.islice(batches(turns, batch_size=6, seed=4), 10)]
    assert {len(batch) for batch in first} == {2}
    with pytest.raises(UserError, match="draw larger batches"):
        turns.batch(np.array([1]))


def test_seen_and_remaining_windows_make_the_epoch() -> None:
    whole = remaining(103, world=3, batch_size=4, steps=0, seed=7)
    left = remaining(103, world=3, batch_size=4, steps=5, seed=7)
    assert [len(rank) for rank in whole] == [34] * 3
    for before, after in zip(whole, left, strict=True):
        assert before[20:].tolist() == after.tolist()
    assert len(set(np.concatenate(whole).tolist())) == 102
    assert (
        len(np.concatenate(remaining(103, world=3, batch_size=4, steps=0, seed=7, drop_last=False)))
        == 105
    )


@pytest.mark.parametrize("seen", [0, 8, 20, 28])
def test_what_a_run_of_ours_has_not_seen_is_what_its_loader_would_give_next(seen: int) -> None:
    windows = Numbered(0, 20)
    stream = batches(windows, batch_size=4, seed=5)
    order = [i for batch in itertools.islice(stream, 10) for i in ids(batch)]
    end = 20 if seen <= 20 else 40
    assert remaining_of_run(20, seed=5, seen=seen).tolist() == order[seen:end]


def test_impossible_runs_are_refused() -> None:
    with pytest.raises(UserError, match="world"):
        remaining(10, world=0, batch_size=1, steps=0, seed=0)
    with pytest.raises(UserError, match="windows"):
        remaining_of_run(0, seed=0, seen=0)
