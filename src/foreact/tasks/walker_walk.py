"""Walker walk of DeepMind Control from pixels: get up, and walk at 1 m/s."""

from __future__ import annotations

import dataclasses

from foreact.envs.dmc import WALKER_WALK_SPEC
from foreact.tasks.cheetah_run import TASK as CHEETAH_RUN

TASK = dataclasses.replace(
    CHEETAH_RUN,
    name="walker-walk",
    spec=WALKER_WALK_SPEC,
    env="foreact.envs.dmc:make_walker_walk_plain",
    variants={
        "shadows": "foreact.envs.dmc:make_walker_walk",
        "no-shadows": "foreact.envs.dmc:make_walker_walk_plain",
    },
    demonstrations="foreact.envs.collect_dmc:walker_walk_to_store",
    held_out="foreact.envs.collect_dmc:walker_walk_held_out_to_store",
)
