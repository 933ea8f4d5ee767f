"""Processes of torchrun that coordinate through files, without collectives, on any file system.

Each one writes `<rank>.json` into a folder: how far it is and, should it fail, its last words.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foreact.errors import UserError, room_or

POLL_SECONDS = 0.2


class OtherProcessError(UserError):
    """Another process failed and said why; it need not be told."""


class Ranks:
    """This process among those that torchrun started.

    Args:
        rank: its number.
        count: how many there are.
        patience: seconds without any sign of life from the others after which the first one gives
            them up.
    """

    def __init__(self, rank: int = 0, count: int = 1, *, patience: float = 600.0) -> None:
        if not 0 <= rank < count:
            raise UserError(
                f"RANK should be in 0..{count - 1} for WORLD_SIZE {count}, found {rank}; start "
                "with torchrun."
            )
        self.rank, self.count, self.patience = rank, count, patience
        self._folder: Path | None = None
        self._old_notes: dict[int, str] = {}
        self._steps = 0

    @staticmethod
    def of_torchrun(*, patience: float = 600.0) -> Ranks:
        """As RANK and WORLD_SIZE say; alone without them."""
        return Ranks(
            int(os.environ.get("RANK", "0")),
            int(os.environ.get("WORLD_SIZE", "1")),
            patience=patience,
        )

    @contextmanager
    def working(self, folder: Path) -> Iterator[None]:
        """Work beside the others, who meet in `folder`, and leave them an error's sentence."""
        if self.count == 1:
            yield
            return
        folder.mkdir(exist_ok=True)
        self._folder = folder
        # An interrupted earlier run leaves notes too: only those that change from now on are ours.
        self._old_notes = self._notes()
        self._steps = 0
        self._write(None)
        try:
            yield
        except OtherProcessError:
            raise
        except Exception as error:
            with suppress(UserError):
                self._write(str(error) or type(error).__name__)
            raise
        finally:
            self._folder = None

    def report(self, steps: int) -> None:
        """Give a sign of life: `steps` more are done."""
        self._steps += steps
        self._write(None)

    def check(self) -> None:
        """Raise `OtherProcessError` with the sentence of a process that failed, if one did."""
        for rank, note in self._notes().items():
            if note != self._old_notes.get(rank) and (error := json.loads(note)["error"]):
                raise OtherProcessError(f"Process {rank} failed: {error}")

    def wait(self, left: Callable[[], int], unit: str = "frames") -> Iterator[int]:
        """Look again and again how much is left, until nothing is.

        Raises:
            UserError: another process failed, or none gave a sign of life for `patience` seconds.
        """
        last_notes, last_change = self._notes(), time.monotonic()
        while (remaining := left()) > 0:
            yield remaining
            self.check()
            if (notes := self._notes()) != last_notes:
                last_notes, last_change = notes, time.monotonic()
            elif time.monotonic() - last_change > self.patience:
                words = [
                    f"; process {rank} said: {e}"
                    for rank, n in notes.items()
                    if (e := json.loads(n)["error"])
                ]
                raise UserError(
                    f"{remaining} {unit} of the other {self.count - 1} processes are not done, "
                    f"and none of them gave a sign of life for {self.patience:g} "
                    f"s{''.join(words)}; start again, what was done is kept."
                )
            time.sleep(POLL_SECONDS)
        yield 0

    def _notes(self) -> dict[int, str]:
        """Notes of the other processes, as they stand."""
        notes: dict[int, str] = {}
        if self._folder is not None:
            for rank in set(range(self.count)) - {self.rank}:
                with suppress(FileNotFoundError):
                    notes[rank] = (self._folder / f"{rank}.json").read_text()
        return notes

    def _write(self, error: str | None) -> None:
        if self._folder is None:
            return
        # The time makes the note of every run differ from the last one's.
        note = json.dumps({"steps": self._steps, "error": error, "time_ns": time.time_ns()})
        temporary = self._folder / f".{self.rank}.tmp"
        try:
            temporary.write_text(note)
            os.replace(temporary, self._folder / f"{self.rank}.json")
        except OSError as problem:
            raise UserError(
                f"Process {self.rank} cannot write to {self._folder} ({problem}); "
                f"{room_or(problem, 'give it the rights, or choose another --out')}."
            ) from problem
