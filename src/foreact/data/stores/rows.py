"""Readers of rows that formats share: numbers held in memory, and parts that lie in many places."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foreact.data.stores.episodes import Rows


class HeldRows:
    """Rows of an array in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.values[index]


class JoinedRows:
    """Rows of parts, such as data sets of several files, one part after another.

    Args:
        starts: int64 (P,) first row of each part.
        shape: of a row.
        dtype: of all rows.
        open_part: part by its number, opened when a row of it is first asked for.
    """

    def __init__(
        self,
        starts: np.ndarray,
        shape: tuple[int, ...],
        dtype: type[np.generic],
        open_part: Callable[[int], Rows],
    ) -> None:
        self.starts, self.shape, self.dtype, self._open_part = starts, shape, dtype, open_part
        self._parts: dict[int, Rows] = {}

    def rows(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((*index.shape, *self.shape), self.dtype)
        part = np.searchsorted(self.starts, index, side="right") - 1
        for number in np.unique(part).tolist():
            if number not in self._parts:
                self._parts[number] = self._open_part(number)
            chosen = part == number
            out[chosen] = self._parts[number].rows(index[chosen] - self.starts[number])
        return out
