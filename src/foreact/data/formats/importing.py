"""What all importers share: a store that appears when it is whole, and an account of what it holds.

While it is made, the store OUT lies beside its place as `.OUT.unfinished`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from foreact.data.stores.layout import require_store_name
from foreact.data.stores.writer import committed_episodes, drop_episodes
from foreact.errors import DISK_FAULTS, UserError


@contextmanager
def store_to_import(out: Path) -> Iterator[Path]:
    """Where to write a store that is to lie at `out`.

    A new store is written under another name and renamed at the end. Stopped by the user, by a kill
    or by a full disk, an import leaves it there, and the same command goes on with it. An import
    that is refused for what its source holds, such as a picture that cannot be decoded, takes away
    what it added: a new store vanishes, and one that was begun or whole before has its former
    episodes again.

    Args:
        out: the store; one that is there already is written in place.

    Raises:
        UserError: `out` cannot be a store's name.
    """
    require_store_name(out)
    draft = out if out.exists() else out.with_name(f".{out.name}.unfinished")
    episodes = committed_episodes(draft) if draft.exists() else 0
    missing_folders = [folder for folder in out.parents if not folder.exists()]
    try:
        yield draft
    except UserError as error:
        if _is_refusal(error):
            if episodes or draft == out:
                drop_episodes(draft, episodes)
            else:
                _remove(draft, missing_folders)
        raise
    if draft != out:
        try:
            os.replace(draft, out)
        except OSError as error:
            raise UserError(
                f"{draft}, which is whole, could not become {out} ({error.strerror}); rename it."
            ) from error


def _is_refusal(error: UserError) -> bool:
    """Whether it is what the source holds that is refused, and not a disk or the memory."""
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, MemoryError):
            return False
        if isinstance(cause, OSError) and cause.errno in DISK_FAULTS:
            return False
        cause = cause.__cause__
    return True


def _remove(draft: Path, made_folders: list[Path]) -> None:
    """Remove a new store and the folders that were made for it, from the innermost on."""
    shutil.rmtree(draft, ignore_errors=True)
    with suppress(OSError):  # not empty: something else came to lie there
        for folder in made_folders:
            folder.rmdir()


@dataclass
class _Line:
    """One kind of thing: how many were found, and why how many of them were left out."""

    found: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, object] = field(default_factory=dict)


class Account:
    """What an import found, took and left out, and why; `str` makes a table of it."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._notes: list[str] = []

    def find(self, kind: str, count: int = 1) -> None:
        """Count things of a kind, such as "images"."""
        self._lines.setdefault(kind, _Line()).found += count

    def leave_out(self, kind: str, count: int, reason: str, *examples: object) -> None:
        """Say why things that were found are not taken; nothing where `count` is 0.

        Args:
            kind: as in `find`.
            count: how many.
            reason: as the words after "12", such as "without a pose".
            examples: of them, of which the first is shown.
        """
        if count:
            line = self._lines.setdefault(kind, _Line())
            line.left_out[reason] = line.left_out.get(reason, 0) + count
            for example in examples:
                line.examples.setdefault(reason, example)

    def note(self, sentence: str) -> None:
        """Add a line below the table."""
        self._notes.append(sentence)

    def found(self, kind: str) -> int:
        return self._lines[kind].found if kind in self._lines else 0

    def left_out(self, kind: str) -> int:
        return sum(self._lines[kind].left_out.values()) if kind in self._lines else 0

    def taken(self, kind: str) -> int:
        return self.found(kind) - self.left_out(kind)

    def reasons(self, kind: str) -> str:
        """Why how many of a kind were left out, in words."""
        line = self._lines.get(kind, _Line())
        return "; ".join(
            f"{count:,} {reason}"
            + (f", such as {line.examples[reason]}" if reason in line.examples else "")
            for reason, count in line.left_out.items()
        )

    @property
    def episodes(self) -> int:
        """Episodes in the store, those of an earlier import too."""
        return self.taken("episodes")

    def __str__(self) -> str:
        width = max(10, *(len(kind) for kind in self._lines)) if self._lines else 10
        rows = [f"{'':<{width}}{'found':>10}{'taken':>10}{'left out':>10}"]
        for kind, line in self._lines.items():
            counts = (line.found, self.taken(kind), self.left_out(kind))
            numbers = "".join(f"{count:>10,}" for count in counts)
            rows.append(f"{kind:<{width}}{numbers}  {self.reasons(kind)}".rstrip())
        return "\n".join([*rows, *self._notes])
