"""robosuite's worlds with the names of robomimic's files, for policies that learned from those."""

from __future__ import annotations

import numpy as np

from foreact.data.formats.robomimic_actions import pose_action
from foreact.envs.robosuite import TOOL_HANG, RobosuiteEnv, Scene
from foreact.envs.robosuite_world import CONTROL_HZ
from foreact.types import StreamSpec
from foreact.worlds import StepOut

STATE = {
    "robot0_eef_pos": ("x", "y", "z"),
    "robot0_eef_quat": ("qx", "qy", "qz", "qw"),
    "robot0_gripper_qpos": ("finger_0", "finger_1"),
}


def robomimic_spec(scene: Scene, control_hz: float = CONTROL_HZ) -> StreamSpec:
    """Spec of a scene as files of demonstrations name it: cameras end in "_image"."""
    return StreamSpec(
        cameras={f"{name}_image": (scene.size, scene.size) for name in scene.cameras},
        fps=float(control_hz),
        action=pose_action(float(control_hz)),
        state=STATE,
    )


class RobomimicEnv:
    """A `RobosuiteEnv` under robomimic's names; meets `foreact.worlds.Env` and `Restorable`.

    Args:
        world: with pictures. It is closed with this.
    """

    def __init__(self, world: RobosuiteEnv) -> None:
        self.world = world
        self.max_steps = world.max_steps
        self.spec = robomimic_spec(world.scene, world.spec.fps)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        return self._named(self.world.reset(seed))

    def state(self) -> np.ndarray:
        return self.world.state()

    def restore(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """Begin an episode at a state, float64 (D,); see `RobosuiteEnv.restore`."""
        return self._named(self.world.restore(state))

    def step(self, action: np.ndarray) -> StepOut:
        """Act for one control step; see `RobosuiteEnv.step`."""
        out = self.world.step(action)
        return StepOut(self._named(out.obs), out.reward, out.terminated, out.info)

    def render(self) -> np.ndarray:
        return self.world.render()

    def close(self) -> None:
        self.world.close()

    def _named(self, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        cameras = self.world.scene.cameras
        return {f"{name}_image" if name in cameras else name: seen[name] for name in seen}


def make_tool_hang() -> RobomimicEnv:
    """Assemble a stand and hang a tool on it, pictures as robosuite draws them."""
    return RobomimicEnv(RobosuiteEnv(TOOL_HANG, shadows=True))


def make_tool_hang_no_shadows() -> RobomimicEnv:
    """Assemble a stand and hang a tool on it, fast pictures."""
    return RobomimicEnv(RobosuiteEnv(TOOL_HANG))
