"""Making episodes in several processes."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from foreact.errors import UserError
from foreact.machine import cores

T = TypeVar("T")


def process_count(workers: int | None, jobs: int) -> int:
    """Number of processes for `jobs`: `workers`, or one per core for None; at most one per job.

    Raises:
        UserError: fewer than one worker.
    """
    if workers is not None and workers < 1:
        raise UserError(f"Expected at least one worker, found {workers}.")
    return max(1, min(workers or cores(), jobs))


@contextmanager
def ordered_map(
    workers: int | None, jobs: int
) -> Iterator[Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]]:
    """Ordered, lazy parallel map by `process_count` processes; in this process if that is 1.

    A terminal's Ctrl-C interrupts this process alone, which ends the others.
    """
    count = process_count(workers, jobs)
    if count == 1:
        yield map
        return
    # Spawned, since a forked child of a process that runs torch threads may hang.
    with _without_interrupts():
        pool = multiprocessing.get_context("spawn").Pool(count)
    with pool:
        yield lambda function, items: pool.imap(function, items, chunksize=1)


def keep_each(results: Iterable[T], keep: Callable[[T], None]) -> None:
    """Hand over every result of an `ordered_map`, and lose none that is there on Ctrl-C.

    The interrupt does not reach `keep`; it ends the work once all results that need no waiting are
    kept.
    """
    iterator = iter(results)
    interrupted = False
    while True:
        try:
            result = _next_without_waiting(iterator) if interrupted else next(iterator)
        except (StopIteration, multiprocessing.TimeoutError):
            break
        with _noted_interrupt() as requests:
            keep(result)
        interrupted = interrupted or bool(requests)
    if interrupted:
        raise KeyboardInterrupt


def _next_without_waiting(iterator: Any) -> Any:
    """The next result of a pool, if it is there; a map in this process has none ready."""
    if not hasattr(iterator, "next"):
        raise StopIteration
    return iterator.next(timeout=0)


@contextmanager
def _noted_interrupt() -> Iterator[list[int]]:
    """Ctrl-C within the block is noted in the list instead of raised; in the main thread."""
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    previous = signal.signal(signal.SIGINT, lambda number, frame: requests.append(number))
    try:
        yield requests
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes and threads that start within the block never receive Ctrl-C."""
    resource_tracker.ensure_running()  # its own start within the block would unblock them again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
