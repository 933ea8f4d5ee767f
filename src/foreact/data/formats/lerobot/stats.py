"""Statistics as LeRobot keeps them, of a set and of each of its episodes."""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
FRAMES = 64
"""Frames of an episode that the statistics of a camera look at, evenly spaced."""
SIDE = 128
"""Pixels along the longer side of a frame that they look at, at most about this many."""

Stats = dict[str, Any]


def number_stats(values: np.ndarray) -> Stats:
    """Statistics of numbers (N, D), N >= 1: lists of D floats, and the count in a list."""
    wide = values.astype(np.float64)
    stats: Stats = {
        "min": wide.min(0).tolist(),
        "max": wide.max(0).tolist(),
        "mean": wide.mean(0).tolist(),
        "std": wide.std(0).tolist(),
        "count": [len(wide)],
    }
    quantiles = np.quantile(wide, list(QUANTILES.values()), axis=0)
    return stats | {name: q.tolist() for name, q in zip(QUANTILES, quantiles, strict=True)}


class Colours:
    """How often each value of each colour occurs in some pixels of some frames."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, 256), np.int64)
        self.frames = 0

    def add(self, frames: np.ndarray) -> None:
        """Look at an episode, uint8 (T, H, W, 3)."""
        chosen = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(np.int64))
        stride = -(-max(frames.shape[1:3]) // SIDE)
        pixels = frames[chosen, ::stride, ::stride]
        for colour in range(3):
            self.counts[colour] += np.bincount(pixels[..., colour].reshape(-1), minlength=256)
        self.frames += len(chosen)

    def include(self, other: Colours) -> None:
        self.counts += other.counts
        self.frames += other.frames

    def stats(self) -> Stats:
        """Statistics in 0..1 as (3, 1, 1) lists; the count is of the frames looked at."""
        levels, total = np.arange(256) / 255.0, self.counts.sum(1)
        cumulative = self.counts.cumsum(1)
        mean = (self.counts * levels).sum(1) / total
        variance = (self.counts * (levels - mean[:, None]) ** 2).sum(1) / total
        found = self.counts > 0
        rows = {
            "min": levels[found.argmax(1)],
            "max": levels[255 - found[:, ::-1].argmax(1)],
            "mean": mean,
            "std": np.sqrt(variance),
        }
        for name, share in QUANTILES.items():
            rows[name] = levels[(cumulative >= share * total[:, None]).argmax(1)]
        stats: Stats = {name: values[:, None, None].tolist() for name, values in rows.items()}
        return stats | {"count": [self.frames]}
