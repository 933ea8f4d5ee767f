"""LIBERO-10: ten long household tasks on a table, told apart by their instructions."""

from __future__ import annotations

import dataclasses

from foreact.data.formats.robomimic_actions import pose_action
from foreact.types import StreamSpec
from foreact.worlds import Task

RATE_HZ = 20.0
SIZE = (128, 128)

TASK = Task(
    name="libero10",
    spec=StreamSpec(
        cameras={"agentview_rgb": SIZE, "eye_in_hand_rgb": SIZE},
        fps=RATE_HZ,
        action=pose_action(RATE_HZ),
        state={
            "ee_pos": ("x", "y", "z"),
            "ee_ori": ("rx", "ry", "rz"),
            "gripper_states": ("finger_0", "finger_1"),
        },
        has_text=True,
    ),
    camera="agentview_rgb",
    wrist_camera="eye_in_hand_rgb",
    proprioception={"ee_pos": 3, "ee_ori": 3, "gripper_states": 2},
    # An axis-angle jumps near half a turn, where the hand is: no range describes it.
    statistics={
        "action": "positions",
        "ee_pos": "range",
        "ee_ori": "identity",
        "gripper_states": "range",
    },
    score_note="An episode's score is 1 if its instruction was ever fulfilled, else 0.",
)

RELEASED = dataclasses.replace(
    TASK,
    name="libero10-released",
    data_options={"libero": {"text": "file", "pairing": "reference"}},
)
"""The demonstrations as UVA's released weights learned from them."""
