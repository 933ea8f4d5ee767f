"""Frechet distance between two sets of features: FID over pictures, FVD over clips."""

from __future__ import annotations

from typing import Literal

import numpy as np

from foreact.errors import UserError

Accumulation = Literal["exact", "reference"]


class Moments:
    """Streaming mean and unbiased covariance of feature rows; memory is one D x D matrix.

    Args:
        accumulation: "exact" keeps centred moments in float64 and merges batches by Chan's formula.
            "reference" keeps float32 sums of rows and of outer products, as the evaluation of VaViM
            does; where the mean is large beside the spread, subtracting such sums loses most
            digits, so it serves comparison with published numbers only.
    """

    def __init__(self, accumulation: Accumulation = "exact") -> None:
        if accumulation not in ("exact", "reference"):
            raise UserError(
                f"Moments are accumulated 'exact' or as 'reference', found '{accumulation}'."
            )
        self.accumulation = accumulation
        self.n = 0
        self._first = np.zeros(0)
        self._second = np.zeros((0, 0))

    def add(self, rows: np.ndarray) -> None:
        """Take in feature rows (N, D), finite floats.

        Raises:
            UserError: another shape or width than before, or values that are not finite.
        """
        dtype = np.float64 if self.accumulation == "exact" else np.float32
        x = np.asarray(rows, dtype=dtype)
        if x.ndim != 2 or (self.n and x.shape[1] != self._first.shape[0]):
            expected = f"(N, {self._first.shape[0]})" if self.n else "(N, D)"
            raise UserError(
                f"Features should have shape {expected}, found {x.shape}; use one "
                "network for all of them."
            )
        if not np.isfinite(x).all():
            raise UserError(
                "The feature network returned NaN or infinite values; check its precision and "
                "preprocessing."
            )
        if not len(x):
            return
        if self.accumulation == "reference":
            self._first = x.sum(axis=0) + (self._first if self.n else 0)
            self._second = x.T @ x + (self._second if self.n else 0)
            self.n += len(x)
            return
        mean = x.mean(axis=0)
        centred = x - mean
        scatter = centred.T @ centred
        if self.n:
            apart = mean - self._first
            total = self.n + len(x)
            scatter += self._second + np.outer(apart, apart) * (self.n * len(x) / total)
            mean = self._first + apart * (len(x) / total)
        self._first, self._second = mean, scatter
        self.n += len(x)

    @property
    def mean(self) -> np.ndarray:
        """float64 (D,)."""
        self._require_rows(1)
        return np.asarray(
            self._first / self.n if self.accumulation == "reference" else self._first,
            dtype=np.float64,
        )

    @property
    def covariance(self) -> np.ndarray:
        """float64 (D, D), divided by n - 1."""
        self._require_rows(2)
        if self.accumulation == "reference":
            mean = self._first / self.n
            scatter = self._second - self.n * np.outer(mean, mean)
        else:
            scatter = self._second
        return np.asarray(scatter / (self.n - 1), dtype=np.float64)

    def _require_rows(self, least: int) -> None:
        if self.n < least:
            raise UserError(
                f"A Frechet distance needs at least 2 samples on either side, found {self.n}."
            )


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with these moments (Dowson and Landau 1982).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).
    The trace of the root is the sum of the square roots of the
    eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric and has those of C_a C_b; that needs
    no general matrix root and stays real for covariances of deficient rank.

    Raises:
        UserError: fewer than 2 samples on a side, or features of unlike width.
    """
    mean_a, mean_b = a.mean, b.mean
    if mean_a.shape != mean_b.shape:
        raise UserError(
            f"Features of width {len(mean_a)} and {len(mean_b)} have no distance; use one network."
        )
    cov_a, cov_b = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    between = root_a @ cov_b @ root_a
    cross = np.sqrt(np.linalg.eigvalsh((between + between.T) / 2).clip(min=0.0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross)
