"""Means over windows, with intervals that allow for correlation within a drive."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from foreact.errors import UserError
from foreact.evals.estimate import ROUNDING, student_quantile
from foreact.types import Estimate


def clustered_estimate(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[int] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    unit: str = "",
    higher_is_better: bool = True,
) -> Estimate:
    """Weighted mean of all values with a 95 % interval over independent groups.

    Overlapping windows are no independent draws, so the spread is that of the groups: the
    linearised variance of a ratio, G / (G - 1) sum_g (sum_i w_i (x_i - mean))^2 / (sum w)^2, with
    Student's quantile for G - 1 degrees of freedom. With one value per group it is the interval of
    `estimate`. One group, or values that do not differ at all, tell no interval: (-inf, inf).

    Args:
        values: finite numbers, (N,).
        groups: the independent unit of each, such as its episode, (N,).
        weights: how much each counts, > 0, (N,); default: all alike.

    Returns:
        An estimate whose `n` is the number of groups.

    Raises:
        UserError: no value, one that is not finite, or lengths that differ.
    """
    x, g = np.asarray(values, dtype=np.float64).reshape(-1), np.asarray(groups).reshape(-1)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64).reshape(-1)
    if not len(x) == len(g) == len(w):
        raise UserError(
            f"Every value needs a group and a weight, found {len(x)}, {len(g)} and {len(w)}."
        )
    if not len(x) or not np.isfinite(x).all() or not (w > 0).all():
        raise UserError(
            f"A mean needs at least one value, all finite, found {len(x)}, "
            f"{int((~np.isfinite(x)).sum())} of them NaN or infinite; look at what was measured."
        )
    mean = float((w * x).sum() / w.sum())
    _, of = np.unique(g, return_inverse=True)
    residuals = np.bincount(of, weights=w * (x - mean))
    n = len(residuals)
    reach = math.inf
    # Equal groups tell nothing of how others would differ, whatever lies within them.
    if n > 1 and np.abs(residuals).max() > ROUNDING * float((w * np.abs(x)).sum()):
        reach = (
            student_quantile(n - 1)
            * math.sqrt(n / (n - 1) * np.square(residuals).sum())
            / float(w.sum())
        )
    return Estimate(
        mean=mean,
        n=n,
        low=mean - reach,
        high=mean + reach,
        unit=unit,
        higher_is_better=higher_is_better,
    )
