"""Frechet distance between two sets of features: FID over pictures, FVD over clips."""

from __future__ import annotations

import warnings
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
    With C = R R^T, the trace of the root is the sum of the singular values of R_a^T R_b. That needs
    no general matrix root, stays real for covariances of deficient rank, and takes no square root
    of the product's rounding errors, so that a set is at distance 0 from itself. What rounding
    alone can make is returned as 0.

    With fewer samples than features on a side the covariance is of deficient rank and the distance
    far too large; that is warned of.

    Raises:
        UserError: fewer than 2 samples on a side, features of unlike width, or not finite.
    """
    mean_a, mean_b = a.mean, b.mean
    if mean_a.shape != mean_b.shape:
        raise UserError(
            f"Features of width {len(mean_a)} and {len(mean_b)} have no distance; use one network."
        )
    cov_a, cov_b = a.covariance, b.covariance
    width = len(mean_a)
    if not all(np.isfinite(part).all() for part in (mean_a, mean_b, cov_a, cov_b)):
        raise UserError(
            "The features are too large for a Frechet distance, or NaN or infinite; look at the "
            "network that makes them."
        )
    if (fewest := min(a.n, b.n)) <= width:
        warnings.warn(
            f"A Frechet distance between sets of {fewest} samples with {width} features is too "
            "large and rough; measure more samples than features.",
            stacklevel=2,
        )
    cross = np.linalg.svd(_root(cov_a).T @ _root(cov_b), compute_uv=False).sum()
    size = np.trace(cov_a) + np.trace(cov_b)
    distance = float(np.square(mean_a - mean_b).sum() + size - 2.0 * cross)
    # Float32 sums, as the reference takes them, may give a covariance eigenvalues below 0.
    same = np.array_equal(mean_a, mean_b) and np.array_equal(cov_a, cov_b)
    rounding = np.finfo(np.float64).eps * width * (abs(size) + np.square(mean_a - mean_b).max())
    return 0.0 if same or distance <= rounding else distance


def _root(covariance: np.ndarray) -> np.ndarray:
    """R of a covariance R R^T, (D, rank)."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
