"""robomimic's file of Lift, made by the expert in robosuite; importable by workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from foreact.data.rotations import convert
from foreact.envs.robomimic import STATE, RobomimicEnv, robomimic_spec
from foreact.envs.robosuite import LIFT, RobosuiteEnv
from foreact.worlds import Task

TASK = Task(
    name="lift-file",
    spec=robomimic_spec(LIFT),
    camera="agentview_image",
    wrist_camera="robot0_eye_in_hand_image",
    env="support.robomimic_worlds:make",
)
OLD_CONFIG = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1,
    "output_max": [0.05] * 3 + [0.5] * 3, "output_min": [-0.05] * 3 + [-0.5] * 3,
    "kp": 150, "damping": 1, "impedance_mode": "fixed", "kp_limits": [0, 300],
    "damping_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
"""As files of robosuite 1.4 have it, those with absolute actions too."""
ENV_ARGS = {
    "env_name": "Lift",
    "type": 1,
    "env_kwargs": {
        "robots": ["Panda"],
        "controller_configs": OLD_CONFIG,
        "control_freq": 20,
        "camera_names": ["agentview", "robot0_eye_in_hand"],
        "camera_heights": 84,
        "camera_widths": 84,
    },
}


def make() -> RobomimicEnv:
    return RobomimicEnv(RobosuiteEnv(LIFT))


def write_lift(path: Path, seeds: list[int], *, joints_elsewhere: float = 0.0) -> Path:
    """A file with the expert's demonstrations of these seeds.

    Args:
        joints_elsewhere: radians by which free joints tended elsewhere when it was recorded.
    """
    from foreact.envs.robosuite_env_args import make_from_env_args
    from foreact.envs.robosuite_experts import lift

    env = RobomimicEnv(make_from_env_args(ENV_ARGS))
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(ENV_ARGS)
        for number, seed in enumerate(seeds):
            seen = env.reset(seed)
            memory = env.world.arm.memory
            memory[:7] += joints_elsewhere
            env.world.arm.memory = memory
            own = len(env.state()) - len(memory)
            rows: dict[str, list[Any]] = {}
            for planned in lift(env.world):
                action = planned.astype(np.float32)
                axis_angle = convert(action[3:9], "rows_6d", "axis_angle")
                row = {
                    "actions": np.concatenate([action[:3], axis_angle, action[9:]]),
                    "states": env.state()[:own],
                    **{f"obs/{key}": seen[key] for key in (*env.spec.cameras, *STATE)},
                }
                out = env.step(action)
                for key, value in {**row, "rewards": out.reward}.items():
                    rows.setdefault(key, []).append(value)
                seen = out.obs
                if out.terminated:
                    break
            for key, values in rows.items():
                data.create_dataset(f"demo_{number}/{key}", data=np.stack(values))
    env.close()
    return path


class Holder:
    """A policy that keeps one action; meets `Policy`."""

    def __init__(self, action: np.ndarray) -> None:
        self.spec, self.action, self.steps = TASK.spec, action, -1

    def reset(self, seeds: Any) -> None:
        self.steps, self.count = -1, len(seeds)

    def observe(self, obs: Any, ids: Any = None) -> None:
        self.steps += 1

    def act(self, ids: Any = None) -> Any:
        from foreact.types import ActionChunk

        actions = np.broadcast_to(self.action, (self.count, 1, 10)).astype(np.float32)
        return ActionChunk(actions, 1, self.steps, 0.0)

    def describe(self) -> dict[str, Any]:
        return {"policy": "holder"}
