"""Options among the words of a command line, before it is parsed."""

from __future__ import annotations

from collections.abc import Sequence


def option_value(args: Sequence[str], option: str) -> str | None:
    """The raw value of `--option value` or `--option=value`, None where it is absent."""
    for word, following in zip(args, [*args, ""][1:], strict=True):
        if word == option:
            return following or None
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
