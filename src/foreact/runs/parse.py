"""Command lines whose options depend on what some of them say: which weights, which task, which run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Annotated, Any

import tyro


def option_value(args: Sequence[str], option: str) -> str | None:
    """The value of `--option value` or `--option=value`, before anything is parsed; None where it is not there."""
    for word, following in zip(args, [*args[1:], ""], strict=True):
        if word == option:
            return following or None
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def parse_parts(parts: Sequence[Any], args: Sequence[str], *, prog: str) -> list[Any]:
    """Several dataclasses as one command line.

    Args:
        parts: their instances, which hold the defaults; the docstring of the first one heads `--help`.
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
