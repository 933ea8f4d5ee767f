"""How far ahead sampled futures lie, against the geometric law of an occupancy's delays.

A sample bears no date, so it is given that of the true state that shares most tokens with it. Where
states recur, as in a gait, it may be given that of another round: the search is kept to the delays
that 99 % of the law covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Delays:
    """Delays of sampled futures, judged by the nearest state of the true future.

    Attributes:
        shares: share of the samples whose nearest true state lies 1, 2, ... steps ahead, float64
            (D,).
        law: what a perfect model would show: (1 - gamma) gamma^(k-1) over the same delays, scaled
            to sum 1.
        distance: mean share of tokens in which a sample differs from its nearest true state, 0..1.
        step: the same between the present state and the next, to judge `distance` by.
    """

    shares: np.ndarray
    law: np.ndarray
    distance: float
    step: float

    @property
    def mean(self) -> float:
        """Of the samples, steps."""
        return _mean(self.shares)

    @property
    def mean_law(self) -> float:
        """Of the law, steps."""
        return _mean(self.law)

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "mean_law": self.mean_law,
            "distance": self.distance,
            "step": self.step,
            "shares": self.shares.round(6).tolist(),
            "law": self.law.round(6).tolist(),
        }


class DelayCount:
    """Gathers `Delays` state by state."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.shares, self.law = np.zeros(0), np.zeros(0)
        self.distances: list[float] = []
        self.steps: list[float] = []

    def add(self, context: Tensor, samples: Tensor, future: Tensor) -> None:
        """Add one state.

        Args:
            context: the state itself, (T, h, w).
            samples: its S samples, (S, T, h, w).
            future: the true states that follow it, (J, T, h, w).
        """
        shares, distance = nearest_delays(samples, future)
        self.shares = _sum(self.shares, shares.cpu().numpy())
        self.law = _sum(self.law, geometric_law(self.gamma, len(future)))
        self.distances.append(float(distance.mean()))
        self.steps.append(float((future[0] != context).double().mean()))

    def result(self) -> Delays:
        count = len(self.distances)
        return Delays(
            shares=self.shares / count,
            law=self.law / count,
            distance=float(np.mean(self.distances)),
            step=float(np.mean(self.steps)),
        )


def nearest_delays(samples: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
    """Where in the true future each sampled state lies.

    Args:
        samples: int64 (S, T, h, w).
        future: the true states 1, 2, ... steps ahead, int64 (J, T, h, w).

    Returns:
        Share of the samples at each delay, float64 (J,), where equally near states share a sample
        evenly; and the share of tokens in which each sample differs from its nearest state, float64
        (S,).
    """
    flat, true = samples.flatten(1), future.flatten(1)
    differing = torch.stack([(flat != state).sum(dim=1) for state in true], dim=1)  # (S, J)
    least = differing.min(dim=1, keepdim=True).values
    nearest = (differing == least).double()
    shares = (nearest / nearest.sum(dim=1, keepdim=True)).mean(dim=0)
    return shares, least[:, 0].double() / flat.shape[1]


def geometric_law(gamma: float, steps: int) -> np.ndarray:
    """(1 - gamma) gamma^(k-1) for k = 1..steps, scaled to sum 1: float64 (steps,)."""
    law = gamma ** np.arange(steps, dtype=np.float64)
    return law / law.sum()


def _mean(shares: np.ndarray) -> float:
    return float((np.arange(1, len(shares) + 1) * shares).sum())


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum of two histograms that start at the same delay."""
    out = np.zeros(max(len(a), len(b)))
    out[: len(a)] += a
    out[: len(b)] += b
    return out
