"""A verb that trains: how its command line becomes a run, and a run its command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from foreact.runs.command_line import command_line, options_of
from foreact.runs.parse import parse_run

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainingVerb(Generic[T]):
    """One of the verbs `foreact train NAME`.

    Attributes:
        name: such as "train uva".
        cls: dataclass of the run.
        recipe: defaults for the values of `choices`, such as the task, which decide all others.
        choices: options that are read first, because the defaults of all others depend on them.
    """

    name: str
    cls: type[T]
    recipe: Callable[[dict[str, str]], T]
    choices: tuple[str, ...] = ()

    def parse(self, args: Sequence[str]) -> T:
        """The run that a command line, after the verb, asks for."""
        return parse_run(
            self.cls,
            args,
            prog=f"foreact {self.name}",
            recipe=self.recipe,
            choices=self.choices,
        )

    def command(self, run: T) -> str:
        """The command line of a run: its choices, and all that is not the default with them."""
        chosen = {name: getattr(run, name) for name in self.choices}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        default = self.recipe({name: str(value) for name, value in chosen.items()})
        others = options_of(run, default, changed=True)
        return command_line(
            self.name,
            {name: (value, None) for name, value in chosen.items()},
            {name: pair for name, pair in others.items() if name not in chosen},
        )
