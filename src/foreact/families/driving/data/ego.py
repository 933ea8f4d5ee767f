"""Ego motion from poses: waypoints, relative rotations, yaw rate, high-level commands.

A pose is float64 (7,): x, y, z in metres and the unit quaternion w, x, y, z, which takes the ego
frame (x forward, y left, z up) to the world. Leading axes broadcast. All is numpy.
"""

from __future__ import annotations

import numpy as np

from foreact.errors import UserError

POSE = 7
COMMANDS = ("right", "left", "straight")
RIGHT, LEFT, STRAIGHT = range(3)


def waypoints(origin: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Where the ego vehicle goes, on the ground.

    The height is dropped in the world, before the full three-dimensional rotation, as VaVAM was
    trained.

    Args:
        origin: poses (..., 7).
        targets: later poses (..., K, 7).

    Returns:
        float64 (..., K, 2): metres forward and to the left of `origin`.
    """
    moved = targets[..., :3] - origin[..., None, :3]
    moved = np.concatenate([moved[..., :2], np.zeros_like(moved[..., 2:])], axis=-1)
    return _rotate(_inverse(origin[..., None, 3:]), moved)[..., :2]


def relative_rotations(origin: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rotations of `targets` (..., K, 7) seen from `origin` (..., 7): quaternions (..., K, 4)."""
    return _multiply(_inverse(origin[..., None, 3:]), targets[..., 3:])


def yaw_rate(rotations: np.ndarray) -> np.ndarray:
    """Mean change of heading from step to step, without its sign.

    Args:
        rotations: quaternions (..., K, 4) of consecutive steps, K >= 2.

    Returns:
        float64 (...), radians per step.
    """
    w, x, y, z = np.moveaxis(rotations, -1, 0)
    yaw = np.unwrap(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y**2 + z**2)), axis=-1)
    return np.abs((yaw[..., -1] - yaw[..., 0]) / (yaw.shape[-1] - 1))


def commands(origin: np.ndarray, target: np.ndarray, threshold: float) -> np.ndarray:
    """The high-level command that leads from one pose to another.

    Args:
        origin, target: poses (..., 7).
        threshold: metres; further to a side counts as a turn.

    Returns:
        int64 (...): 0 right, 1 left, 2 straight.
    """
    left = _rotate(_inverse(origin[..., 3:]), target[..., :3] - origin[..., :3])[..., 1]
    return np.where(left > threshold, LEFT, np.where(left < -threshold, RIGHT, STRAIGHT))


def check_poses(poses: np.ndarray, label: str) -> np.ndarray:
    """Poses as float64 (N, 7), checked.

    Raises:
        UserError: another shape, values that are not finite, or rotations that are no unit
            quaternions.
    """
    poses = np.asarray(poses, np.float64)
    if poses.ndim != 2 or poses.shape[1] != POSE:
        raise UserError(
            f"The poses of {label} should be (N, 7): x, y, z, qw, qx, qy, qz; found {poses.shape}."
        )
    valid = np.isfinite(poses).all(axis=1)
    valid &= np.abs(np.linalg.norm(poses[:, 3:], axis=1) - 1.0) < 1e-3
    if not valid.all():
        row = int(np.argmin(valid))  # the first that is not
        raise UserError(
            f"The poses of {label} should be finite with unit quaternions; row {row} is "
            f"{poses[row].tolist()}."
        )
    return poses


def _inverse(q: np.ndarray) -> np.ndarray:
    return q * np.array([1.0, -1.0, -1.0, -1.0]) / (q**2).sum(axis=-1, keepdims=True)


def _multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    aw, av, bw, bv = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    w = aw * bw - (av * bv).sum(axis=-1, keepdims=True)
    return np.concatenate([w, aw * bv + bw * av + np.cross(av, bv)], axis=-1)


def _rotate(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    # q v q^-1 for a unit quaternion (w, u): v + 2 (w u x v + u x (u x v)).
    u = q[..., 1:]
    cross = np.cross(u, v)
    return v + 2.0 * (q[..., :1] * cross + np.cross(u, cross))
