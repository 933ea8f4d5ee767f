"""Making episodes in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from foreact.errors import UserError
from foreact.machine import cores


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
    """Ordered, lazy parallel map by `process_count` processes; in this process if that is 1."""
    count = process_count(workers, jobs)
    if count == 1:
        yield map
        return
    # Spawned, since a forked child of a process that runs torch threads may hang.
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        yield lambda function, items: pool.imap(function, items, chunksize=1)
