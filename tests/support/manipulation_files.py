"""Miniature files of robomimic and LIBERO, laid out by hand; importable by other tests.

A picture says in blocks of colour which one it is, and which way is up: red at the top left counts
demonstrations, green at the top right frames, blue at the bottom left cameras; the bottom right is
white. Hands are tilted, so that no wrong order of numbers is nearly right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from foreact.data.rotations import convert

SIZE = 16
LIBERO_FILES = (
    "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5",
    "LIVING_ROOM_SCENE10_put_the_mug_on_the_plate_demo.hdf5",
)
ENV_ARGS: dict[str, Any] = {
    "env_name": "ToolHang",
    "type": 1,
    "env_kwargs": {"control_freq": 20, "controller_configs": {"control_delta": True}},
}
"""As recorded; copies with absolute actions keep them."""
SITE = convert(np.array([0.0, 0.0, -np.pi / 2]), "axis_angle", "matrix")


def picture(demo: int, frame: int, camera: int, size: int = SIZE) -> np.ndarray:
    """An upright picture, uint8 (size, size, 3)."""
    half = size // 2
    image = np.zeros((size, size, 3), np.uint8)
    image[:half, :half, 0] = 10 + 5 * demo
    image[:half, half:, 1] = 10 + 5 * frame
    image[half:, :half, 2] = 60 + 60 * camera
    image[half:, half:] = 250
    return image


def stamps(pictures: np.ndarray) -> list[tuple[int, int, int]]:
    """Demonstration, frame and camera of upright pictures (T, H, W, 3); fails on any others."""
    size, found = pictures.shape[1], []
    for image in pictures:
        red, green, blue = int(image[0, 0, 0]), int(image[0, -1, 1]), int(image[-1, 0, 2])
        stamp = ((red - 10) // 5, (green - 10) // 5, (blue - 60) // 60)
        np.testing.assert_array_equal(image, picture(*stamp, size=size))
        found.append(stamp)
    return found


def hand(demo: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (T, 3) in metres and rotations (T, 3, 3) of a tilted hand that moves slowly."""
    t = np.arange(length)[:, None]
    position = np.array([0.1, -0.2, 1.0]) + 0.005 * t + 0.01 * demo
    down = np.array([np.pi - 0.4, 0.5, 0.3]) + 0.01 * t
    return position, convert(down, "axis_angle", "matrix")


def arm_actions(demo: int, length: int, mode: str) -> np.ndarray:
    """Actions (T, 7), float64: goals a little ahead of the hand, or deltas."""
    if mode == "delta":
        rng = np.random.default_rng(demo)
        moves = rng.uniform(-1, 1, (length, 6))
    else:
        position, rotation = hand(demo, length)
        ahead = convert(rotation @ SITE, "matrix", "axis_angle") + 0.001
        moves = np.concatenate([position + 0.01, ahead], axis=1)
    gripper = np.where(np.arange(length) % 2 == 0, -1.0, 1.0)
    return np.concatenate([moves, gripper[:, None]], axis=1)


def robomimic_demo(
    demo: int, length: int, *, mode: str = "absolute", arms: int = 1, size: int = SIZE
) -> dict[str, np.ndarray]:
    """Arrays of one demonstration, key -> array; row t of `states` counts t + 100 demo."""
    position, rotation = hand(demo, length)
    frames = range(length)
    count = np.arange(length)[:, None]
    return {
        "actions": np.concatenate([arm_actions(demo + 5 * a, length, mode) for a in range(arms)], 1)
        if arms > 1
        else arm_actions(demo, length, mode),
        "states": 100.0 * demo + count + np.arange(4) / 10,
        "rewards": (np.arange(length) == length - 1).astype(float),
        "dones": (np.arange(length) == length - 1).astype(np.int64),
        "obs/sideview_image": np.stack([picture(demo, t, 0, size) for t in frames]),
        "obs/robot0_eye_in_hand_image": np.stack([picture(demo, t, 1, size) for t in frames]),
        "obs/robot0_eef_pos": position,
        "obs/robot0_eef_quat": convert(rotation, "matrix", "quat_xyzw"),
        "obs/robot0_gripper_qpos": np.concatenate([0.001 * count, -0.001 * count], 1),
        "obs/object": np.zeros((length, 44)),
    }


def libero_demo(demo: int, length: int, *, mode: str = "delta") -> dict[str, np.ndarray]:
    """As LIBERO writes it: upside down, everything observed after the row's action.

    Frame t + 1 is what action t led to, and `states` row t is from before it.
    """
    position, rotation = hand(demo, length + 1)
    frames = range(1, length + 1)
    count = np.arange(1, length + 1)[:, None]
    return {
        "actions": arm_actions(demo, length, mode),
        "states": 100.0 * demo + np.arange(length)[:, None] + np.arange(4) / 10,
        "rewards": (np.arange(length) == length - 1).astype(np.uint8),
        "dones": (np.arange(length) == length - 1).astype(np.uint8),
        "robot_states": np.zeros((length, 9)),
        "obs/agentview_rgb": np.stack([picture(demo, t, 0)[::-1] for t in frames]),
        "obs/eye_in_hand_rgb": np.stack([picture(demo, t, 1)[::-1] for t in frames]),
        "obs/ee_pos": position[1:],
        "obs/ee_ori": convert(rotation[1:], "matrix", "axis_angle"),
        "obs/gripper_states": np.concatenate([0.001 * count, -0.001 * count], 1),
        "obs/joint_states": np.zeros((length, 7)) + count,
    }


def write_demos(
    path: Path,
    demos: Mapping[str, Mapping[str, np.ndarray]],
    *,
    attrs: Mapping[str, str] | None = None,
    masks: Mapping[str, Sequence[str]] | None = None,
    next_obs: bool = False,
    **options: Any,
) -> Path:
    """Write arrays as they are; `options` such as compression apply to the pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update({"env_args": json.dumps(ENV_ARGS)} if attrs is None else attrs)
        for name, arrays in demos.items():
            group = data.create_group(name)
            group.attrs["num_samples"] = len(arrays["actions"])
            for key, values in arrays.items():
                group.create_dataset(key, data=values, **(options if values.ndim == 4 else {}))
                if next_obs and key.startswith("obs/"):
                    later = np.concatenate([values[1:], values[-1:]])
                    group.create_dataset(f"next_{key}", data=later)
        for key, names in (masks or {}).items():
            file.create_dataset(f"mask/{key}", data=np.array(names, dtype="S"))
    return path


def write_robomimic(
    path: Path,
    lengths: Sequence[int] = (5, 7, 6),
    *,
    mode: str = "absolute",
    arms: int = 1,
    masks: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> Path:
    """A file with demonstrations of the given lengths."""
    demos = {f"demo_{i}": robomimic_demo(i, n, mode=mode, arms=arms) for i, n in enumerate(lengths)}
    return write_demos(path, demos, masks=masks, **options)


def write_libero(
    folder: Path, lengths: Sequence[int] = (5, 7), *, mode: str = "delta", instruction: bool = True
) -> Path:
    """A folder of LIBERO's files, each with demonstrations of the given lengths; returns it.

    Demonstrations are numbered over all files in their pictures, and within each in their names.
    """
    for number, name in enumerate(LIBERO_FILES):
        first = number * len(lengths)
        demos = {f"demo_{i}": libero_demo(first + i, n, mode=mode) for i, n in enumerate(lengths)}
        words = name.removesuffix("_demo.hdf5").split("_")
        start = next(i for i, word in enumerate(words) if word.startswith("SCENE")) + 1
        problem = {"language_instruction": " ".join(words[start:])} if instruction else {}
        write_demos(
            folder / name,
            demos,
            attrs={
                "env_args": json.dumps(ENV_ARGS),
                "problem_info": json.dumps(problem),
                "macros_image_convention": "opengl",
                "tag": "libero-v1",
            },
        )
    return folder
