"""Episodes of any format that can be opened in place, and which reader a path gets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from foreact.data.stores.hdf5 import Rows
from foreact.data.stores.store import MEMORY_LIMIT, open_store
from foreact.plugs import FORMATS, load_object
from foreact.types import EpisodeStore, StreamSpec


class RowStore(EpisodeStore, Protocol):
    """Episodes whose steps are consecutive rows; implemented by `stores.store`, `formats.d4rl`.

    Attributes:
        path: where it lies.
        native: whether it says itself what its streams mean.
        starts: int64 (E,) first row of each episode.
    """

    path: Path
    native: bool
    starts: np.ndarray

    @property
    def streams(self) -> list[str]:
        """Streams that the spec names."""
        ...

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Its own notes."""
        ...

    @property
    def info_names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def gather(self, stream: str, rows: np.ndarray) -> np.ndarray:
        """Rows of the whole stream, counted over all episodes: (*rows.shape, *row shape)."""
        ...

    def reader(self, stream: str) -> Rows:
        """The reader of one stream, held in memory from the first use on where it fits."""
        ...

    def has(self, stream: str) -> bool:
        """Whether it holds the stream, named by the spec or derived, for every step."""
        ...

    def info(self, name: str) -> np.ndarray:
        """One value per episode, (E, ...)."""
        ...

    def tokenizer_hash(self, stream: str) -> str | None:
        """Hash of the tokenizer that a stream of latents or tokens was made with, or None."""
        ...

    def bad_chunks(self, stream: str) -> tuple[list[str], list[str]]:
        """Parts on disk that the stream's steps need and that are (missing, too short)."""
        ...


def open_episodes(
    path: str | Path, spec: StreamSpec | None = None, *, memory_limit: int = MEMORY_LIMIT
) -> RowStore:
    """Open a zarr store, or any plugged-in format such as V-D4RL's HDF5 shards, lazily.

    Args:
        path: the folder or file.
        spec: what the streams mean; see `open_store`.
        memory_limit: as in `open_store`.
    """
    for name in FORMATS.names():
        format_ = FORMATS.find(name)
        if load_object(format_.recognise, f"The format '{name}',")(Path(path)):
            return load_object(format_.open, f"The format '{name}',")(
                Path(path), spec, memory_limit=memory_limit
            )
    return open_store(path, spec, memory_limit=memory_limit)
