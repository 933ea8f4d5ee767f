"""Ctrl-C, SIGTERM or a scheduler's warning stop after the current step; one run per folder."""

from __future__ import annotations

import fcntl
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from foreact.errors import UserError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """Sets `requested` on the first signal of `STOPPING`; a second Ctrl-C interrupts.

    SIGUSR1 and SIGUSR2 are what SLURM's --signal is usually set to, to warn of the end of a job's
    time. Further SIGTERMs change nothing: torchrun sends one after the terminal's Ctrl-C has
    reached every process. Outside the main thread, where Python allows no handlers, the block does
    nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however it ends.

    A folder that is made here and holds nothing but the lock after a refusal is taken away again.

    Raises:
        UserError: another process trains in this folder, or it cannot be written.
    """
    lock_file, is_new = folder / ".lock", not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_file.open("a")  # not "w": a refused start leaves even its time as it was
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be written ({error.strerror}); choose another."
        ) from error
    with lock:
        try:
            # lockf, not flock: loader processes that briefly outlive a killed parent must not
            # inherit the lock.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another training is running in {folder}; wait for it, or choose another --out."
            ) from error
        try:
            yield
        except UserError:
            if is_new and list(folder.iterdir()) == [lock_file]:
                lock_file.unlink()
                folder.rmdir()
            raise
