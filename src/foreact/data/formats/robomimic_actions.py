"""Actions of robosuite's arms: what the numbers of an arm mean, and in which form they come.

    stored absolute, 7   goal of the hand: position (m), axis-angle (rad), gripper
    stored delta, 7      change of both as a share of the largest one, in [-1, 1], gripper
    pose, 10             absolute: position (m), first two rows of the rotation matrix, gripper

Position and rotation are of the grip site in the world. The gripper's number is a command: -1 opens
it, 1 closes it. Two arms come one after the other, each whole.

Whether actions are absolute is told by their values. The file's `env_args` do not tell: copies with
absolute actions keep those of the recording.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from foreact.data.rotations import convert
from foreact.types import ActionSpec

ARM, POSE = 7, 10
"""Numbers of an arm as stored, and as a pose with a rotation of 6."""
NEAR = 0.1
"""Metres: goals lie this close to the hand, in the median."""
LARGEST_DELTA = 1.0 + 1e-3

ActionMode = Literal["absolute", "delta"]

_POSITION = ("x", "y", "z")
_NAMES = {
    "absolute": (*_POSITION, "rx", "ry", "rz", "gripper"),
    "delta": ("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
    "pose": (*_POSITION, "r00", "r01", "r02", "r10", "r11", "r12", "gripper"),
}
_UNITS = {
    "absolute": (*("m",) * 3, *("rad",) * 3, "unitless"),
    "delta": ("unitless",) * ARM,
    "pose": (*("m",) * 3, *("unitless",) * 7),
}


def pose_action(rate_hz: float, *, arms: int = 1) -> ActionSpec:
    """Spec of absolute actions with 10 numbers an arm."""
    return _spec("pose", arms, rate_hz)


def stored_action(mode: ActionMode, width: int, rate_hz: float) -> ActionSpec:
    """Spec of actions as they are stored; of a width that no arms have, numbers without a name."""
    if width % ARM == 0:
        return _spec(mode, width // ARM, rate_hz)
    return ActionSpec(
        names=tuple(f"a{i}" for i in range(width)),
        units=("unitless",) * width,
        frame="world",
        mode=mode,
        rate_hz=rate_hz,
    )


def mode_of(actions: np.ndarray, positions: np.ndarray | None) -> ActionMode:
    """Whether actions are goals in the world or changes, by their values.

    Args:
        actions: (T, A) as stored.
        positions: (T, 3) of the first arm's hand, or None where the file lacks them. Without them,
            numbers beyond [-1, 1] give goals away: the hand points down, half a turn from zero.
    """
    if positions is not None and actions.shape[1] >= 3:
        distance = np.linalg.norm(actions[:, :3] - positions, axis=1)
        distance = distance[np.isfinite(distance)]
        if len(distance):
            return "absolute" if np.median(distance) < NEAR else "delta"
    return "absolute" if (np.abs(actions) > LARGEST_DELTA).any() else "delta"


def to_poses(actions: np.ndarray) -> np.ndarray:
    """Absolute actions (T, 7 an arm) -> float64 (T, 10 an arm)."""
    arms = np.asarray(actions, np.float64).reshape(len(actions), -1, ARM)
    rotation = convert(arms[..., 3:6], "axis_angle", "rows_6d")
    return np.concatenate([arms[..., :3], rotation, arms[..., 6:]], axis=-1).reshape(
        len(actions), -1
    )


def _spec(form: str, arms: int, rate_hz: float) -> ActionSpec:
    prefixes = [""] if arms == 1 else [f"robot{arm}_" for arm in range(arms)]
    is_delta = form == "delta"
    width = arms * len(_NAMES[form])
    return ActionSpec(
        names=tuple(f"{prefix}{name}" for prefix in prefixes for name in _NAMES[form]),
        units=_UNITS[form] * arms,
        frame="world",
        mode="delta" if is_delta else "absolute",
        rate_hz=rate_hz,
        low=(-1.0,) * width if is_delta else None,
        high=(1.0,) * width if is_delta else None,
    )
