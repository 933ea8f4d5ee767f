"""The command line that repeats what was done, made from the options as they were parsed."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from foreact.plugs import FAMILIES

Options = Mapping[str, tuple[Any, Any]]
"""Name of an option -> its value, and the default that it had when it was parsed."""
REQUIRED = object()
"""Stands for the default of an option that has none."""


def command_line(verb: str, *parts: Options) -> str:
    """The whole command, quoted for a shell: every option that decides something.

    Options are spelled out even where they have their default, so that the command still means the
    same after a default has changed; left out are those that were left empty, such as None.

    Args:
        verb: such as "eval closed-loop".
        parts: options of the verb, see `options_of` and `arguments_of`.
    """
    words = ["foreact", *verb.split()]
    for path in FAMILIES.paths.values():
        words += ["--family", path]
    for part in parts:
        for name, (value, default) in part.items():
            words += _words(name, value, default)
    return shlex.join(words)


def options_of(options: Any, default: Any = None, *, changed: bool = False) -> Options:
    """The options of a dataclass.

    Args:
        options: the instance that was parsed; None: none.
        default: the instance that the parser had; None: a new one of the class.
        changed: leave out what is as in `default`, such as what a recipe sets by itself.
    """
    if options is None:
        return {}
    fields = dataclasses.fields(options)
    found = {}
    for field in fields:
        value = getattr(options, field.name)
        before = _default(field) if default is None else getattr(default, field.name)
        if not changed:
            found[field.name] = (value, before)
        elif dataclasses.is_dataclass(value) and type(value) is type(before):
            inner = options_of(value, before, changed=True)
            found |= {f"{field.name}.{name}": pair for name, pair in inner.items()}
        elif value != before:
            found[field.name] = (value, before)
    return found


def arguments_of(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Options:
    """The options of a function that the command line calls.

    Args:
        function: whose parameters are options.
        arguments: their values by name, such as its `locals()` before anything else is bound.
    """
    parameters = inspect.signature(function).parameters
    return {
        name: (arguments[name], REQUIRED if p.default is p.empty else p.default)
        for name, p in parameters.items()
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED


def _words(name: str, value: Any, default: Any) -> list[str]:
    """The words of one option, or of those below it."""
    head, dot, last = name.replace("_", "-").rpartition(".")
    option = f"--{head}{dot}{last}"
    if value in (None, (), {}) and value == default:
        return []
    if dataclasses.is_dataclass(value):
        below = options_of(value, default if type(default) is type(value) else None)
        return [w for key, pair in below.items() for w in _words(f"{name}.{key}", *pair)]
    if isinstance(value, bool):
        return [option if value else f"--{head}{dot}no-{last}"]
    if isinstance(value, Mapping):
        if isinstance(default, Mapping) and default:  # each of its keys is an option
            return [w for key in value for w in (f"{option}.{key}", str(value[key]))]
        return [option, *(str(word) for pair in value.items() for word in pair)]
    if isinstance(value, tuple | list):
        return [option, *map(str, value)]
    text = str(value)
    return [f"{option}={text}"] if text.startswith("-") else [option, text]
