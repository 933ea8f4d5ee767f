"""Tasks by name: built in, by import path (`my_package.my_task`), or by entry point (group "foreact.tasks")."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points

from foreact.types import Task, UserError

BUILT_IN = {
    "pusht": "foreact.recipes.tasks.pusht",
    "pusht-m": "foreact.recipes.tasks.pusht_m",
    "cheetah-run": "foreact.recipes.tasks.cheetah_run",
    "walker-walk": "foreact.recipes.tasks.walker_walk",
}


def task_names() -> list[str]:
    """Built-in names, then those that installed packages add."""
    return [*BUILT_IN, *(e.name for e in entry_points(group="foreact.tasks"))]


def find_task(name: str) -> Task:
    """The task called `name`, or exported as `TASK` by the module of that import path."""
    if name in BUILT_IN:
        return importlib.import_module(BUILT_IN[name]).TASK
    for entry in entry_points(group="foreact.tasks"):
        if entry.name == name:
            return entry.load()
    if "." not in name:
        close = difflib.get_close_matches(name, task_names(), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose from {task_names()} or give an import path."
        raise UserError(f"There is no task called '{name}'; {hint}")
    try:
        return importlib.import_module(name).TASK
    except ModuleNotFoundError as error:
        raise UserError(f"Task '{name}' cannot be imported ({error}); check the spelling and PYTHONPATH.") from None
    except AttributeError:
        raise UserError(f"Module '{name}' exports no TASK; define `TASK = Task(...)` in it.") from None
