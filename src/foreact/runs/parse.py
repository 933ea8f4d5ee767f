"""Command lines in which some options (weights, task, run) decide the defaults of others."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro

from foreact.checkpoints.configs import config_from_json, read_json
from foreact.errors import UserError
from foreact.runs.schedule import implied_options

T = TypeVar("T")


def parse_parts(parts: Sequence[Any], args: Sequence[str], *, prog: str) -> list[Any]:
    """Several dataclasses as one command line.

    Args:
        parts: their instances, which hold the defaults; the docstring of the first one heads
            `--help`.
        args: command line after the verb.
        prog: verb, for `--help`.

    Returns:
        The instances that the command line asks for.
    """
    fields = [
        (f"part{i}", Annotated[type(part), tyro.conf.arg(name="")], dataclasses.field(default=part))
        for i, part in enumerate(parts)
    ]
    together = dataclasses.make_dataclass("Together", fields, frozen=True)
    parsed = tyro.cli(together, args=args, prog=prog, description=inspect.getdoc(parts[0]))
    return [getattr(parsed, name) for name, _, _ in fields]


def parse_run(
    cls: type[T],
    args: Sequence[str],
    *,
    prog: str,
    recipe: Callable[[dict[str, str]], T],
    choices: Sequence[str],
) -> T:
    """The run that the command line asks for.

    Args:
        cls: dataclass of the run.
        args: command line after the verb.
        prog: verb, for --help.
        recipe: defaults for the values of `choices`, such as the task, which decide all others.
        choices: options that are read first, because the defaults of all others depend on them.
    """
    chosen, rest = _take({*choices, "from"}, args)
    if "from" in chosen:
        folder = Path(chosen.pop("from"))
        if not (folder / "config.json").is_file():
            raise UserError(
                f"--from expects the folder of an earlier run; {folder} holds no config.json."
            )
        default = config_from_json(
            cls, read_json(folder / "config.json"), where=str(folder / "config.json")
        )
        default = dataclasses.replace(cast(Any, default), out=folder)
        if hasattr(default, "new_episodes"):  # asked for anew each time
            default = dataclasses.replace(default, new_episodes=False)
        rest = [*rest, *(word for name, value in chosen.items() for word in (f"--{name}", value))]
    else:
        default = recipe(chosen)
    about = (
        f"{cls.__doc__}\n\n--from FOLDER goes on with the run in that folder, with its "
        "configuration as the defaults."
    )
    rest = [*implied_options(default, rest), *rest]
    return tyro.cli(cls, prog=prog, args=rest, default=default, description=about)


def _take(names: set[str], args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split `--name value` and `--name=value` for the given names from the other arguments."""
    values: dict[str, str] = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if word.startswith("--") and name in names:
            value = value if equals else next(words, None)
            if value is None:
                raise UserError(f"--{name} needs a value.")
            values[name] = value
        else:
            rest.append(word)
    return values, rest


def checked(chosen: dict[str, str], **known: Sequence[str]) -> dict[str, Any]:
    """The options that decide the defaults, if they have known values."""
    for name, values in known.items():
        if name in chosen and chosen[name] not in values:
            raise UserError(
                f"--{name} should be one of {', '.join(values)}, found '{chosen[name]}'."
            )
    return dict(chosen)
