"""Which reader a path gets: a plugged-in format, or a zarr store."""

from __future__ import annotations

import warnings
from pathlib import Path

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.store import MEMORY_LIMIT, open_store
from foreact.errors import UserError, decoding
from foreact.plugs import FORMATS, load_object
from foreact.types import StreamSpec


def open_episodes(
    path: str | Path, spec: StreamSpec | None = None, *, memory_limit: int = MEMORY_LIMIT
) -> EpisodeStore:
    """Open a zarr store, or any plugged-in format such as V-D4RL's HDF5 shards, lazily.

    Args:
        path: the folder or file.
        spec: what the streams mean; see `open_store`.
        memory_limit: as in `open_store`.
    """
    for name in FORMATS.names():
        format_, plug = FORMATS.find(name), f"The format '{name}',"
        try:
            recognise = load_object(format_.recognise, plug)
        except UserError as error:  # of somebody else's package; other data do not need it
            warnings.warn(f"{error} Its data cannot be opened.", stacklevel=2)
            continue
        if recognise(Path(path)):
            open_format = load_object(format_.open, plug)
            with decoding(f"The format '{name}' could not open {path}"):
                return open_format(Path(path), spec, memory_limit=memory_limit)
    return open_store(path, spec, memory_limit=memory_limit)
