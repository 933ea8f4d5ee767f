"""Functions as processes of their own, forked from one that has imported what training needs.

An interpreter that imports torch and us costs seconds, a fork of one that has done so costs none.
Python's fork server is that process: it has no threads and computes nothing, so what is forked from
it is as good as new.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Listener, wait
from threading import Thread
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        f"foreact.families.{name}"
        for name in ("codes.tokenize", "driving.train_vavam", "voc.train", "codes.train_vqkd")
    ]
)


class Forked:
    """A process that calls `main(*words)`, which it imports by name.

    Args:
        main: a function of a module; SystemExit is the process's status, any other error is 1.
        words: what it is called with.
        env: environment variables besides those of this process.
    """

    def __init__(
        self, main: Callable[..., object], *words: Any, env: Mapping[str, str] | None = None
    ) -> None:
        self._said = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        files, variables = [file.name for file in self._said], {**os.environ, **(env or {})}
        self._process = FORKS.Process(target=_become, args=(main, words, variables, files))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """How it ended, as subprocess says it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 200.0) -> int:
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            self.kill()
            raise TimeoutError(
                f"The process has not ended within {timeout:g} s and said: {self.errors}"
            )
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self._process.join()

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    @property
    def output(self) -> str:
        return self._read(0)

    @property
    def errors(self) -> str:
        return self._read(1)

    def _read(self, which: int) -> str:
        self._said[which].seek(0)
        return self._said[which].read()


class Together:
    """Processes of one training run, each told its place as torchrun tells it."""

    def __init__(
        self,
        main: Callable[..., object],
        *words: Any,
        size: int = 2,
        env: Mapping[str, str] | None = None,
    ) -> None:
        # The meeting point is ours, on a port that the system chose, as torchrun's agent does it.
        self._meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        place = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._meeting.port),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        self.processes = [
            Forked(
                main,
                *words,
                env={**(env or {}), **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(size)
        ]

    def wait(self, timeout: float = 200.0) -> list[int]:
        """How they ended; the others are ended once one has failed."""
        limit = time.monotonic() + timeout
        try:
            while running := [p for p in self.processes if p.poll() is None]:
                if any(p.poll() for p in self.processes):
                    break
                if time.monotonic() > limit:
                    raise TimeoutError(
                        f"The processes have not ended within {timeout:g} s and said: {self.errors}"
                    )
                wait([p.sentinel for p in running], 1.0)
        finally:
            for process in self.processes:
                process.kill()
        return [process.wait() for process in self.processes]

    def finish(self, timeout: float = 200.0) -> None:
        """Wait, and see that none has failed."""
        statuses = self.wait(timeout)
        assert not any(statuses), f"{statuses}\n{self.errors}"

    @property
    def output(self) -> str:
        return "".join(process.output for process in self.processes)

    @property
    def errors(self) -> str:
        return "".join(process.errors for process in self.processes)


ENTER = """
import os, signal, sys
from multiprocessing.connection import Client
inside = Client(sys.argv[1])
inside.send((dict(os.environ), sys.argv[2:]))
process = inside.recv()
signal.signal(signal.SIGTERM, lambda number, frame: os.kill(process, number))
status, output, errors = inside.recv()
print(output, end="", flush=True)
print(errors, end="", file=sys.stderr, flush=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


class Door:
    """A program for others to start, each start of which is a `Forked`:
    with its environment, ended by its SIGTERM.
    """

    def __init__(self, main: Callable[..., object]) -> None:
        self.main = main
        self._listener = Listener(family="AF_UNIX")
        Thread(target=self._open, daemon=True).start()

    def command(self, *words: str) -> list[str]:
        """What to start: it calls `main(*words)`, says what that says and ends as it ends."""
        return [sys.executable, "-S", "-c", ENTER, str(self._listener.address), *words]

    def _open(self) -> None:
        while True:
            Thread(target=self._serve, args=(self._listener.accept(),), daemon=True).start()

    def _serve(self, visitor: Any) -> None:
        env, words = visitor.recv()
        process = Forked(self.main, *words, env=env)
        visitor.send(process.pid)
        visitor.send((process.wait(), process.output, process.errors))


def _become(
    main: Callable[..., object], words: tuple, env: dict[str, str], files: list[str]
) -> None:
    os.environ.clear()
    os.environ.update(env)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # whoever runs tests in the background may ignore Ctrl-C
    torch.set_num_threads(1)
    main(*words)
