"""Correlation of estimates with outcomes, with intervals over independent episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foreact.errors import UserError
from foreact.evals.estimate import ROUNDING, all_alike
from foreact.types import Estimate

DRAWS = 1000
"""Bootstrap draws; over seeds, the interval's ends vary by a few hundredths of its width."""


def correlation_estimate(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    groups: Sequence[int] | np.ndarray,
    *,
    ranks: bool = False,
    seed: int = 0,
) -> Estimate:
    """Pearson's or Spearman's correlation with a 95 % percentile bootstrap over groups.

    Whole groups are drawn with replacement, since states of one episode resemble each other. With
    fewer than about ten groups the interval is too narrow, as every percentile bootstrap's is.
    Where all draws agree, as those of one group do, they tell nothing: it is then [-1, 1].

    Args:
        x, y: finite numbers (N,), neither all alike.
        groups: the independent unit of each, such as its episode, (N,).
        ranks: correlate the ranks, equal values sharing theirs.
        seed: of the bootstrap's draws.

    Returns:
        An estimate whose `n` is the number of groups.

    Raises:
        UserError: lengths that differ, values that are not finite or all alike.
    """
    x, y, groups = np.asarray(x, np.float64), np.asarray(y, np.float64), np.asarray(groups)
    if not len(x) == len(y) == len(groups):
        raise UserError(
            f"A correlation needs pairs and a group for each, found {len(x)}, "
            f"{len(y)} and {len(groups)}."
        )
    if (
        not (np.isfinite(x).all() and np.isfinite(y).all())
        or len(x) < 2
        or all_alike(x)
        or all_alike(y)
    ):
        raise UserError(
            f"A correlation needs finite values of which some differ, found {len(x)} pairs that "
            "are all alike, NaN or infinite; look at what was measured."
        )
    _, of = np.unique(groups, return_inverse=True)
    n = int(of.max()) + 1
    mean = float(_correlation(x, y, np.ones_like(x), ranks))
    low, high = -1.0, 1.0
    if n > 1:
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        drawn = _correlation(x, y, counts[:, of].astype(np.float64), ranks)
        drawn = drawn[np.isfinite(drawn)]  # where a draw makes one side constant it has none
        if len(drawn) and np.ptp(drawn) > ROUNDING:
            low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    return Estimate(
        mean=mean, n=n, low=min(low, mean), high=max(high, mean), unit="", higher_is_better=True
    )


def mean_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks of values (N,) of which each occurs `weights` (..., N) times, 1 the least: (..., N).

    Equal ones share the mean of their ranks.
    """
    _, of = np.unique(values, return_inverse=True)
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(of.max() + 1))
    counts = np.add.reduceat(weights[..., order], starts, axis=-1)
    return (np.cumsum(counts, axis=-1) - (counts - 1) / 2)[..., of]


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray, ranks: bool) -> np.ndarray:
    """Weighted correlation of pairs (N,), weights (..., N) -> (...); NaN if a side is constant."""
    if ranks:
        x, y = mean_ranks(x, weights), mean_ranks(y, weights)
    total = weights.sum(axis=-1, keepdims=True)
    x, y = (v - (weights * v).sum(axis=-1, keepdims=True) / total for v in (x, y))
    together, of_x, of_y = ((weights * p).sum(axis=-1) for p in (x * y, x * x, y * y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return together / np.sqrt(of_x * of_y)
