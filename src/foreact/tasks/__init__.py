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
        "tool-hang": "foreact.tasks.tool_hang:TASK",
        "libero10": "foreact.tasks.libero10:TASK",
        "libero10-released": "foreact.tasks.libero10:RELEASED",
        "lift": "foreact.tasks.lift:TASK",
        "can": "foreact.tasks.can:TASK",
        "square": "foreact.tasks.square:TASK",
        "umi": "foreact.tasks.umi:TASK",
    },
)


def find_task(name: str) -> Task:
    """The task called `name`, or exported as `TASK` by the module of that import path."""
    return TASKS.find(name)
