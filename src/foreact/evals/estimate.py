"""From measured values to a mean with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foreact.errors import UserError
from foreact.types import Estimate

NORMAL_QUANTILE = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""
TAIL = 0.025
"""Probability beyond either end of an interval."""
ROUNDING = 1e-9
"""Values that differ by no more than this share of their size are equal but for rounding."""


def all_alike(values: np.ndarray) -> bool:
    """Whether finite numbers (N,), N >= 1, differ by rounding at most."""
    return bool(np.ptp(values) <= ROUNDING * float(np.abs(values).max()))


def estimate(
    values: Sequence[float] | np.ndarray,
    *,
    unit: str = "",
    higher_is_better: bool = True,
    valid_range: tuple[float, float] | None = None,
) -> Estimate:
    """Mean of independent values with a 95 % interval: Student's, or one that does not collapse.

    Student's interval has no width where all values are equal, such as scores of episodes that all
    failed, though the next one may well differ. Then all that is known is that other outcomes have
    at most a share of 1 - 0.025^(1/n), with 97.5 % confidence, and where they can lie: at the
    worst at either end of the range. For values at an end this is Clopper and Pearson's interval of
    n in n. One value, or equal ones that could lie anywhere, tell no interval: it is then the whole
    range, without a range (-inf, inf).

    Args:
        values: one finite number per independent unit, such as an episode.
        unit: unit of the values, "" for pure numbers.
        valid_range: where each value must lie by its meaning, so that the mean lies there too.

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
    mean, n = float(x.mean()), len(x)
    least, most = (-math.inf, math.inf) if valid_range is None else valid_range
    if n == 1:
        low, high = least, most
    elif all_alike(x):
        others = 1.0 - TAIL ** (1.0 / n)
        low, high = mean - others * (mean - least), mean + others * (most - mean)
    else:
        half_width = student_quantile(n - 1) * float(x.std(ddof=1)) / math.sqrt(n)
        low, high = max(least, mean - half_width), min(most, mean + half_width)
    # A mean at the edge of its range may lie outside of the cut interval by a rounding error.
    low, high = min(low, mean), max(high, mean)
    return Estimate(
        mean=mean, n=n, low=low, high=high, unit=unit, higher_is_better=higher_is_better
    )


def estimate_from_json(raw: Mapping[str, Any]) -> Estimate:
    """An estimate as written by `foreact.files.write_json`: null ends are infinite."""
    low, high = raw["low"], raw["high"]
    ends = {"low": -math.inf if low is None else low, "high": math.inf if high is None else high}
    return Estimate(**{**raw, **ends})


def share(successes: int, n: int, *, higher_is_better: bool = True) -> Estimate:
    """Share of `n` independent trials with Clopper and Pearson's exact 95 % interval.

    Its coverage is at least what it says for every n and every true share, 0 and 1 too, which no
    approximation can promise for the few episodes of a closed loop; the price is some width.

    Raises:
        UserError: no trial, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UserError(
            f"A share needs at least one trial and 0 to n successes, found {successes} of {n}."
        )
    return Estimate(
        mean=successes / n,
        n=n,
        low=_least_share(successes, n),
        high=1.0 - _least_share(n - successes, n),
        unit="",
        higher_is_better=higher_is_better,
    )


def interval_text(found: Estimate, *, digits: int = 3, scale: float = 1.0) -> str:
    """The interval times `scale` for a table, such as "0.100 to 0.300", or "no interval"."""
    if not found.has_interval:
        return "no interval"
    return f"{scale * found.low:.{digits}f} to {scale * found.high:.{digits}f}"


def _least_share(successes: int, n: int) -> float:
    """The true share at which so many successes or more have a probability of 2.5 %."""
    if successes == 0:
        return 0.0
    k = np.arange(successes, n + 1)
    ways = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        tail = np.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p)).sum()
        low, high = (p, high) if tail < TAIL else (low, p)
    return (low + high) / 2


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
