"""From measured values to a mean with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from foreact.errors import UserError
from foreact.types import Estimate

NORMAL_QUANTILE = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


def estimate(
    values: Sequence[float] | np.ndarray,
    *,
    unit: str = "",
    higher_is_better: bool = True,
    valid_range: tuple[float, float] | None = None,
) -> Estimate:
    """Mean of independent values with Student's 95 % interval.

    Args:
        values: one finite number per independent unit, such as an episode.
        unit: unit of the values, "" for pure numbers.
        valid_range: where the mean must lie by its meaning; the interval is cut to it.

    Raises:
        UserError: no value, or one that is not finite.
    """
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(x) or not np.isfinite(x).all():
        non_finite = int((~np.isfinite(x)).sum())
        problem = f"{non_finite} of {len(x)} that are NaN or infinite" if len(x) else "none"
        raise UserError(
            f"An estimate needs at least one finite value, found {problem}; look at "
            "what was measured."
        )
    mean = float(x.mean())
    half_width = 0.0
    if len(x) > 1:
        half_width = student_quantile(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    low, high = mean - half_width, mean + half_width
    if valid_range is not None:
        low, high = max(low, valid_range[0]), min(high, valid_range[1])
    # A mean at the edge of its range may lie outside of the cut interval by a rounding error.
    low, high = min(low, mean), max(high, mean)
    return Estimate(
        mean=mean, n=len(x), low=low, high=high, unit=unit, higher_is_better=higher_is_better
    )


def share(successes: int, n: int, *, higher_is_better: bool = True) -> Estimate:
    """Share of `n` independent trials with Wilson's 95 % interval, which stays honest at 0 and 1.

    Raises:
        UserError: no trial, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UserError(
            f"A share needs at least one trial and 0 to n successes, found {successes} of {n}."
        )
    p, z2 = successes / n, NORMAL_QUANTILE**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half_width = NORMAL_QUANTILE / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = max(0.0, min(centre - half_width, p)), min(1.0, max(centre + half_width, p))
    return Estimate(mean=p, n=n, low=low, high=high, unit="", higher_is_better=higher_is_better)


def student_quantile(df: int) -> float:
    """97.5 % quantile of Student's t distribution with `df` >= 1 degrees of freedom.

    Exact to rounding up to 2000 degrees of freedom; beyond, an expansion about the normal quantile,
    good to 1e-9.
    """
    if df < 1:
        raise ValueError(f"Student's distribution has at least 1 degree of freedom, found {df}.")
    if df > 2000:
        z = NORMAL_QUANTILE
        first = (z**3 + z) / 4
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        return z + first / df + second / df**2
    low, high = 0.0, 13.0  # the quantile of one degree of freedom is 12.71
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, df) < 0.95 else (low, middle)
    return (low + high) / 2


def _central_mass(t: float, df: int) -> float:
    """P(|T| < t) for integer degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = df % 2 == 1
    total, term = 0.0, (cosine if odd else 1.0)
    for k in range(1 if odd else 0, df - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    return (theta + sine * total) * 2 / math.pi if odd else sine * total
