"""robosuite's Panda at a table: Lift, Can, Square and ToolHang under absolute control.

See also `robosuite_experts`, `robomimic` for the names that ToolHang's demonstrations use, and, for
the worlds that data sets describe, `robosuite_env_args`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreact.data.rotations import convert
from foreact.envs.mujoco_pictures import Pictures, draw_fast
from foreact.envs.robosuite_world import CONTROL_HZ, Arm, build_simulator
from foreact.envs.thinning import thin_meshes
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec
from foreact.worlds import StepOut

OPEN, CLOSE = -1.0, 1.0
"""Last number of an action: what the gripper shall do."""

MESH_CELL = 0.008
"""Grid, in metres, on which fine meshes are thinned for fast pictures."""

STATE = {
    "robot0_eef_pos": ("x", "y", "z"),
    "robot0_eef_quat": ("x", "y", "z", "w"),
    "robot0_gripper_qpos": ("left", "right"),
}
"""What the robot feels: position (m) of the grip site and rotation of the hand's body, both in the
world, and the joints of the two fingers (m, of opposite sign).
"""

ACTION_NAMES = ("x", "y", "z", "r11", "r12", "r13", "r21", "r22", "r23", "gripper")


def robosuite_spec(cameras: Sequence[str], size: int, control_hz: float = CONTROL_HZ) -> StreamSpec:
    """Spec of a world with one arm.

    Args:
        cameras: names of its cameras.
        size: side of their pictures in pixels.
        control_hz: actions per second.
    """
    return StreamSpec(
        cameras=dict.fromkeys(cameras, (size, size)),
        fps=float(control_hz),
        action=ActionSpec(
            names=ACTION_NAMES,
            units=("m",) * 3 + ("unitless",) * 7,
            frame="world",
            mode="absolute",
            rate_hz=float(control_hz),
        ),
        state=STATE,
    )


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One of robosuite's problems.

    Attributes:
        name: in robosuite.
        cameras: that are shown; the first one is also for people.
        size: side of their pictures in pixels.
        max_steps: of an episode, as robomimic and UVA have them.
        settle: steps before an episode begins, in which objects fall into place.
    """

    name: str
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    size: int = 84
    max_steps: int
    settle: int = 0


LIFT = Scene(name="Lift", max_steps=100)
CAN = Scene(name="PickPlaceCan", max_steps=200, settle=10)
SQUARE = Scene(name="NutAssemblySquare", max_steps=300, settle=10)
TOOL_HANG = Scene(
    name="ToolHang", cameras=("sideview", "robot0_eye_in_hand"), size=240, max_steps=700
)
SCENES = {"lift": LIFT, "can": CAN, "square": SQUARE, "tool-hang": TOOL_HANG}


class RobosuiteEnv:
    """One of robosuite's worlds; meets `foreact.worlds.Env` and `Restorable`.

    An action is where the grip site shall be at the end of 0.05 s, in the world: position (m), the
    first two rows of its rotation matrix, and whether the gripper opens (-1) or closes (+1). The
    reward is 1 where the problem is solved, else 0, and the episode ends with it.

    Args:
        scene: which.
        shadows: draw pictures as robosuite does, or several times as fast: without shadows,
            reflections and smooth edges, and with coarser shapes. The physics is the same.
        image: whether observations hold pictures.
        simulator: a simulator of the scene; by default the one of `build_simulator`.
        control_hz: actions per second of that simulator.

    Raises:
        UserError: robosuite is not installed, or nothing can be drawn.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        shadows: bool = False,
        image: bool = True,
        simulator: Any = None,
        control_hz: float = CONTROL_HZ,
    ) -> None:
        self.scene = scene
        self.max_steps = scene.max_steps
        self.spec = robosuite_spec(scene.cameras, scene.size, control_hz)
        self.simulator = build_simulator(scene.name) if simulator is None else simulator
        self.arm = Arm(self.simulator)
        self._model, self._data = self.simulator.sim.model._model, self.simulator.sim.data._data
        self._shadows, self._over = shadows, True
        self._for_people: Pictures | None = None
        if not shadows:
            draw_fast(self._model)
            thin_meshes(self._model, MESH_CELL)
        self._pictures = Pictures(self._model, scene.size, shadows=shadows) if image else None

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        # robosuite draws from this one generator, whatever numpy's global state.
        draws = np.random.default_rng(seed)
        self.simulator.rng.bit_generator.state = draws.bit_generator.state
        self.simulator.reset()
        for _ in range(self.scene.settle):
            self._act(self.hold(OPEN))
        # So an episode is the same whether its seed or its stored state begins it.
        return self.restore(self.state())

    def state(self) -> np.ndarray:
        """float64 (D,): time, positions and velocities of the simulator, then `Arm.memory`."""
        return np.concatenate([self.simulator.sim.get_state().flatten(), self.arm.memory])

    def restore(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """Begin an episode at a state.

        Args:
            state: float64 (D,), of `state()`, or robosuite's own, which data sets hold: time,
                positions and velocities. The controllers then begin as after a reset to it.

        Raises:
            UserError: it has another length, or values that are not finite.
        """
        state = np.asarray(state, np.float64)
        own = 1 + self._model.nq + self._model.nv
        full = own + len(self.arm.memory)
        if state.shape not in ((own,), (full,)):
            raise UserError(
                f"A state of {self.scene.name} should have {own} numbers, or {full} with those of "
                f"the controllers, found shape {state.shape}; is it of another task?"
            )
        if not np.isfinite(state).all():
            raise UserError(
                f"A state of {self.scene.name} should be finite, found NaN or infinity."
            )
        self.simulator.reset()
        self.simulator.sim.set_state_from_flattened(state[:own])
        self.simulator.sim.forward()
        begun = np.concatenate([self.arm.joints, np.zeros(full - own - len(self.arm.joints))])
        self.arm.memory = state[own:] if len(state) == full else begun
        self._over = False
        return self._observe()

    def hold(self, gripper: float) -> np.ndarray:
        """The action (10,) that keeps the hand where it is."""
        hand = self.arm.hand
        return as_action(hand.position, hand.rotation, gripper)

    def step(self, action: np.ndarray) -> StepOut:
        """Act for one control step.

        Args:
            action: (10,), see above. Rows that are not orthonormal are made so.

        Raises:
            UserError: the shape is wrong, a value is not finite, the rows say no rotation, or the
                episode is over.
        """
        action = np.asarray(action, np.float64)
        name = self.scene.name
        if action.shape != (len(ACTION_NAMES),):
            raise UserError(
                f"{name} expects an action of shape ({len(ACTION_NAMES)},), found {action.shape}."
            )
        if not np.isfinite(action).all():
            raise UserError(
                f"{name} expects a finite action, found {action.tolist()}; check the policy for "
                "NaN."
            )
        if np.linalg.norm(np.cross(action[3:6], action[6:9])) < 1e-6:
            raise UserError(
                f"{name} expects the first two rows of a rotation matrix in numbers 3 to 8 of an "
                f"action, found {action[3:9].tolist()}, which are parallel or 0."
            )
        if self._over:
            raise UserError(f"The episode of {name} is over or was not begun; call reset first.")
        self._act(action)
        self._over = bool(self.simulator._check_success())
        return StepOut(self._observe(), float(self._over), self._over)

    def render(self) -> np.ndarray:
        """uint8 (256, 256, 3) of the first camera."""
        if self._for_people is None:
            self._for_people = Pictures(self._model, 256, shadows=self._shadows)
        return self._for_people.draw(self._data, self.scene.cameras[0])

    def close(self) -> None:
        """Free the drawing contexts and the simulator."""
        for pictures in (self._pictures, self._for_people):
            if pictures is not None:
                pictures.close()
        self.simulator.close()

    def _act(self, action: np.ndarray) -> None:
        axis_angle = convert(action[3:9], "rows_6d", "axis_angle")
        self.simulator.step(np.concatenate([action[:3], axis_angle, action[9:]]))

    def _observe(self) -> dict[str, np.ndarray]:
        seen = self.arm.proprioception()
        if self._pictures is not None:
            seen |= {name: self._pictures.draw(self._data, name) for name in self.scene.cameras}
        return seen


def as_action(position: np.ndarray, rotation: np.ndarray, gripper: float) -> np.ndarray:
    """The action (10,) of a grip site's position (3,), rotation matrix (3, 3) and gripper."""
    return np.concatenate([position, convert(rotation, "matrix", "rows_6d"), [gripper]])


def make_lift() -> RobosuiteEnv:
    """Lift a cube, fast pictures."""
    return RobosuiteEnv(LIFT)


def make_lift_shadows() -> RobosuiteEnv:
    """Lift a cube, pictures as robosuite draws them."""
    return RobosuiteEnv(LIFT, shadows=True)


def make_can() -> RobosuiteEnv:
    """Put a can into its bin, fast pictures."""
    return RobosuiteEnv(CAN)


def make_can_shadows() -> RobosuiteEnv:
    """Put a can into its bin, pictures as robosuite draws them."""
    return RobosuiteEnv(CAN, shadows=True)


def make_square() -> RobosuiteEnv:
    """Put a square nut over its peg, fast pictures."""
    return RobosuiteEnv(SQUARE)


def make_square_shadows() -> RobosuiteEnv:
    """Put a square nut over its peg, pictures as robosuite draws them."""
    return RobosuiteEnv(SQUARE, shadows=True)
