"""Lift: a robot arm lifts a red cube from a table; robosuite, absolute control, two cameras."""

from __future__ import annotations

from foreact.envs.robosuite import LIFT, STATE, robosuite_spec
from foreact.worlds import Task

TASK = Task(
    name="lift",
    spec=robosuite_spec(LIFT.cameras, LIFT.size),
    camera="agentview",
    wrist_camera="robot0_eye_in_hand",
    env="foreact.envs.robosuite:make_lift",
    variants={
        "shadows": "foreact.envs.robosuite:make_lift_shadows",
        "no-shadows": "foreact.envs.robosuite:make_lift",
    },
    proprioception={stream: len(names) for stream, names in STATE.items()},
    statistics={
        "action": "positions",
        "robot0_eef_pos": "range",
        "robot0_eef_quat": "identity",
        "robot0_gripper_qpos": "range",
    },
    score_note="An episode's score is 1 if the cube came 4 cm above the table within 100 steps.",
)
