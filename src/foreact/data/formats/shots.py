"""Cut detection: frames of a video -> its shots. Fades and dissolves are not detected."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from foreact.errors import UserError

RATIO = 2.0
"""A cut changes the picture by this factor more than the frames around it usually do."""
FLOOR = 10.0
"""Grey levels (0..255) that a cut changes at least; keeps noise in a still picture from counting.
"""
REACH = 6
"""Changes on either side with which one is compared."""
GRID = 64
"""Means over squares of pixels are compared, so many along the longer side at most."""


def find_shots(frames: Iterable[np.ndarray]) -> list[range]:
    """Split a video where consecutive frames differ much more than those around them do.

    A change is the mean absolute difference of two reduced frames. It is a cut if it exceeds
    `FLOOR`, and `RATIO` times the median of the `REACH` changes before it, and of those after it;
    so fast motion, where every change is large, is no cut.

    Args:
        frames: uint8 (H, W, 3) each, in order; one is held at a time.

    Returns:
        The frames of every shot, in order and without gaps.

    Raises:
        UserError: no frame, or frames of different sizes.
    """
    changes, before = [], None
    for frame in frames:
        now = _reduced(frame)
        if before is not None:
            if now.shape != before.shape:
                raise UserError(
                    "The frames of a video should have one size, found "
                    f"{before.shape} and {now.shape}."
                )
            changes.append(float(np.abs(now - before).mean()))
        before = now
    if before is None:
        raise UserError("A video without a frame has no shots; look at how it was decoded.")
    cuts = [
        i + 1 for i, change in enumerate(changes) if change > max(FLOOR, RATIO * _usual(changes, i))
    ]
    edges = [0, *cuts, len(changes) + 1]
    return [range(start, stop) for start, stop in pairwise(edges)]


def _reduced(frame: np.ndarray) -> np.ndarray:
    """Means over squares of pixels; a remainder at the right and lower edge is left out."""
    side = -(-max(frame.shape[:2]) // GRID)
    height, width = (max(1, n // side) for n in frame.shape[:2])
    squares = frame[: height * side, : width * side].reshape(
        height, -1, width, side, frame.shape[2]
    )
    return squares.mean(axis=(1, 3), dtype=np.float32)


def _usual(changes: list[float], at: int) -> float:
    """The greater of the medians before and after one change."""
    sides = changes[max(0, at - REACH) : at], changes[at + 1 : at + 1 + REACH]
    return max((float(np.median(side)) for side in sides if side), default=0.0)
