"""Which reader a path gets: a plugged-in format, or a zarr store."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.store import MEMORY_LIMIT, open_store
from foreact.errors import UserError, decoding, did_you_mean
from foreact.plugs import FORMATS, Format, load_object
from foreact.types import StreamSpec

Options = Mapping[str, Mapping[str, Any]]
"""Name of a format -> options of its opener."""


def open_episodes(
    path: str | Path,
    spec: StreamSpec | None = None,
    *,
    memory_limit: int = MEMORY_LIMIT,
    options: Options | None = None,
) -> EpisodeStore:
    """Open a zarr store, or any plugged-in format such as V-D4RL's HDF5 shards, lazily.

    Args:
        path: the folder or file.
        spec: what the streams mean; see `open_store`.
        memory_limit: as in `open_store`.
        options: how files of some formats are to be read, such as a task's `data_options`; what is
            said of other formats than the path's does not matter.

    Raises:
        UserError: the data are damaged or contradict the spec, or the format has no such option.
    """
    format_ = recognised(path)
    if format_ is None:
        if Path(path).suffix == ".json" and Path(path).is_file():
            raise UserError(
                f"{path} is no store but JSON, as mixtures of stores are; name one of its members."
            )
        return open_store(path, spec, memory_limit=memory_limit)
    chosen = (options or {}).get(format_.name, {})
    for option in chosen:
        if option not in format_.options:
            raise UserError(
                f"Data of the format '{format_.name}', as {path}, are opened without an option "
                f"'{option}'{did_you_mean(option, format_.options)}"
            )
    open_format = load_object(format_.open, f"The format '{format_.name}',")
    with decoding(f"The format '{format_.name}' could not open {path}"):
        return open_format(Path(path), spec, memory_limit=memory_limit, **chosen)


def recognised(path: str | Path) -> Format | None:
    """The first format that takes the path for its own; None: a zarr store, if anything."""
    for name in FORMATS.names():
        format_ = FORMATS.find(name)
        try:
            recognise = load_object(format_.recognise, f"The format '{name}',")
        except UserError as error:  # of somebody else's package; other data do not need it
            warnings.warn(f"{error} Its data cannot be opened.", stacklevel=3)
            continue
        if recognise(Path(path)):
            return format_
    return None
