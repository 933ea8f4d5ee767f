"""Rows of one zarr array: whole in memory where it fits, else through a bounded block cache."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.core.metadata import ArrayV2Metadata

from foreact.data.stores.zip_directory import ZipDirectory
from foreact.errors import UserError, decoding

BULK_BYTES = 64 * 2**20
"""How much is decoded at once while a whole array is read into memory."""


BLOSC_HEADER = 16
"""Bytes; the last four say how long the compressed chunk is."""


class BlockCache:
    """The most recently used decoded blocks of one store, at most `limit` bytes of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._blocks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()

    def get(self, key: tuple[str, int], make: Callable[[], np.ndarray]) -> np.ndarray:
        block = self.find(key)
        return self.put(key, make()) if block is None else block

    def find(self, key: tuple[str, int]) -> np.ndarray | None:
        if key in self._blocks:
            self._blocks.move_to_end(key)
        return self._blocks.get(key)

    def put(self, key: tuple[str, int], block: np.ndarray) -> np.ndarray:
        """Keep a block that `find` did not find."""
        self._blocks[key] = block
        self.size += block.nbytes
        while self.size > self.limit and len(self._blocks) > 1:
            self.size -= self._blocks.popitem(last=False)[1].nbytes
        return block


class ChunkFiles:
    """The chunk files of a store, as they lie on disk.

    zarr reads a missing chunk as the fill value, and Blosc decodes a shortened one to whatever lies
    in memory behind it, both without a word.

    Attributes:
        top: the folder of a zip that the store lies in, with "/" at its end; "" for none.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._zipped = None if root.is_dir() else ZipDirectory(root)
        self.top = "" if self._zipped is None else self._zipped.top

    def exists(self, key: str) -> bool:
        return key in self._zipped if self._zipped is not None else (self.root / key).is_file()

    def read(self, key: str) -> bytes:
        """Content of a file, by the name that `_chunk_keys` gives it."""
        if self._zipped is None:
            return (self.root / key).read_bytes()
        return self._zipped.read(self._zipped.numbers[key])

    def is_short(self, key: str) -> bool:
        """Whether a Blosc-compressed chunk file lacks bytes; zip archives have own checksums."""
        if self._zipped is not None:
            return False
        with (self.root / key).open("rb") as file:
            header = file.read(BLOSC_HEADER)
            size = file.seek(0, os.SEEK_END)
        return len(header) < BLOSC_HEADER or size < int.from_bytes(header[12:16], "little")


def missing_chunks(array: zarr.Array, start: int, stop: int, files: ChunkFiles) -> Iterator[str]:
    """Names of the chunk files that rows start..stop need and the store does not have."""
    for key in _chunk_keys(array, start, stop):
        if not files.exists(key):
            yield key


def damaged_chunks(array: zarr.Array, start: int, stop: int, files: ChunkFiles) -> Iterator[str]:
    """Names of the chunk files of rows start..stop that exist and are too short."""
    if _is_blosc(array):
        for key in _chunk_keys(array, start, stop):
            if files.exists(key) and files.is_short(key):
                yield key


def _is_blosc(array: zarr.Array) -> bool:
    metadata = array.metadata
    if isinstance(metadata, ArrayV2Metadata):
        return isinstance(metadata.compressor, numcodecs.Blosc)
    return isinstance(metadata.codecs[-1], BloscCodec)


def _chunk_keys(array: zarr.Array, start: int, stop: int) -> Iterator[str]:
    rows, *across = _file_shape(array)
    along = range(start // rows, -(-stop // rows))
    for index in product(
        along, *(range(-(-n // c)) for n, c in zip(array.shape[1:], across, strict=True))
    ):
        yield f"{array.path}/{array.metadata.encode_chunk_key(index)}"


def _file_shape(array: zarr.Array) -> tuple[int, ...]:
    """Shape of what one file holds."""
    return tuple(int(n) for n in array.shards or array.chunks)


class RowReader:
    """Rows (first axis) of `array`, converted by `convert`, which keeps shapes.

    A block is one row of chunks (of shards, where the array has them). With `fill_missing`, chunks
    that are not there stand for the fill value.
    """

    def __init__(
        self,
        array: zarr.Array,
        store: Path,
        name: str,
        *,
        dtype: np.dtype,
        convert: Callable[[np.ndarray], np.ndarray],
        files: ChunkFiles,
        fill_missing: bool,
        cache: BlockCache,
    ) -> None:
        self.array, self.store, self.name, self.dtype = array, store, name, np.dtype(dtype)
        self.shape: tuple[int, ...] = tuple(array.shape)
        self._convert, self._files, self._cache, self._fill_missing = (
            convert,
            files,
            cache,
            fill_missing,
        )
        self.block_rows = _file_shape(array)[0]
        self._memory: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def in_memory(self) -> bool:
        return self._memory is not None

    @property
    def survives_fork(self) -> bool:
        return self.in_memory

    def load(self) -> np.ndarray:
        """Read everything into memory, once."""
        if self._memory is None:
            whole = np.empty(self.shape, self.dtype)
            block_bytes = self.block_rows * int(np.prod(self.shape[1:])) * self.array.dtype.itemsize
            step = self.block_rows * max(1, BULK_BYTES // max(1, block_bytes))
            for start in range(0, self.shape[0], step):
                whole[start : start + step] = self._decode(start, min(start + step, self.shape[0]))
            whole.setflags(write=False)
            self._memory = whole
        return self._memory

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop as a new array."""
        if self._memory is not None:
            return self._memory[start:stop].copy()
        return self.rows(np.arange(start, stop))

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Rows of an integer array of any shape: (*index.shape, *row shape)."""
        if self._memory is not None:
            return self._memory[index]
        out = np.empty((*index.shape, *self.shape[1:]), self.dtype)
        blocks = index // self.block_rows
        for block in np.unique(blocks):
            chosen = blocks == block
            out[chosen] = self._block(int(block))[index[chosen] - block * self.block_rows]
        return out

    def _block(self, block: int) -> np.ndarray:
        start = block * self.block_rows
        stop = min(start + self.block_rows, self.shape[0])
        return self._cache.get((self.name, block), lambda: self._decode(start, stop))

    def _decode(self, start: int, stop: int) -> np.ndarray:
        if not self._fill_missing:
            missing = next(missing_chunks(self.array, start, stop, self._files), None)
            if missing is not None:
                raise UserError(
                    f"The store {self.store} is truncated: its chunk '{missing}' should be there "
                    "and is not; copy or collect the store again (`foreact data import "
                    "--fill-missing` takes one whose writer left out chunks of zeros on purpose)."
                )
        with decoding(
            f"Steps {start}..{stop} of stream '{self.name}' in {self.store} cannot be decoded",
            "the store is damaged, copy or collect it again",
        ):
            short = next(damaged_chunks(self.array, start, stop, self._files), None)
            if short is not None:
                raise ValueError(f"the chunk '{short}' is shorter than it says")
            raw = np.asarray(self.array[start:stop])
        return self._convert(raw)
