"""Rotations in the forms that robots and data sets write, each made into any other.

    axis_angle  (..., 3)     axis times angle, in radians
    quat_xyzw   (..., 4)     quaternion, real part last: robosuite, ROS, scipy
    quat_wxyz   (..., 4)     quaternion, real part first: MuJoCo, pytorch3d
    matrix      (..., 3, 3)
    rows_6d     (..., 6)     the first two rows of the matrix, one after the other: UMI, pytorch3d
    columns_6d  (..., 6)     its first two columns: Zhou et al. 2019, and many models since

Read in the other order, `rows_6d` is the inverse rotation; with the hand pointing down the two
hardly differ, so a mistake shows on tilted poses only. An axis-angle jumps to its opposite near
half a turn: averages, differences and scaling belong to matrices or 6 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from foreact.errors import UserError

Form = Literal["axis_angle", "quat_xyzw", "quat_wxyz", "matrix", "rows_6d", "columns_6d"]

QUATERNION_NORM = (0.9, 1.1)
"""What the norm of a unit quaternion may be after rounding and interpolation; else it is none."""


def convert(rotations: np.ndarray, source: Form, target: Form) -> np.ndarray:
    """Rotations written in another form.

    Args:
        rotations: float (..., size of the source's form), any number of them.
        source: how they are written.
        target: how they shall be.

    Returns:
        float64 (..., size of the target's form). Quaternions have a real part >= 0 where they come
        from a matrix or 6 numbers; an axis-angle out of a matrix turns by at most half a turn.

    Raises:
        UserError: another shape, or quaternions whose norm is far from 1.
    """
    rotations = np.asarray(rotations, np.float64)
    shape = SHAPES[source]
    if rotations.shape[-len(shape) :] != shape:
        raise UserError(
            f"Rotations as {source} should have shape (..., {', '.join(map(str, shape))}), found "
            f"{rotations.shape}; check which form they are written in."
        )
    if source.startswith("quat"):
        require_unit(rotations)
    if source == target:
        return rotations
    if source.startswith("quat") and target.startswith("quat"):
        return np.roll(rotations, 1 if target == "quat_wxyz" else -1, axis=-1)
    # Straight across, the angle may be more than half a turn, and comes back as it was.
    if source == "axis_angle" and target.startswith("quat"):
        quaternion = _quaternion_of_axis_angle(rotations)
        return quaternion if target == "quat_wxyz" else np.roll(quaternion, -1, axis=-1)
    if source.startswith("quat") and target == "axis_angle":
        return _axis_angle(convert(rotations, source, "quat_wxyz"))
    return _FROM_MATRIX[target](_TO_MATRIX[source](rotations))


def require_unit(quaternions: np.ndarray) -> None:
    """Raise a `UserError` for quaternions (..., 4) that no rounding explains."""
    norms = np.linalg.norm(quaternions, axis=-1)
    low, high = QUATERNION_NORM
    if norms.size and not ((norms > low) & (norms < high)).all():
        worst = norms.flat[np.abs(norms - 1.0).argmax()]
        raise UserError(
            f"Quaternions should have norm 1, found {worst:.3g}; check which columns they are in."
        )


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle (...), in radians 0..pi, between the rotations of matrices (..., 3, 3)."""
    relative = np.swapaxes(np.asarray(a), -1, -2) @ np.asarray(b)
    return np.linalg.norm(_axis_angle(_quaternion(relative)), axis=-1)


def _quaternion_of_axis_angle(axis_angle: np.ndarray) -> np.ndarray:
    """(..., 3) -> (..., 4), real part first; a vector of zeros is no rotation."""
    angle = np.linalg.norm(axis_angle, axis=-1, keepdims=True)
    # sin(x / 2) / x -> 1/2; np.sinc(x) is sin(pi x) / (pi x)
    scale = 0.5 * np.sinc(angle / (2.0 * np.pi))
    return np.concatenate([np.cos(0.5 * angle), axis_angle * scale], axis=-1)


def _axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """(..., 4), real part first -> (..., 3)."""
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    sine = np.linalg.norm(imaginary, axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, real)
    scale = 0.5 * np.sinc(angle / (2.0 * np.pi))  # sin(angle / 2) / angle
    return np.divide(imaginary, scale, out=2.0 * imaginary, where=scale > 1e-12)


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    """(..., 4), real part first, of any length -> (..., 3, 3)."""
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    s = 2.0 / (quaternion**2).sum(axis=-1)
    rows = [
        [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
        [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
        [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _quaternion(matrix: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> (..., 4), real part first and >= 0."""
    d = np.diagonal(matrix, axis1=-2, axis2=-1)
    trace = d.sum(axis=-1, keepdims=True)
    # 4 q_i q_j for all i, j: row i is the quaternion times 4 q_i. The row of the largest q_i loses
    # no digits.
    products = np.empty((*matrix.shape[:-2], 4, 4))
    products[..., 0, 0] = 1.0 + trace[..., 0]
    squares = 1.0 - trace + 2.0 * d
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        products[..., 1 + i, 1 + i] = squares[..., i]
        products[..., 0, 1 + i] = products[..., 1 + i, 0] = matrix[..., k, j] - matrix[..., j, k]
        both = matrix[..., i, j] + matrix[..., j, i]
        products[..., 1 + i, 1 + j] = products[..., 1 + j, 1 + i] = both
    largest = np.diagonal(products, axis1=-2, axis2=-1).argmax(axis=-1)
    row = np.take_along_axis(products, largest[..., None, None], axis=-2)[..., 0, :]
    row = row / np.linalg.norm(row, axis=-1, keepdims=True)
    return np.where(row[..., :1] < 0.0, -row, row)


def _orthonormal(pair: np.ndarray) -> np.ndarray:
    """Two vectors (..., 6) -> the matrix (..., 3, 3) of orthonormal rows nearest in order.

    The first keeps its direction; of vectors that are 0 or parallel nothing is known, and the
    result is no rotation.
    """
    first, second = pair[..., :3], pair[..., 3:]
    first = _unit(first)
    second = _unit(second - (first * second).sum(axis=-1, keepdims=True) * first)
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


_TO_MATRIX: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "axis_angle": lambda x: _matrix(_quaternion_of_axis_angle(x)),
    "quat_xyzw": lambda x: _matrix(np.roll(x, 1, axis=-1)),
    "quat_wxyz": _matrix,
    "matrix": lambda x: x,
    "rows_6d": _orthonormal,
    "columns_6d": lambda x: np.swapaxes(_orthonormal(x), -1, -2),
}
_FROM_MATRIX: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "axis_angle": lambda m: _axis_angle(_quaternion(m)),
    "quat_xyzw": lambda m: np.roll(_quaternion(m), -1, axis=-1),
    "quat_wxyz": _quaternion,
    "matrix": lambda m: m,
    "rows_6d": lambda m: m[..., :2, :].reshape(*m.shape[:-2], 6),
    "columns_6d": lambda m: np.swapaxes(m[..., :2], -1, -2).reshape(*m.shape[:-2], 6),
}
SHAPES: Mapping[str, tuple[int, ...]] = {
    "axis_angle": (3,),
    "quat_xyzw": (4,),
    "quat_wxyz": (4,),
    "matrix": (3, 3),
    "rows_6d": (6,),
    "columns_6d": (6,),
}
"""Form -> shape of one rotation."""
