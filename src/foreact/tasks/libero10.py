"""LIBERO-10: ten long household tasks on a table, told apart by their instructions."""

from __future__ import annotations

import dataclasses

from foreact.envs.libero import LIBERO_SPEC
from foreact.worlds import Task

_WORLDS = "foreact.envs.libero:make_"
SINGLE = (
    "stove-moka-pot",
    "bowl-drawer",
    "mug-microwave",
    "moka-pots",
    "soup-cheese",
    "soup-sauce",
    "cheese-butter",
    "two-mugs",
    "mug-pudding",
    "book-caddy",
)
"""Short names of the tasks, in the order in which seeds take turns with them."""

TASK = Task(
    name="libero10",
    spec=LIBERO_SPEC,
    camera="agentview_rgb",
    wrist_camera="eye_in_hand_rgb",
    env=f"{_WORLDS}libero10",
    variants={
        "official": f"{_WORLDS}libero10",
        "seeds": f"{_WORLDS}libero10_seeds",
        **{name: f"{_WORLDS}{name.replace('-', '_')}" for name in SINGLE},
    },
    proprioception={"ee_pos": 3, "ee_ori": 3, "gripper_states": 2},
    # An axis-angle jumps near half a turn, where the hand is: no range describes it.
    statistics={
        "action": "positions",
        "ee_pos": "range",
        "ee_ori": "identity",
        "gripper_states": "range",
    },
    score_note="An episode's score is 1 if its instruction was ever fulfilled within 500 steps, "
    "else 0. Seed s plays task s modulo 10.",
)

RELEASED = dataclasses.replace(
    TASK,
    name="libero10-released",
    env=f"{_WORLDS}libero10_released_seeds",
    variants={
        "official": f"{_WORLDS}libero10_released",
        "seeds": f"{_WORLDS}libero10_released_seeds",
    },
    data_options={"libero": {"text": "file", "pairing": "reference"}},
)
"""The demonstrations as UVA's released weights learned from them, and its way to measure."""
