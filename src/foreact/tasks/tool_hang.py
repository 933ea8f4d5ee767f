"""Tool hang of robomimic: put a frame on its stand and hang a tool on it, with one arm."""

from __future__ import annotations

from foreact.data.formats.robomimic_actions import pose_action
from foreact.types import StreamSpec
from foreact.worlds import Task

RATE_HZ = 20.0
SIZE = (240, 240)

TASK = Task(
    name="tool-hang",
    spec=StreamSpec(
        cameras={"sideview_image": SIZE, "robot0_eye_in_hand_image": SIZE},
        fps=RATE_HZ,
        action=pose_action(RATE_HZ),
        state={
            "robot0_eef_pos": ("x", "y", "z"),
            "robot0_eef_quat": ("qx", "qy", "qz", "qw"),
            "robot0_gripper_qpos": ("finger_0", "finger_1"),
        },
    ),
    camera="sideview_image",
    wrist_camera="robot0_eye_in_hand_image",
    proprioception={"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2},
    statistics={
        "action": "positions",
        "robot0_eef_pos": "range",
        "robot0_eef_quat": "identity",
        "robot0_gripper_qpos": "range",
    },
    score_note="An episode's score is 1 if the tool ever hung on the frame, else 0.",
)
