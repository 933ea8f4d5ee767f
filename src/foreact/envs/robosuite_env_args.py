"""Worlds as robomimic's data sets describe them: the JSON `env_args` of an HDF5 file.

Files of robosuite 1.4 and of 1.5 are understood. Their actions may be deltas or absolute; the world
is always controlled absolutely, in the frame of the world.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from foreact.envs.robosuite import SCENES, RobosuiteEnv, Scene
from foreact.envs.robosuite_world import ARM, CONTROL_HZ, OSC_POSE, build_simulator, load_robosuite
from foreact.errors import UserError, did_you_mean

ROBOSUITE_TYPE = 1
"""How robomimic numbers robosuite among its simulators."""
MAX_STEPS = 500
"""Of an episode, for scenes that have no limit of their own."""
PHYSICS = ("gripper_types", "initialization_noise", "table_full_size", "table_friction")
"""Options of an environment that change what happens in it, and are taken over."""


def make_from_env_args(
    env_args: str | Mapping[str, Any], *, shadows: bool = True, image: bool = True
) -> RobosuiteEnv:
    """The world that a data set was recorded in, under absolute control.

    Args:
        env_args: JSON text, or what it says: `env_name`, `type`, `env_version` and `env_kwargs`.
        shadows, image: see `RobosuiteEnv`.

    Raises:
        UserError: it is no such description, or one of a world with several arms, another robot
            simulator or another controller than OSC_POSE.
    """
    described = _parsed(env_args)
    name, options = described["env_name"], described.get("env_kwargs", {})
    known = load_robosuite().ALL_ENVIRONMENTS
    if name not in known:
        raise UserError(f"robosuite has no environment '{name}'{did_you_mean(str(name), known)}")
    control_hz = float(options.get("control_freq", CONTROL_HZ))
    simulator = build_simulator(
        name,
        robot=_robot(options.get("robots", "Panda")),
        part=_osc_pose(options.get("controller_configs", OSC_POSE)),
        control_hz=control_hz,
        lite_physics=bool(options.get("lite_physics", _is_recent(described))),
        options={key: options[key] for key in PHYSICS if key in options},
    )
    scene = _scene(name, options)
    return RobosuiteEnv(
        scene, shadows=shadows, image=image, simulator=simulator, control_hz=control_hz
    )


def _parsed(env_args: str | Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        described = json.loads(env_args) if isinstance(env_args, str) else env_args
    except ValueError as error:
        raise UserError(
            f"env_args should be JSON, as robomimic writes it ({error}); the file is damaged."
        ) from error
    if not isinstance(described, Mapping) or "env_name" not in described:
        raise UserError(
            f"env_args should name an environment as `env_name`, found {str(described)[:80]}."
        )
    if described.get("type", ROBOSUITE_TYPE) != ROBOSUITE_TYPE:
        raise UserError(
            f"env_args should be of robosuite (type {ROBOSUITE_TYPE}), found type "
            f"{described['type']}; this data set is of another simulator."
        )
    return described


def _is_recent(described: Mapping[str, Any]) -> bool:
    """Whether it is of robosuite 1.5 or newer; older files say no version, or 1.4."""
    numbers = str(described.get("env_version") or "1.4").split(".")
    return tuple(int(n) for n in numbers[:2] if n.isdigit()) >= (1, 5)


def _robot(robots: str | Sequence[str]) -> str:
    names = [robots] if isinstance(robots, str) else list(robots)
    if len(names) != 1:
        raise UserError(
            f"A world of one robot arm is expected, found {names}; two arms are not supported."
        )
    return names[0]


def _osc_pose(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the arm in either layout."""
    part = config.get("body_parts", {}).get(ARM, {}) if "body_parts" in config else config
    if part.get("type") != "OSC_POSE":
        raise UserError(
            f"The controller should be OSC_POSE, found {part.get('type')}; actions of others are "
            "no poses."
        )
    return {key: value for key, value in part.items() if key != "gripper"}


def _scene(name: str, options: Mapping[str, Any]) -> Scene:
    known = {scene.name: scene for scene in SCENES.values()}
    default = known.get(name, Scene(name=name, max_steps=MAX_STEPS))
    cameras = options.get("camera_names") or default.cameras
    cameras = (cameras,) if isinstance(cameras, str) else tuple(cameras)
    sizes = {_size(options.get(f"camera_{side}", default.size)) for side in ("heights", "widths")}
    if len(sizes) != 1:
        raise UserError(f"Pictures should be square, found sides of {sorted(sizes)} pixels.")
    return Scene(
        name=name,
        cameras=cameras,
        size=sizes.pop(),
        max_steps=default.max_steps,
        settle=default.settle,
    )


def _size(sides: int | Sequence[int]) -> int:
    """Side in pixels, from one number for all cameras or one for each."""
    found = {sides} if isinstance(sides, int) else set(sides)
    if len(found) != 1:
        raise UserError(f"Pictures of one size are expected, found {sorted(found)} pixels.")
    return found.pop()
