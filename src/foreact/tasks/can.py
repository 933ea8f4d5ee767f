"""Can: a robot arm puts a can into its bin; robosuite, absolute control, two cameras."""

from __future__ import annotations

import dataclasses

from foreact.tasks.lift import TASK as LIFT

TASK = dataclasses.replace(
    LIFT,
    name="can",
    env="foreact.envs.robosuite:make_can",
    variants={
        "shadows": "foreact.envs.robosuite:make_can_shadows",
        "no-shadows": "foreact.envs.robosuite:make_can",
    },
    score_note=(
        "An episode's score is 1 if the can lay in its bin, with the hand away, within 200 steps."
    ),
)
