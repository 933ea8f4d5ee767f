"""robosuite's simulators with absolute control: loading, the controller, one arm's frames.

Facts that decide what actions mean, measured with robosuite 1.5.2:

- OSC_POSE with "absolute" input takes the position and the axis-angle of the grip SITE. Unless it
  is told "world", it takes them in the frame of the robot's base, without a word.
- The observation `robot0_eef_quat` is the rotation of the hand's BODY, a quarter turn about the
  hand's z from the site: R_site = R_body Rz(-90 degrees).
- Joints that a target leaves free are drawn towards those at which the controller was made.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreact.envs.rendering import choose_library
from foreact.errors import UserError

ARM = "right"
CONTROL_HZ = 20

OSC_POSE: Mapping[str, Any] = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
"""The controller of robomimic's data sets; the outputs scale deltas and have no effect here."""


@functools.cache
def load_robosuite() -> Any:
    """The package, after a picture was drawn to see that drawing works.

    Raises:
        UserError: it is not installed, or no picture can be drawn.
    """
    for package in ("robosuite", "mujoco"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"This task needs robosuite's simulator, and the package {package} is missing; in "
                'an environment of its own with NumPy 1 run `pip install "foreact[robosuite]"`, '
                "see docs/robosuite.md."
            )
    choose_library("mujoco")
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns of optional packages and of files of its own
    try:
        robosuite = importlib.import_module("robosuite")  # declares no types
    except ImportError as error:
        raise UserError(
            f"robosuite could not be imported ({error}); install it with the versions of "
            "constraints-robosuite.txt."
        ) from error
    finally:
        logging.disable(previous)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    return robosuite


def absolute_controller(part: Mapping[str, Any], robot: str) -> dict[str, Any]:
    """robosuite's configuration of one arm under absolute control in the frame of the world.

    Args:
        part: of an OSC_POSE controller, as robosuite 1.4 or 1.5 writes it.
        robot: such as "Panda".
    """
    load_robosuite()
    factory = importlib.import_module(
        "robosuite.controllers.composite.composite_controller_factory"
    )
    part = dict(part)
    part.pop("control_delta", None)  # of 1.4; later versions swallow it
    for old, new in (("damping", "damping_ratio"), ("damping_limits", "damping_ratio_limits")):
        if old in part:
            part.setdefault(new, part.pop(old))
    part |= {"input_type": "absolute", "input_ref_frame": "world"}
    return factory.refactor_composite_controller_config(copy.deepcopy(part), robot, [ARM])


def build_simulator(
    name: str,
    *,
    robot: str = "Panda",
    part: Mapping[str, Any] = OSC_POSE,
    control_hz: float = CONTROL_HZ,
    lite_physics: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """One of robosuite's environments, which draws nothing and computes no observations itself.

    Args:
        name: in robosuite, such as "Lift".
        robot: with one arm.
        part: see `absolute_controller`.
        control_hz: actions per second.
        lite_physics: robosuite's shorter physics step; data recorded before version 1.5 had none.
        options: further ones of the environment.
    """
    simulator = load_robosuite().make(
        name,
        **(options or {}),
        robots=robot,
        controller_configs=absolute_controller(part, robot),
        control_freq=control_hz,
        lite_physics=lite_physics,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        reward_shaping=False,
        ignore_done=True,
        # A reset keeps the compiled model: the world of a seed or a state is always the same one,
        # and resets take milliseconds.
        hard_reset=False,
        seed=0,
    )
    for observable in simulator.observation_names:  # computed in each of 25 physics steps
        simulator.modify_observable(observable, "enabled", False)
    return simulator


@dataclass(frozen=True)
class Hand:
    """Where one arm's hand is: position (3,) in m and rotation matrix (3, 3) of the grip site."""

    position: np.ndarray
    rotation: np.ndarray


class Arm:
    """The arm of a simulator's only robot: its frames, and what of it a reset must set.

    From robosuite 1.5 on a robot's parts are kept by the name of their arm, before they were not.
    """

    def __init__(self, simulator: Any) -> None:
        robot = simulator.robots[0]
        self._simulator, self._robot = simulator, robot
        self._site = _of_arm(robot.eef_site_id)
        self._body = simulator.sim.model.body_name2id(_of_arm(robot.robot_model.eef_name))
        self._fingers = np.array(_of_arm(robot._ref_gripper_joint_pos_indexes))
        self._joints = np.array(robot._ref_joint_pos_indexes)

    @property
    def hand(self) -> Hand:
        data = self._simulator.sim.data
        return Hand(
            np.array(data.site_xpos[self._site]), data.site_xmat[self._site].reshape(3, 3).copy()
        )

    def proprioception(self) -> dict[str, np.ndarray]:
        """What robosuite shows of a robot: see `STATE` in `foreact.envs.robosuite`."""
        data = self._simulator.sim.data
        real_last = np.roll(data.body_xquat[self._body], -1)
        return {
            "robot0_eef_pos": np.array(data.site_xpos[self._site], np.float32),
            "robot0_eef_quat": real_last.astype(np.float32),
            "robot0_gripper_qpos": np.array(data.qpos[self._fingers], np.float32),
        }

    @property
    def joints(self) -> np.ndarray:
        """Angles of its joints now, (7,) rad."""
        return np.array(self._simulator.sim.data.qpos[self._joints])

    @property
    def memory(self) -> np.ndarray:
        """What its controllers remember: joints that free motion tends to, gripper's set point."""
        gripper = _of_arm(self._robot.gripper)
        # One number until the first action, then one for each actuator.
        set_point = np.broadcast_to(gripper.current_action, len(gripper.actuators))
        return np.concatenate([self._controller.initial_joint, set_point])

    @memory.setter
    def memory(self, values: np.ndarray) -> None:
        joints = len(self._joints)
        self._controller.update_initial_joints(values[:joints])
        _of_arm(self._robot.gripper).current_action = np.array(values[joints:])

    @property
    def _controller(self) -> Any:
        by_arm = getattr(self._robot, "part_controllers", None)
        return self._robot.controller if by_arm is None else by_arm[ARM]


def _of_arm(part: Any) -> Any:
    return part[ARM] if isinstance(part, Mapping) else part
