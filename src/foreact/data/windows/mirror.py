"""The mirrors at the sides of UMI's gripper, drawn black: the robot that acts may have none.

Their corners are given for GoPro pictures of 2704 x 2028 pixels, centred and divided by the height,
so that they hold for whole pictures and for squares cut from their middle. Sets recorded without
mirrors, or that show the mirrors' content swapped, must stay as they are.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

WIDTH, HEIGHT = 2704, 2028
LEFT = ((540, 1700), (680, 1450), (590, 1070), (290, 1130), (290, 1770), (550, 1770))
"""Corners (x, y) of the left mirror; the right one is its mirror image."""


def blacken(images: np.ndarray) -> np.ndarray:
    """uint8 (..., H, W, 3) -> a copy with black mirrors, their edges smooth."""
    rows, columns, share = _light(images.shape[-3], images.shape[-2])
    result = images.copy()
    pixels = result[..., rows, columns, :]
    result[..., rows, columns, :] = np.rint(pixels * share[:, None]).astype(np.uint8)
    return result


def mirror_coverage(height: int, width: int) -> np.ndarray:
    """How much of each pixel is black, 0..1: float32 (H, W).

    Corners are rounded to whole pixels, whose centres they are. A pixel on an edge is black, and
    one pixel further out nothing is.
    """
    corners = np.array(LEFT, np.float64)
    corners = (corners - (WIDTH / 2, HEIGHT / 2)) / HEIGHT
    both = [corners, corners * (-1.0, 1.0)]
    y, x = np.mgrid[:height, :width]
    points = np.stack([x, y], axis=-1).astype(np.float64)
    covered = np.zeros((height, width))
    for polygon in both:
        placed = np.rint(polygon * height + (width / 2, height / 2))
        inside, distance = _distance(points, placed)
        covered = np.maximum(covered, np.where(inside, 1.0, np.clip(1.0 - distance, 0.0, 1.0)))
    return covered.astype(np.float32)


@lru_cache(maxsize=8)
def _light(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the pixels that change, (N,), and how much light they keep, (N,)."""
    covered = mirror_coverage(height, width)
    rows, columns = np.nonzero(covered)
    return rows, columns, 1.0 - covered[rows, columns]


def _distance(points: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether points (..., 2) lie inside a polygon (N, 2), and how far from its edges they are."""
    inside = np.zeros(points.shape[:-1], bool)
    nearest = np.full(points.shape[:-1], np.inf)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge = end - start
        offset = points - start
        length = float(edge @ edge)
        along = np.clip(offset @ edge / length, 0.0, 1.0) if length else np.zeros(inside.shape)
        gap = offset - along[..., None] * edge
        nearest = np.minimum(nearest, np.hypot(gap[..., 0], gap[..., 1]))
        # Even and odd: how many edges a ray to the right crosses.
        crosses = (start[1] > points[..., 1]) != (end[1] > points[..., 1])
        if edge[1]:
            where = start[0] + (points[..., 1] - start[1]) * edge[0] / edge[1]
            inside ^= crosses & (points[..., 0] < where)
    return inside, nearest
