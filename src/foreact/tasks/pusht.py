"""PushT: push a grey T onto a green one that never moves, with a blue disc, seen from above."""

from __future__ import annotations

from foreact.envs.pusht import PUSHT_SPEC
from foreact.worlds import Task

TASK = Task(
    name="pusht",
    spec=PUSHT_SPEC,
    camera="img",
    env="foreact.envs.pusht:make_pusht",
    demonstrations="foreact.envs.collect:demonstrations_to_store",
    held_out="foreact.envs.collect:held_out_to_store",
    proprioception={"state": 2},  # where the disc is
    score_note=(
        "An episode's score is the largest share of the target that the block covered in 300 "
        "steps, divided by 0.95: 1 means solved, 0 means it never touched the target."
    ),
)
