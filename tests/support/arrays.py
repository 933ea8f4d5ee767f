"""Episodes in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foreact.data.stores.episodes import EpisodeStore
from foreact.types import StreamSpec


@dataclass(frozen=True)
class ArrayRows:
    values: np.ndarray

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.values[index]


class ArrayStore(EpisodeStore):
    """Episodes of these lengths, one after another in arrays (N, ...), by stream."""

    path, native = Path("arrays"), True

    def __init__(
        self, spec: StreamSpec, lengths: Sequence[int], arrays: Mapping[str, np.ndarray]
    ) -> None:
        self.spec, self.arrays = spec, arrays
        self.lengths = np.asarray(lengths, np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths

    def has(self, stream: str) -> bool:
        return stream in self.arrays

    def reader(self, stream: str) -> ArrayRows:
        return ArrayRows(self.arrays[stream])


def bare_store(lengths: Sequence[int]) -> ArrayStore:
    """Episodes without any stream."""
    return ArrayStore(StreamSpec(cameras={}, fps=10.0), lengths, {})
