from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from foreact.errors import UserError
from foreact.evals.frechet import Accumulation, Moments, frechet_distance


def moments(rows: np.ndarray, accumulation: Accumulation = "exact", parts: int = 1) -> Moments:
    found = Moments(accumulation)
    for part in np.array_split(rows, parts):
        found.add(part)
    return found


@given(
    n=st.integers(2, 40),
    width=st.integers(1, 5),
    parts=st.integers(1, 9),
    offset=st.sampled_from([0.0, 3.0, 1e6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_moments_in_parts_are_those_of_the_whole(n, width, parts, offset, seed) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, width)) + offset
    found = moments(rows, parts=parts)
    assert found.n == n
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        found.covariance, np.cov(rows.T).reshape(width, width), atol=1e-9 * max(1, offset)
    )


@given(n=st.integers(3, 30), width=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_distance_is_the_formula_with_scipys_matrix_root(n, width, seed) -> None:
    draw = np.random.default_rng(seed)
    a = moments(draw.normal(size=(n + 2 * width, width)) @ draw.normal(size=(width, width)))
    b = moments(draw.normal(1.0, 2.0, size=(n + 2 * width, width)))
    root = np.real(sqrtm(a.covariance @ b.covariance))
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-6, abs=1e-8)


def test_a_shift_costs_its_squared_length_and_equal_sets_nothing() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4))
    shift = np.array([3.0, 0.0, -4.0, 0.0])
    assert frechet_distance(moments(rows), moments(rows + shift)) == pytest.approx(25.0)
    assert frechet_distance(moments(rows), moments(rows[::-1])) == pytest.approx(0.0, abs=1e-7)


def test_gaussians_along_one_axis_differ_by_their_deviations() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 1))
    deviation = rows.std(ddof=1)
    centred = rows - rows.mean()
    assert frechet_distance(moments(centred), moments(3 * centred)) == pytest.approx(
        (2 * deviation) ** 2
    )


def test_fewer_samples_than_features_still_give_a_finite_distance() -> None:
    draw = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="sets of 5 samples with 40 features"):
        distance = frechet_distance(
            moments(draw.normal(size=(5, 40))), moments(draw.normal(size=(6, 40)))
        )
    assert np.isfinite(distance)
    assert distance > 0


@pytest.mark.filterwarnings("ignore:A Frechet distance")
@pytest.mark.parametrize("accumulation", ["exact", "reference"])
@pytest.mark.parametrize(("n", "width"), [(2, 1), (9, 30), (60, 300), (500, 8)])
def test_a_set_is_at_no_distance_from_itself(
    n: int, width: int, accumulation: Accumulation
) -> None:
    rows = np.random.default_rng(0).normal(3.0, 5.0, size=(n, width))
    found = moments(rows, accumulation)
    assert frechet_distance(found, found) == 0.0
    assert frechet_distance(found, moments(rows, accumulation)) == 0.0
    if accumulation == "exact":
        assert frechet_distance(found, moments(rows[::-1], parts=2)) == 0.0


def test_float32_sums_lose_what_centred_moments_keep() -> None:
    rows = (np.random.default_rng(0).normal(size=(200, 3)) + 3000.0).astype(np.float32)
    true = np.cov(rows.astype(np.float64).T)
    assert np.abs(moments(rows, parts=4).covariance - true).max() < 1e-9
    assert np.abs(moments(rows, "reference", parts=4).covariance - true).max() > 0.1
    small = rows - np.float32(3000.0)
    np.testing.assert_allclose(
        moments(small, "reference").covariance, np.cov(small.T), rtol=1e-4, atol=1e-5
    )


def test_bad_features_are_refused() -> None:
    found = moments(np.zeros((3, 4)))
    for rows, words in (
        (np.zeros((3, 5)), r"\(N, 4\)"),
        (np.zeros(4), "shape"),
        (np.full((1, 4), np.nan), "NaN"),
    ):
        with pytest.raises(UserError, match=words):
            found.add(rows)
    with pytest.raises(UserError, match="at least 2 samples"):
        frechet_distance(found, moments(np.zeros((1, 4))))
    with pytest.raises(UserError, match="at least 2 samples on either side, found 0"):
        frechet_distance(Moments(), found)
    with pytest.raises(UserError, match="width 4 and 5"):
        frechet_distance(found, moments(np.zeros((3, 5))))
    with pytest.raises(UserError, match="'fast'"):
        Moments("fast")  # pyright: ignore[reportArgumentType]
