from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from foreact.errors import UserError
from foreact.evals.clustered import clustered_estimate
from foreact.evals.correlation import correlation_estimate
from foreact.evals.estimate import estimate, interval_text, share, student_quantile


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


def test_one_value_tells_no_interval() -> None:
    found = estimate([0.5])
    assert (found.low, found.mean, found.high, found.n) == (-math.inf, 0.5, math.inf, 1)
    assert not found.has_interval
    assert str(found) == "0.500 [no interval] (n=1)"
    bounded = estimate([0.5], valid_range=(0.0, 1.0))
    assert (bounded.low, bounded.high) == (0.0, 1.0)
    assert not bounded.has_interval
    assert interval_text(bounded) == interval_text(found) == "no interval"
    grouped = clustered_estimate([0.1, 0.7], [3, 3])
    assert (grouped.n, grouped.has_interval) == (1, False)
    correlated = correlation_estimate([1.0, 2.0, 3.0], [1.0, 2.0, 2.5], [0, 0, 0])
    assert (correlated.low, correlated.high, correlated.has_interval) == (-1.0, 1.0, False)


@pytest.mark.parametrize("n", [2, 5, 50])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equal_values_do_not_collapse(value: float, n: int) -> None:
    found = estimate([value] * n, valid_range=(0.0, 1.0))
    assert found.has_interval
    assert found.low <= value <= found.high
    assert found.high - found.low > 0.9 / n
    if value in (0.0, 1.0):  # then it is that of so many successes
        expected = share(round(value * n), n)
        assert (found.low, found.high) == (
            pytest.approx(expected.low),
            pytest.approx(expected.high),
        )
    assert not estimate([value] * n).has_interval
    assert not clustered_estimate([value] * n, range(n)).has_interval


def test_interval_of_equal_values_covers_rare_outcomes() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):  # 4 % of the episodes succeed: most samples of 20 are all 0
        found = estimate(draw.random(20) < 0.04, valid_range=(0.0, 1.0))
        hits += found.low <= 0.04 <= found.high
    assert hits / 2000 >= 0.9


def test_correlation_of_all_draws_alike_is_not_certain() -> None:
    found = correlation_estimate([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0], [0, 0, 1, 1])
    assert found.mean == pytest.approx(1.0)
    assert (found.low, found.high) == (-1.0, pytest.approx(1.0))


def test_interval_is_cut_to_the_valid_range_and_keeps_the_mean() -> None:
    found = estimate([0.9, 1.0, 1.0], valid_range=(0.0, 1.0))
    assert found.high == 1.0
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("values", [[], [float("nan"), 1.0], [float("inf")]])
def test_unusable_values_are_refused(values: list[float]) -> None:
    with pytest.raises(UserError, match="at least one finite value"):
        estimate(values)


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 50), (50, 50), (1, 3), (17, 40), (0, 1), (1, 1), (999, 2000)]
)
def test_share_is_clopper_and_pearsons_interval(successes: int, n: int) -> None:
    found = share(successes, n)
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    assert found.mean == successes / n
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_shares_are_refused(successes: int, n: int) -> None:
    with pytest.raises(UserError):
        share(successes, n)
