"""PushT-M: PushT with a target drawn anew from each episode's seed."""

from __future__ import annotations

import dataclasses

from foreact.tasks.pusht import TASK as PUSHT

TASK = dataclasses.replace(
    PUSHT,
    name="pusht-m",
    env="foreact.envs.pusht:make_pusht_m",
    demonstrations=None,
    held_out="foreact.envs.collect:held_out_m_to_store",
)
