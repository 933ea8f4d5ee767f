"""Stages of a demo: the expected time, which stage runs, and in the end how long each took."""

from __future__ import annotations

import time
from typing import Any

from foreact.commands.demos.pace import expected_minutes, windows_per_second
from foreact.machine import choose_precision
from foreact.runs.run import pick_device, say


class Stages:
    """Announces each part when it begins, and keeps its time.

    Args:
        demo: its name on the command line.
        titles: of the parts, in order.
    """

    def __init__(self, demo: str, *titles: str) -> None:
        self._titles = titles
        self._began: list[float] = []
        device = pick_device(None)
        found = expected_minutes(
            device, windows_per_second(device, choose_precision("auto", device))
        )
        say(f"foreact {demo}, with its own settings: {found[demo]}")

    def begin(self, **facts: Any) -> None:
        """End the part that runs, and announce the next one."""
        self._began.append(time.perf_counter())
        number = len(self._began)
        say(f"{number}/{len(self._titles)}  {self._titles[number - 1]}", **facts)

    @property
    def minutes(self) -> float:
        """Since the first part began."""
        return (time.perf_counter() - self._began[0]) / 60

    def conclude(self) -> None:
        """Print what each part took."""
        ends = [*self._began[1:], time.perf_counter()]
        parts = zip(self._titles, self._began, ends, strict=False)
        say(
            "Minutes",
            **{title: f"{(end - start) / 60:.1f}" for title, start, end in parts},
            all=f"{self.minutes:.1f}",
        )
