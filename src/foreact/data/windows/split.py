"""Train-validation split by whole episodes, since neighbouring windows share most frames."""

from __future__ import annotations

import numpy as np

from foreact.errors import UserError


def split_episodes(n: int, val_ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split episodes 0..n-1 at random; same seed, same split as the reference implementation.

    Args:
        n: number of episodes.
        val_ratio: share for validation, 0..1. Above 0, both sides get at least one episode where n
            >= 2.
        seed: of the draw.

    Returns:
        Increasing int64 episode numbers (train, validation).
    """
    if not 0.0 <= val_ratio <= 1.0:
        raise UserError(f"val_ratio should lie in 0..1, found {val_ratio}.")
    held_out = np.zeros(n, dtype=bool)
    if val_ratio > 0.0 and n > 1:
        count = min(max(1, round(n * val_ratio)), n - 1)
        held_out[np.random.default_rng(seed).choice(n, size=count, replace=False)] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def downsample_episodes(episodes: np.ndarray, at_most: int | None, seed: int) -> np.ndarray:
    """Up to `at_most` of the episode numbers, chosen at random, ascending; None: all of them."""
    if at_most is None or len(episodes) <= at_most:
        return np.asarray(episodes)
    if at_most < 1:
        raise UserError(f"The number of episodes to keep should be at least 1, found {at_most}.")
    picked = np.random.default_rng(seed).choice(len(episodes), size=at_most, replace=False)
    return np.sort(np.asarray(episodes)[picked])
