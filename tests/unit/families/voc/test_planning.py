from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foreact.errors import UserError
from foreact.families.voc.planning import best_of, cem, mppi

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0])
MIDDLE, REACH = (LOW + HIGH) / 2, (HIGH - LOW) / 2
targets = st.lists(st.floats(-2.0, 4.0), min_size=8, max_size=8)


def rngs(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def nearness(target: Tensor) -> Callable[[Tensor], Tensor]:
    """The highest score (B, N) lies at `target` (B, m, A)."""
    return lambda actions: -(actions - target[:, None]).square().sum((2, 3))


def search(
    planner: str, score: Callable[[Tensor], Tensor], problems: int, seeds: tuple[int, ...], **more
) -> Tensor:
    mean, std = MIDDLE.expand(problems, 2, 2), REACH.expand(problems, 2, 2)
    common = {
        "samples": 128,
        "iterations": 12,
        "rngs": rngs(*seeds),
        "low": LOW,
        "high": HIGH,
        **more,
    }
    if planner == "cem":
        return cem(score, mean, std, elites=min(12, common["samples"]), **common)
    return mppi(score, mean, std * 0.3, temperature=0.2, **common)


# Elites of few candidates may lose their spread early: cem once stopped 0.07 short.
@pytest.mark.parametrize(("planner", "tolerance"), [("cem", 0.15), ("mppi", 0.2)])
@given(values=targets)
def test_finds_the_best_actions_within_the_bounds(
    planner: str, tolerance: float, values: list[float]
) -> None:
    target = torch.tensor(values).view(2, 2, 2)
    plan = search(planner, nearness(target), 2, (1, 2))
    assert (plan >= LOW).all()
    assert (plan <= HIGH).all()
    torch.testing.assert_close(plan, target.clamp(LOW, HIGH), atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("planner", ["cem", "mppi"])
def test_the_seed_decides_everything_and_neighbours_nothing(planner: str) -> None:
    target = torch.tensor([[[0.3, 1.0]] * 2, [[-0.9, 2.0]] * 2])
    together = search(planner, nearness(target), 2, (7, 8), iterations=2)
    assert torch.equal(together, search(planner, nearness(target), 2, (7, 8), iterations=2))
    alone = search(planner, nearness(target[1:]), 1, (8,), iterations=2)
    assert torch.equal(together[1:], alone)
    assert not torch.equal(alone, search(planner, nearness(target[1:]), 1, (9,), iterations=2))


@pytest.mark.parametrize("planner", ["cem", "mppi"])
def test_a_good_proposal_is_taken_up(planner: str) -> None:
    """A narrow peak that drawn candidates miss; the mean alone would stay where it began."""
    target = torch.tensor([[[0.9, 0.1], [-0.9, 2.9]]])

    def peak(actions: Tensor) -> Tensor:
        return ((actions - target[:, None]).abs().amax((2, 3)) < 0.05).float()

    settings = {"samples": 16, "iterations": 1}
    mean, std = MIDDLE.expand(1, 2, 2), REACH.expand(1, 2, 2) * 0.1
    bounds = {"low": LOW, "high": HIGH, **settings}
    proposals = target[:, None] + torch.zeros(1, 4, 2, 2)
    for given_, near in ((None, False), (proposals, True)):
        if planner == "cem":
            plan = cem(peak, mean, std, elites=4, rngs=rngs(0), proposals=given_, **bounds)
        else:
            plan = mppi(peak, mean, std, temperature=0.1, rngs=rngs(0), proposals=given_, **bounds)
        assert bool(((plan - target).abs() < 0.05).all()) is near


def test_proposals_outside_the_bounds_are_clipped() -> None:
    seen: list[Tensor] = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions)
        return actions.sum((2, 3))

    search("cem", score, 1, (0,), proposals=torch.full((1, 3, 2, 2), 9.0), iterations=1)
    assert torch.equal(seen[0][:, :3], HIGH.expand(1, 3, 2, 2))
    assert seen[0].shape == (1, 128, 2, 2)


def test_mppi_weighs_values_of_any_scale_alike() -> None:
    target = torch.tensor([[[0.3, 1.0], [0.5, 2.0]]])
    plain = search("mppi", nearness(target), 1, (3,), iterations=2)
    scaled = search(
        "mppi", lambda actions: 1000.0 * nearness(target)(actions) + 5.0, 1, (3,), iterations=2
    )
    torch.testing.assert_close(plain, scaled, atol=1e-3, rtol=0.0)


def test_equal_scores_leave_no_nan() -> None:
    plan = search("mppi", lambda actions: actions.sum((2, 3)) * 0.0, 1, (0,))
    assert torch.isfinite(plan).all()


def test_best_of_takes_each_problems_own_best() -> None:
    candidates = torch.arange(12.0).view(2, 3, 2, 1)
    score = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    assert torch.equal(
        best_of(lambda _: score, candidates), torch.stack([candidates[0, 1], candidates[1, 0]])
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"iterations": 0}, "iterations should be at least 1"),
        ({"samples": 3, "proposals": torch.zeros(1, 3, 2, 2)}, "should exceed the 3 proposals"),
    ],
)
@pytest.mark.parametrize("planner", ["cem", "mppi"])
def test_impossible_numbers_are_refused(planner: str, settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        search(planner, lambda a: a.sum((2, 3)), 1, (0,), **settings)


def test_more_elites_than_samples_and_no_temperature_are_refused() -> None:
    mean = std = torch.ones(1, 1, 2)
    common = {"iterations": 1, "rngs": rngs(0), "low": LOW, "high": HIGH}
    with pytest.raises(UserError, match=r"elites should be in 1\.\.4"):
        cem(lambda a: a.sum((2, 3)), mean, std, samples=4, elites=5, **common)
    with pytest.raises(UserError, match="temperature should be positive"):
        mppi(lambda a: a.sum((2, 3)), mean, std, samples=4, temperature=0.0, **common)
