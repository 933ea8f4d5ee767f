"""Ctrl-C while episodes are made: what is finished is kept, and this process alone hears of it."""

from __future__ import annotations

import os
import signal

import pytest
from support.interrupting import interrupt_itself

from foreact.envs.workers import keep_each, ordered_map


def double(number: int) -> int:
    return 2 * number


def interrupt_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return number


def test_an_interrupt_while_a_result_is_kept_waits_for_it() -> None:
    kept: list[int] = []

    def keep(number: int) -> None:
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        kept.append(number)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), ordered_map(1, 9) as run:
        keep_each(run(double, range(9)), keep)
    assert kept == [0, 2, 4]
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_while_a_result_is_made_loses_no_earlier_one() -> None:
    kept: list[int] = []
    with pytest.raises(KeyboardInterrupt), ordered_map(1, 9) as run:
        keep_each(run(interrupt_at_two, range(9)), kept.append)
    assert kept == [0, 1]


def test_results_that_are_ready_are_kept_after_an_interrupt() -> None:
    kept: list[int] = []

    def keep(number: int) -> None:
        if number == 0:
            os.kill(os.getpid(), signal.SIGINT)
        kept.append(number)

    class Ready:
        """Like a pool's iterator all of whose results are there."""

        def __init__(self) -> None:
            self.left = [0, 1, 2]

        def __iter__(self) -> Ready:
            return self

        def __next__(self) -> int:
            return self.next()

        def next(self, timeout: float | None = None) -> int:
            if not self.left:
                raise StopIteration
            return self.left.pop(0)

    results = Ready()
    with pytest.raises(KeyboardInterrupt):
        keep_each(results, keep)
    assert kept == [0, 1, 2]


def test_other_processes_do_not_hear_of_ctrl_c() -> None:
    kept: list[int] = []
    with ordered_map(2, 2) as run:
        keep_each(run(interrupt_itself, range(2)), kept.append)
    assert kept == [0, 1]
