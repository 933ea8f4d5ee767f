"""Tasks by name: built in, by entry point ("foreact.tasks") or by import path."""

from __future__ import annotations

from foreact.plugs import Plugs
from foreact.worlds import Task

TASKS = Plugs(
    kind="task",
    cls=Task,
    attribute="TASK",
    group="foreact.tasks",
    built_in={
        "pusht": "foreact.tasks.pusht:TASK",
        "pusht-m": "foreact.tasks.pusht_m:TASK",
        "cheetah-run": "foreact.tasks.cheetah_run:TASK",
        "walker-walk": "foreact.tasks.walker_walk:TASK",
        "umi": "foreact.tasks.umi:TASK",
    },
)


def find_task(name: str) -> Task:
    """The task called `name`, or exported as `TASK` by the module of that import path."""
    return TASKS.find(name)
