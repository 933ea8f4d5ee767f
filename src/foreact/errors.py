"""The one kind of error that people are meant to read."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk without room, or a quota or a limit that is used up, answers."""


DISK_FAULTS = (
    *NO_ROOM,
    *(errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EMFILE, errno.ENFILE),
)
"""What a disk answers whatever a file holds; decoders of damaged files raise others, too."""


class UserError(Exception):
    """A mistake that the user can fix: what was expected, what was found and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def room_or(error: OSError, otherwise: str) -> str:
    """What to do about a failed write: make room where that was missing, else something else."""
    return "make room" if error.errno in NO_ROOM else otherwise


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of a sentence about an unknown name: the nearest known name, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return (
        f"; did you mean '{close[0]}'?"
        if close
        else f"; known ones are {', '.join(known) or 'none'}."
    )


@contextmanager
def decoding(complaint: str, remedy: str = "copy or download it again") -> Iterator[None]:
    """Around a decoder of another project: whatever it raises becomes a `UserError`.

    Damaged bytes make decoders raise anything, from zlib.error to RecursionError, and no list of
    that is ever whole.

    Args:
        complaint: the file and what is wrong with it, such as "a.npz is no whole .npz file".
        remedy: what to do.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"{complaint} (it asks for more memory than there is); make room, or {remedy}."
        ) from error
    except PermissionError as error:
        raise UserError(f"{complaint} ({in_short(error)}); see to its rights.") from error
    except Exception as error:
        raise UserError(f"{complaint} ({in_short(error)}); {remedy}.") from error


LONGEST_WORD = 500
"""Letters; longer than any path that people give, shorter than what damaged files hold."""


def on_one_line(text: str) -> str:
    """A text of printing characters and words of bearable length; names in files may hold any."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    words = printable.split()
    return " ".join(w if len(w) <= LONGEST_WORD else f"{w[:97]}..." for w in words)


def in_short(error: BaseException) -> str:
    """An exception of another project as part of a sentence: one line of printable text."""
    text = on_one_line(str(error))
    text = text if len(text) <= 200 else text[:197] + "..."
    is_telling = isinstance(error, OSError) or type(error) in (ValueError, RuntimeError)
    return text if text and is_telling else f"{type(error).__name__}: {text}".removesuffix(": ")
