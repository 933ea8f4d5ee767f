"""Smoothing of planned actions over time, for robots that would otherwise shiver.

mean    every number is the mean of itself and its two neighbours in time; the first and last
        step are their own neighbours. UVA does so on its robot, rotations and grippers
        included: rotations are then no rotations, and a gripper closes late.
pose    for actions of 10 numbers a hand (position 3, rotation 6, gripper 1): positions as
        "mean", rotations the nearest rotation to the mean matrix, grippers as planned
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from foreact.data.rotations import convert
from foreact.errors import UserError

Smoothing = Literal["mean", "pose"]
HAND = 10
"""Numbers of a hand in an action."""


def smooth(actions: np.ndarray, how: Smoothing) -> np.ndarray:
    """Smooth chunks of actions.

    Args:
        actions: float (..., K, A), K steps in order.
        how: see the head of this module.

    Returns:
        The same shape and dtype.

    Raises:
        UserError: an unknown way, or "pose" for actions that are no poses of hands.
    """
    if how not in get_args(Smoothing):
        raise UserError(f"Actions are smoothed by one of {get_args(Smoothing)}, not by '{how}'.")
    mean = _mean_of_three(actions)
    if how == "mean":
        return mean
    if actions.shape[-1] % HAND:
        raise UserError(
            f"Smoothing by 'pose' needs {HAND} numbers a hand (position 3, rotation 6, gripper 1), "
            f"found {actions.shape[-1]}; use 'mean' or none."
        )
    hands = (*actions.shape[:-1], actions.shape[-1] // HAND, HAND)
    result, planned = mean.reshape(hands).copy(), actions.reshape(hands)
    matrices = convert(planned[..., 3:9], "rows_6d", "matrix")
    flat = matrices.reshape(*actions.shape[:-1], -1)
    averaged = _nearest_rotation(_mean_of_three(flat).reshape(matrices.shape))
    result[..., 3:9] = convert(averaged, "matrix", "rows_6d")
    result[..., 9] = planned[..., 9]
    return result.reshape(actions.shape)


def _mean_of_three(values: np.ndarray) -> np.ndarray:
    """Mean over time with the neighbours, of (..., K, A)."""
    before = np.concatenate([values[..., :1, :], values[..., :-1, :]], axis=-2)
    after = np.concatenate([values[..., 1:, :], values[..., -1:, :]], axis=-2)
    return (before + values + after) / 3


def _nearest_rotation(matrices: np.ndarray) -> np.ndarray:
    """The rotation nearest to each matrix (..., 3, 3), in the sum of squared differences."""
    u, _, v = np.linalg.svd(matrices)
    # A reflection is turned into a rotation by the direction that matters least.
    u[..., :, -1] *= np.sign(np.linalg.det(u @ v))[..., None]
    return u @ v
