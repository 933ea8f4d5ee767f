"""Tool hang of robomimic: put a frame on its stand and hang a tool on it, with one arm."""

from __future__ import annotations

from foreact.envs.robomimic import STATE, robomimic_spec
from foreact.envs.robosuite import TOOL_HANG
from foreact.worlds import Task

TASK = Task(
    name="tool-hang",
    spec=robomimic_spec(TOOL_HANG),
    camera="sideview_image",
    wrist_camera="robot0_eye_in_hand_image",
    env="foreact.envs.robomimic:make_tool_hang",
    variants={
        "shadows": "foreact.envs.robomimic:make_tool_hang",
        "no-shadows": "foreact.envs.robomimic:make_tool_hang_no_shadows",
    },
    proprioception={stream: len(names) for stream, names in STATE.items()},
    statistics={
        "action": "positions",
        "robot0_eef_pos": "range",
        "robot0_eef_quat": "identity",
        "robot0_gripper_qpos": "range",
    },
    score_note="An episode's score is 1 if the tool ever hung on the frame, else 0.",
)
