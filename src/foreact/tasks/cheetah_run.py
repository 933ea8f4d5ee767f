"""Cheetah run of DeepMind Control from pixels: run forwards, up to 10 m/s."""

from __future__ import annotations

from foreact.envs.dmc import CAMERA, CHEETAH_RUN_SPEC
from foreact.worlds import Task

TASK = Task(
    name="cheetah-run",
    spec=CHEETAH_RUN_SPEC,
    camera=CAMERA,
    env="foreact.envs.dmc:make_cheetah_run_plain",  # without shadows, as the demonstrations are
    variants={
        "shadows": "foreact.envs.dmc:make_cheetah_run",
        "no-shadows": "foreact.envs.dmc:make_cheetah_run_plain",
    },
    demonstrations="foreact.envs.collect_dmc:cheetah_run_to_store",
    held_out="foreact.envs.collect_dmc:cheetah_run_held_out_to_store",
    score="sum",
    score_note=(
        "An episode's score is the sum of its rewards over 500 decisions (1000 control steps); "
        "1000 is the most."
    ),
)
