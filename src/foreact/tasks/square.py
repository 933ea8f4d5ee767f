"""Square: a robot arm puts a square nut over a peg; robosuite, absolute control, two cameras."""

from __future__ import annotations

import dataclasses

from foreact.tasks.lift import TASK as LIFT

TASK = dataclasses.replace(
    LIFT,
    name="square",
    env="foreact.envs.robosuite:make_square",
    variants={
        "shadows": "foreact.envs.robosuite:make_square_shadows",
        "no-shadows": "foreact.envs.robosuite:make_square",
    },
    score_note=(
        "An episode's score is 1 if the nut lay around its peg, with the hand away, in 300 steps."
    ),
)
