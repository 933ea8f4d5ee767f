"""Progress of long work: a bar on a terminal, and lines where stderr goes to a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS = 30.0
"""Time between two lines of slow work; quick work has a line for every tenth of it."""


def on_terminal() -> bool:
    """Whether progress is a bar that is drawn over and over."""
    return sys.stderr.isatty()


class Progress(Generic[T]):
    """How far some work is, on stderr; a context manager, and a wrapper of what is iterated over.

    Args:
        items: what to iterate over; leave it out to call `update` instead.
        total: how much there is to do; None: the length of `items`, where it has one.
        initial: how much of it was done before.
        desc: what is done, such as "import".
        unit: of what is counted.
        unit_scale: whether to write thousands as k, M, G, as for bytes.
        disable: show nothing.
        leave: keep the bar of a terminal on the screen when all is done.

    Attributes:
        n: how much is done.
    """

    def __init__(
        self,
        items: Iterable[T] = (),
        *,
        total: int | None = None,
        initial: int = 0,
        desc: str = "",
        unit: str = "it",
        unit_scale: bool = False,
        disable: bool = False,
        leave: bool = True,
    ) -> None:
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # pyright: ignore[reportArgumentType]
        self.n = self._said = initial
        self._items, self._total, self._initial = items, total or None, initial
        self._desc, self._unit, self._unit_scale = desc, unit, unit_scale
        self._began = self._last = time.monotonic()
        self._lines = not disable and not on_terminal()
        self._bar = tqdm(
            total=self._total,
            initial=initial,
            desc=desc,
            unit=unit,
            unit_scale=unit_scale,
            disable=disable or self._lines,
            leave=leave,
            dynamic_ncols=True,
        )

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> Progress[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.n += count
        self._bar.update(count)
        if self._lines and self._is_due():
            self._say()

    def set_description(self, desc: str) -> None:
        self._desc = desc
        self._bar.set_description(desc)

    def set_postfix_str(self, text: str) -> None:
        """Something to show beside a terminal's bar."""
        self._bar.set_postfix_str(text)

    def write(self, text: str) -> None:
        """One line that does not disturb the bar."""
        if self._lines:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Show how far it came; nothing more is shown afterwards."""
        self._bar.close()
        if self._lines and self.n != self._said:
            self._say()
        self._lines = False

    def _is_due(self) -> bool:
        if time.monotonic() - self._last >= SECONDS:
            return True
        return self._total is not None and 10 * self.n // self._total > (
            10 * self._said // self._total
        )

    def _say(self) -> None:
        self._said, self._last = self.n, time.monotonic()
        seconds = self._last - self._began
        rate = (self.n - self._initial) / max(seconds, 1e-9)
        head = f"{self._desc} " if self._desc else ""
        of_total = "" if self._total is None else f"/{self._number(self._total)}"
        left = f"{seconds:.0f} s"
        if self._total is not None and self.n < self._total and rate > 0:
            left = f"{(self._total - self.n) / rate:.0f} s left"
        print(
            f"{head}{self._number(self.n)}{of_total} {self._unit}, {self._number(rate)} "
            f"{self._unit}/s, {left}",
            file=sys.stderr,
            flush=True,
        )

    def _number(self, value: float) -> str:
        if self._unit_scale:
            return tqdm.format_sizeof(value)
        return f"{value}" if isinstance(value, int) else f"{value:.3g}"
