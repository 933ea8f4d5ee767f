"""Poses of a hand as matrices, and written relative to one another (UMI, arXiv 2402.10329).

A pose is a matrix (4, 4): rotation and position of the hand in some frame of the world.

    absolute    as recorded
    relative    T_base^-1 T: as seen from the base pose; worlds of different origin agree on it
    legacy      difference of positions in the world, R R_base^-1: UMI's "rel", kept for its weights
    delta       as "legacy", but each pose to the one before it, the first to the base
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from foreact.data.rotations import Form, convert

Reference = Literal["absolute", "relative", "legacy", "delta"]


def pose_matrix(position: np.ndarray, rotation: np.ndarray, form: Form) -> np.ndarray:
    """Positions (..., 3) and rotations in a form of `rotations` -> poses (..., 4, 4)."""
    poses = np.zeros((*np.shape(position)[:-1], 4, 4))
    poses[..., :3, :3] = convert(rotation, form, "matrix")
    poses[..., :3, 3] = position
    poses[..., 3, 3] = 1.0
    return poses


def pose_vector(poses: np.ndarray, form: Form) -> np.ndarray:
    """Poses (..., 4, 4) -> position and rotation in one vector (..., 3 + size of the form)."""
    rotation = convert(poses[..., :3, :3], "matrix", form)
    return np.concatenate([poses[..., :3, 3], rotation], axis=-1)


def from_vector(vectors: np.ndarray, form: Form) -> np.ndarray:
    """Inverse of `pose_vector`."""
    return pose_matrix(vectors[..., :3], vectors[..., 3:], form)


def inverse(poses: np.ndarray) -> np.ndarray:
    """T^-1 of poses (..., 4, 4)."""
    rotation = np.swapaxes(poses[..., :3, :3], -1, -2)
    result = np.zeros_like(poses)
    result[..., :3, :3] = rotation
    result[..., :3, 3] = -(rotation @ poses[..., :3, 3, None])[..., 0]
    result[..., 3, 3] = 1.0
    return result


def refer(poses: np.ndarray, base: np.ndarray, reference: Reference) -> np.ndarray:
    """Absolute poses (..., T, 4, 4) written relative to a base pose (..., 4, 4)."""
    if reference == "absolute":
        return poses
    if reference == "relative":
        return inverse(base)[..., None, :, :] @ poses
    if reference == "legacy":
        return _change(base[..., None, :, :], poses)
    before = np.concatenate([base[..., None, :, :], poses[..., :-1, :, :]], axis=-3)
    return _change(before, poses)


def restore(referred: np.ndarray, base: np.ndarray, reference: Reference) -> np.ndarray:
    """Inverse of `refer`: what the robot is sent."""
    if reference == "absolute":
        return referred
    if reference == "relative":
        return base[..., None, :, :] @ referred
    if reference == "legacy":
        return _changed(base[..., None, :, :], referred)
    poses, pose = [], base
    for step in range(referred.shape[-3]):
        pose = _changed(pose, referred[..., step, :, :])
        poses.append(pose)
    return np.stack(poses, axis=-3)


def _change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """From one pose to another: difference of positions, R_after R_before^-1."""
    before = np.broadcast_to(before, after.shape)
    result = after.copy()
    result[..., :3, :3] = after[..., :3, :3] @ np.swapaxes(before[..., :3, :3], -1, -2)
    result[..., :3, 3] -= before[..., :3, 3]
    return result


def _changed(before: np.ndarray, change: np.ndarray) -> np.ndarray:
    before = np.broadcast_to(before, change.shape)
    result = change.copy()
    result[..., :3, :3] = change[..., :3, :3] @ before[..., :3, :3]
    result[..., :3, 3] += before[..., :3, 3]
    return result
