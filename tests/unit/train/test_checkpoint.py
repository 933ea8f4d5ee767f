"""Ranking and keeping of checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreact.train.checkpoint import BestTable, Checkpoints
from foreact.train.parallel import World


def offer_all(table: BestTable, values: list[float]) -> list[bool]:
    return [table.offer(step, value) for step, value in enumerate(values)]


def test_a_tie_does_not_replace() -> None:
    table = BestTable(k=1, mode="max")
    assert offer_all(table, [0.5, 0.5, 0.4, 0.6, 0.6]) == [True, False, False, True, False]
    assert table.best == (3, 0.6)


def test_among_equal_worst_entries_the_older_leaves_in_max_mode_and_the_newer_in_min_mode() -> None:
    highest, lowest = BestTable(k=2, mode="max"), BestTable(k=2, mode="min")
    offer_all(highest, [1.0, 1.0, 2.0])
    offer_all(lowest, [1.0, 1.0, 0.0])
    assert highest.steps == [1, 2]
    assert lowest.steps == [0, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_best(value: float) -> None:
    table = BestTable(k=3, mode="max")
    assert not table.offer(1, value)
    assert table.best is None


def test_none_are_kept_with_k_zero() -> None:
    assert offer_all(BestTable(k=0, mode="min"), [1.0, 0.5]) == [False, False]


@given(
    st.integers(1, 5),
    st.sampled_from(["max", "min"]),
    st.lists(st.floats(-9, 9), min_size=1, max_size=30),
)
def test_table_holds_the_k_best_values(
    k: int, mode: Literal["max", "min"], values: list[float]
) -> None:
    table = BestTable(k=k, mode=mode)
    offer_all(table, values)
    assert sorted(v for _, v in table.entries) == sorted(sorted(values, reverse=mode == "max")[:k])
    assert table.best is not None
    assert table.best[1] == (max if mode == "max" else min)(values)


def whole(folder: Path, step: int) -> None:
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "train.json").write_text("{}")


def test_only_whole_checkpoints_count_and_leftovers_are_swept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "none", World())
    assert checkpoints.steps() == []
    checkpoints.sweep()
    checkpoints = Checkpoints(tmp_path, World())
    for step in (10, 2, 123456789):
        whole(tmp_path, step)
    (tmp_path / "step-00000099").mkdir()  # without its record
    whole(tmp_path / ".unfinished-step-00000050", 50)
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-notes" / "train.json").write_text("{}")
    assert checkpoints.steps() == [2, 10, 123456789]
    checkpoints.sweep()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000002",
        "step-00000010",
        "step-00000099",
        "step-123456789",
        "step-notes",
    ]


def test_pruning_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    for step in range(1, 7):
        whole(tmp_path, step)
    checkpoints = Checkpoints(tmp_path, World())
    checkpoints.prune(2, protected=[2, 6])
    assert checkpoints.steps() == [2, 5, 6]
    assert len(list(tmp_path.iterdir())) == 3
