"""Rows of one data set of an HDF5 file, read on demand, by any number of processes.

Data sets that lie in one piece are read by position, past the HDF5 library: a few microseconds a
frame, nothing shared between processes, and no page of the file counts as memory of ours, as those
of a memory map would. All others, such as compressed ones, are decoded a row of chunks at a time
and kept in a bounded cache.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foreact.data.stores.chunks import BlockCache
from foreact.data.stores.episodes import Rows
from foreact.errors import UserError, decoding

if TYPE_CHECKING:
    import h5py

UNCHUNKED_ROWS = 64
"""Rows per block of a data set that is neither in one piece nor in chunks."""


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading; the caller closes.

    Raises:
        UserError: h5py is not installed, or the file is missing, cut short or of another format.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(
            'Reading HDF5 files needs h5py; run `pip install "foreact[hdf5]"`.'
        ) from None
    with decoding(f"{path} is no whole HDF5 file"):
        return h5py.File(path, "r")


def read_whole(path: Path, dataset: Any) -> np.ndarray:
    """Read a whole data set of the file at `path`; `UserError` if it is damaged or unfinished."""
    with decoding(f"'{dataset.name}' of {path} cannot be read"):
        _require_written(path, dataset)
        return dataset[:]


class SharedFile:
    """A file as the readers of its data sets have it open, from the first need on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw: Any = None
        self._opened: tuple[int, h5py.File] | None = None

    @property
    def descriptor(self) -> int:
        """To read by position, which forked processes may share."""
        if self._raw is None:
            self._raw = self.path.open("rb", buffering=0)
        return self._raw.fileno()

    @property
    def library(self) -> h5py.File:
        """As the HDF5 library has it open."""
        # It keeps state of its own per open file: a forked process must not share it.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), open_hdf5(self.path))
        return self._opened[1]


def open_rows(file: SharedFile, dataset: h5py.Dataset, cache: BlockCache) -> Rows:
    """A reader of a data set of the file.

    Raises:
        UserError: parts of the data set were never written, or lie beyond the end of the file.
    """
    with decoding(f"'{dataset.name}' of {file.path} cannot be read"):
        _require_written(file.path, dataset)
        name, shape, dtype = str(dataset.name).lstrip("/"), tuple(dataset.shape), dataset.dtype
        if (offset := dataset.id.get_offset()) is not None:
            return ContiguousRows(file, name, offset, shape, dtype)
        block_rows = dataset.chunks[0] if dataset.chunks else UNCHUNKED_ROWS
        return BlockRows(file, name, shape, dtype, block_rows, cache)


def _require_written(path: Path, dataset: Any) -> None:
    """Refuse a data set with chunks missing from the file, which HDF5 silently reads as zeros."""
    name, offset = str(dataset.name).lstrip("/"), dataset.id.get_offset()
    if offset is not None:
        if (end := offset + dataset.nbytes) > (size := path.stat().st_size):
            raise UserError(
                f"{path} is cut short: '{name}' needs {end} bytes, found {size}; copy it again."
            )
    elif dataset.chunks is not None:
        chunk_count = math.prod(
            -(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)
        )
        if (written := dataset.id.get_num_chunks()) < chunk_count:
            raise UserError(
                f"'{name}' of {path} has {written} of {chunk_count} chunks; its writing was cut "
                "short."
            )
    elif (
        dataset.nbytes
        and not dataset.is_virtual
        and not dataset.external
        and not dataset.id.get_storage_size()
    ):
        raise UserError(f"'{name}' of {path} was never written; copy or download the file again.")


class ContiguousRows:
    """Rows that lie one after another in a file from byte `offset` on."""

    def __init__(
        self, file: SharedFile, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self.file, self.name, self.offset, self.shape, self.dtype = file, name, offset, shape, dtype

    def rows(self, index: np.ndarray) -> np.ndarray:
        descriptor = self.file.descriptor
        out = np.empty((*index.shape, *self.shape[1:]), self.dtype)
        for row, buffer in zip(index.ravel(), out.reshape(-1, *self.shape[1:]), strict=True):
            start = self.offset + int(row) * buffer.nbytes
            if os.preadv(descriptor, [buffer.data], start) < buffer.nbytes:
                raise UserError(
                    f"{self.file.path} is cut short: it ends within row {row} of "
                    f"'{self.name}'; copy it again."
                )
        return out


class BlockRows:
    """Rows that the HDF5 library decodes, `block_rows` at a time."""

    def __init__(
        self,
        file: SharedFile,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        block_rows: int,
        cache: BlockCache,
    ) -> None:
        self.file, self.name, self.shape, self.dtype = file, name, shape, dtype
        self.block_rows, self._cache = block_rows, cache

    def rows(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((*index.shape, *self.shape[1:]), self.dtype)
        blocks = index // self.block_rows
        for block in np.unique(blocks):
            chosen = blocks == block
            out[chosen] = self._block(int(block))[index[chosen] - block * self.block_rows]
        return out

    def _block(self, block: int) -> np.ndarray:
        start = block * self.block_rows
        key = (f"{self.file.path}:{self.name}", block)
        return self._cache.get(
            key, lambda: self._decode(start, min(start + self.block_rows, self.shape[0]))
        )

    def _decode(self, start: int, stop: int) -> np.ndarray:
        file = self.file.library
        with decoding(
            f"Rows {start}..{stop} of '{self.name}' in {self.file.path} cannot be decoded"
        ):
            dataset: Any = file[self.name]
            return dataset[start:stop]
