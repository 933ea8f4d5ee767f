"""Making episodes in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from foreact.errors import UserError
from foreact.machine import cores


def process_count(workers: int | None, jobs: int) -> int:
    """How many processes do `jobs` things: `workers`, or one per core for None, and never more than
    there are jobs.

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
    """An ordered, lazy parallel map over `jobs` items, by
    `process_count` processes; in this one where that is 1.
    """
    count = process_count(workers, jobs)
    if count == 1:
        yield map
        return
    # Spawned, since a forked child of a process that runs torch threads may hang.
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        yield lambda function, items: pool.imap(function, items, chunksize=1)
