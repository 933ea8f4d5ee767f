"""The one kind of error that people are meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can fix: what was expected, what was found and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of a sentence about an unknown name: the nearest known name, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return (
        f"; did you mean '{close[0]}'?"
        if close
        else f"; known ones are {', '.join(known) or 'none'}."
    )
