"""Loss by model size and data: L(N, D) = E + A / N^a + B / D^b (arXiv 2203.15556, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreact.errors import UserError

PARAMETERS = 5


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """A fitted law.

    Attributes:
        E: loss that neither size nor data removes, nats.
        A, a: what size adds.
        B, b: what data adds.
        error: root mean square of the relative residuals.
    """

    E: float
    A: float
    a: float
    B: float
    b: float
    error: float

    def __call__(self, n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
        """Loss at N parameters and D tokens."""
        n, d = np.asarray(n, np.float64), np.asarray(d, np.float64)
        return self.E + self.A * n**-self.a + self.B * d**-self.b

    def __str__(self) -> str:
        terms = f"{self.A:.3g} / N^{self.a:.3f} + {self.B:.3g} / D^{self.b:.3f}"
        return f"L(N, D) = {self.E:.3f} + {terms}"

    def best_size(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of least loss for a budget of 6 N D floating-point operations.

        Raises:
            UserError: the law has no optimum (an exponent or a factor is zero).
        """
        if min(self.A * self.a, self.B * self.b) <= 0:
            raise UserError(
                "The fitted law does not fall with both size and data, so it has no best size."
            )
        # d/dN of L(N, C / 6N) = 0; g as in arXiv 2203.15556, equation 4.
        g = (self.a * self.A / (self.b * self.B)) ** (1.0 / (self.a + self.b))
        n = g * (flops / 6.0) ** (self.b / (self.a + self.b))
        return n, flops / 6.0 / n


def fit_scaling_law(n: Sequence[float], d: Sequence[float], loss: Sequence[float]) -> ScalingLaw:
    """Least squares of the relative error, with E, A, B >= 0 and exponents in 0.02..2.

    For given exponents the law is linear in E, A and B; the exponents are searched on a grid that
    is refined around its best point, so there is no starting point to choose and no local solver to
    fail.

    Args:
        n: parameters of each run.
        d: tokens each run has seen.
        loss: its validation loss, nats.

    Raises:
        UserError: fewer than six runs, or fewer than three sizes or amounts of data, or numbers
            that are no losses.
    """
    x, y, z = (np.asarray(values, np.float64) for values in (n, d, loss))
    if not (np.isfinite(z).all() and min(x.min(initial=1), y.min(initial=1), z.min(initial=1)) > 0):
        raise UserError("A scaling law needs positive, finite sizes, tokens and losses.")
    if len(z) <= PARAMETERS or len(set(x)) < 3 or len(set(y)) < 3:
        raise UserError(
            f"A law with {PARAMETERS} unknowns needs six runs or more, of three sizes and three "
            f"amounts of data or more; found {len(z)} runs, {len(set(x))} sizes and {len(set(y))} "
            "amounts."
        )
    # Counted in geometric means, the three columns of the least squares are of one size.
    scale_n, scale_d = np.exp(np.log(x).mean()), np.exp(np.log(y).mean())
    grid_a = grid_b = np.geomspace(0.02, 2.0, 25)
    best: tuple[float, float, float, np.ndarray] | None = None
    for _ in range(5):
        for a in grid_a:
            for b in grid_b:
                terms = [np.ones_like(z), (x / scale_n) ** -a, (y / scale_d) ** -b]
                columns = np.stack(terms, axis=1) / z[:, None]  # (runs, 3): shares of the loss
                factors = _nonnegative(columns)
                error = float(np.mean((columns @ factors - 1.0) ** 2))
                if best is None or error < best[0]:
                    best = error, float(a), float(b), factors
        assert best is not None
        grid_a, grid_b = _around(grid_a, best[1]), _around(grid_b, best[2])
    assert best is not None
    error, a, b, (e, big_a, big_b) = best
    return ScalingLaw(
        E=float(e),
        A=float(big_a * scale_n**a),
        a=a,
        B=float(big_b * scale_d**b),
        b=b,
        error=float(np.sqrt(error)),
    )


def _nonnegative(columns: np.ndarray) -> np.ndarray:
    """Factors >= 0 with columns @ factors closest to one, from every subset of the 3 columns."""
    best, least = np.zeros(3), np.inf
    for subset in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):
        factors = np.linalg.lstsq(columns[:, subset], np.ones(len(columns)), rcond=None)[0]
        if (factors >= 0).all():
            error = np.mean((columns[:, subset] @ factors - 1.0) ** 2)
            if error < least:
                best, least = np.zeros(3), error
                best[subset] = factors
    return best


def _around(grid: np.ndarray, value: float) -> np.ndarray:
    """A grid of as many points within one step of `value`."""
    step = grid[1] / grid[0]
    return np.geomspace(max(value / step, 0.02), min(value * step, 2.0), len(grid))
