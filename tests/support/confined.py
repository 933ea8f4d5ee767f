"""One call of the command line in a child process with limits, and a verdict on how it ended."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from foreact.cli import main
from support.damage import CANARY

MEMORY = 2 * 2**30
"""Bytes of address space that a call may take besides what its parent has."""
SECONDS = 20
"""Of processor time per call; on the clock it has three times as much."""
FILE_SIZE = 256 * 2**20
"""Bytes of the largest file that a call may write."""
CRASHED = 70
"""Exit status of a child whose call ended in an exception of another kind than SystemExit."""
SAID = ".said"
"""File in the working folder that takes what the call prints."""


@dataclass(frozen=True)
class Verdict:
    """How one call ended.

    Attributes:
        kind: "read", "refused", or the name of a fault.
        text: the last lines it printed.
    """

    kind: str
    text: str

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("read", "refused")


def fork(function: Callable[[], object], folder: Path, *, limited: bool = True) -> int:
    """Start `function` in a child of this process, in `folder`; returns the child's number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = CRASHED
    try:
        os.setsid()
        os.chdir(folder)
        said = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(said, number)
        if limited:
            _limit()
        function()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def wait(child: int, seconds: float) -> int | None:
    """The exit status of a child, negative for a signal; None if it had to be killed."""
    handle = os.pidfd_open(child)
    try:
        ended = bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if ended else None


def call(argv: Sequence[str], folder: Path, may_leave: str = "") -> Verdict:
    """`foreact ARGV` in `folder`; `may_leave` is where work that had begun may leave something.

    Besides a traceback, a signal and a hang it is a fault to refuse in anything but one last line
    of the form "foreact: sentence.", to leave behind or change anything after a refusal, and to run
    what a file says.
    """
    before = listing(folder)
    began = time.monotonic()
    status = wait(fork(lambda: main(list(argv)), folder), 3 * SECONDS)
    said = (folder / SAID).read_text(errors="replace") if (folder / SAID).exists() else ""
    lines = [line.rpartition("\r")[2] for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    text = "\n".join(line[:400] for line in lines[-40:])
    changed = {name for name, _ in before.items() ^ listing(folder).items()}
    changed = {name for name in changed if not may_leave or name.split("/")[0] != may_leave}
    if (folder / CANARY).exists():
        return Verdict("code run", text)
    if status is None or status == -signal.SIGXCPU:
        return Verdict("hang", f"{text}\nafter {time.monotonic() - began:.0f} s")
    if status < 0:
        return Verdict("signal", f"{text}\nended by {signal.Signals(-status).name}")
    if status == CRASHED or "Traceback (most recent call last)" in said:
        return Verdict("traceback", text)
    if status == 0:
        return Verdict("read", text)
    is_sentence = last.startswith("foreact: ") and last[-1] in ".?" and last.isprintable()
    if status != 2 or not is_sentence or len(last) > 1000:
        return Verdict("no sentence", f"{text}\nexit status {status}")
    if changed:
        return Verdict("left behind", f"{text}\nchanged: {', '.join(sorted(changed)[:5])}")
    return Verdict("refused", last)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder with its kind, size and time of change."""
    entries = {}
    for path in folder.rglob("*"):
        if path.name == SAID:
            continue
        facts = path.lstat()
        is_file = path.is_file()
        entries[str(path.relative_to(folder))] = (
            (facts.st_size, facts.st_mtime_ns) if is_file else (-1, 0)
        )
    return entries
