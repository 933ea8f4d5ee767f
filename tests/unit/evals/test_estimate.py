from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from foreact.errors import UserError
from foreact.evals.estimate import estimate, share, student_quantile


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 10, 29, 30, 49, 100, 199, 500, 2000, 2001, 20000])
def test_quantile_is_students(df: int) -> None:
    assert student_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), abs=1e-9)


def test_estimate_is_mean_with_students_interval() -> None:
    values = np.array([0.2, 0.4, 0.9, 0.7, 0.5])
    found = estimate(values, unit="px", higher_is_better=False)
    low, high = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    assert (found.mean, found.n, found.unit, found.higher_is_better) == (
        pytest.approx(0.54),
        5,
        "px",
        False,
    )
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        found = estimate(draw.normal(3.0, 2.0, size=6))
        hits += found.low <= 3.0 <= found.high
    assert 0.935 <= hits / 2000 <= 0.965


def test_one_value_has_no_width() -> None:
    found = estimate([0.5])
    assert (found.low, found.mean, found.high, found.n) == (0.5, 0.5, 0.5, 1)


def test_interval_is_cut_to_the_valid_range_and_keeps_the_mean() -> None:
    found = estimate([0.9, 1.0, 1.0], valid_range=(0.0, 1.0))
    assert found.high == 1.0
    assert found.low < found.mean < found.high
    edge = estimate([1.0, 1.0, 1.0], valid_range=(0.0, 1.0))
    assert (edge.low, edge.high) == (1.0, 1.0)


@pytest.mark.parametrize("values", [[], [float("nan"), 1.0], [float("inf")]])
def test_unusable_values_are_refused(values: list[float]) -> None:
    with pytest.raises(UserError, match="at least one finite value"):
        estimate(values)


@pytest.mark.parametrize(("successes", "n"), [(0, 50), (50, 50), (1, 3), (17, 40)])
def test_share_is_wilsons_interval(successes: int, n: int) -> None:
    found = share(successes, n)
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert found.mean == successes / n
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_shares_are_refused(successes: int, n: int) -> None:
    with pytest.raises(UserError):
        share(successes, n)
