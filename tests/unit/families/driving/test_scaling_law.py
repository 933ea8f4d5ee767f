"""The fit of L(N, D) finds the law that made the losses."""

from __future__ import annotations

import numpy as np
import pytest

from foreact.errors import UserError
from foreact.families.driving.evals.scaling_law import ScalingLaw, fit_scaling_law

TRUE = ScalingLaw(E=1.7, A=400.0, a=0.34, B=410.0, b=0.28, error=0.0)
N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e5, 1e8, 4), np.geomspace(1e6, 1e10, 5)))


def test_the_law_is_found_again() -> None:
    law = fit_scaling_law(N.tolist(), D.tolist(), TRUE(N, D).tolist())
    assert (law.a, law.b) == pytest.approx((TRUE.a, TRUE.b), rel=0.01)
    assert pytest.approx(TRUE.E, rel=0.02) == law.E
    assert law.error < 1e-4
    np.testing.assert_allclose(law(1e9, 1e11), TRUE(1e9, 1e11), rtol=0.02)


def test_noise_moves_it_little() -> None:
    noisy = TRUE(N, D) * (1 + 0.003 * np.random.default_rng(0).normal(size=N.shape))
    law = fit_scaling_law(N.tolist(), D.tolist(), noisy.tolist())
    np.testing.assert_allclose(law(N, D), TRUE(N, D), rtol=0.02)


def test_the_best_size_is_a_minimum() -> None:
    n, d = TRUE.best_size(1e18)
    assert 6 * n * d == pytest.approx(1e18)
    for factor in (0.9, 1.1):
        assert TRUE(n * factor, d / factor) > TRUE(n, d)


def test_data_that_brings_nothing_has_no_best_size() -> None:
    law = fit_scaling_law(N.tolist(), D.tolist(), (2.0 + 300.0 * N**-0.4).tolist())
    assert law.B * D.min() ** -law.b < 1e-3
    with pytest.raises(UserError, match="no best size"):
        ScalingLaw(E=1, A=1, a=0.3, B=0.0, b=0.3, error=0).best_size(1e18)


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(UserError, match=r"found 4 runs, 2 sizes and 4 amounts"):
        fit_scaling_law([1, 1, 2, 2], [1, 2, 3, 4], [3, 2, 2, 1])
    with pytest.raises(UserError, match="positive, finite"):
        fit_scaling_law([1, 2, 3], [1, 2, 3], [1, np.nan, 1])
