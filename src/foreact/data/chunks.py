"""Rows of one zarr array: whole in memory where it fits, else block by block through a bounded cache."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import zarr

from foreact.types import UserError

BULK_BYTES = 64 * 2**20
"""How much is decoded at once while a whole array is read into memory."""


class BlockCache:
    """The most recently used decoded blocks of one store, at most `limit` bytes of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._blocks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()

    def get(self, key: tuple[str, int], make: Callable[[], np.ndarray]) -> np.ndarray:
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        block = make()
        self._blocks[key] = block
        self.size += block.nbytes
        while self.size > self.limit and len(self._blocks) > 1:
            self.size -= self._blocks.popitem(last=False)[1].nbytes
        return block


class ChunkFiles:
    """Which chunk files a store has. zarr itself reads a missing one as the fill value, without a word."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._zipped: set[str] | None = None
        if not root.is_dir():
            with zipfile.ZipFile(root) as archive:
                self._zipped = set(archive.namelist())

    def exists(self, key: str) -> bool:
        return key in self._zipped if self._zipped is not None else (self.root / key).exists()


def missing_chunks(array: zarr.Array, start: int, stop: int, files: ChunkFiles) -> Iterator[str]:
    """Names of the chunk files that rows start..stop need and the store does not have."""
    rows, *across = _file_shape(array)
    along = range(start // rows, -(-stop // rows))
    for index in product(along, *(range(-(-n // c)) for n, c in zip(array.shape[1:], across, strict=True))):
        key = f"{array.path}/{array.metadata.encode_chunk_key(index)}"
        if not files.exists(key):
            yield key


def _file_shape(array: zarr.Array) -> tuple[int, ...]:
    """Shape of what one file holds."""
    return tuple(int(n) for n in array.shards or array.chunks)


class RowReader:
    """Rows (first axis) of `array`, converted by `convert`, which keeps shapes.

    A block is one row of chunks (of shards, where the array has them). `files` is None where missing chunks stand for the fill value.
    """

    def __init__(
        self,
        array: zarr.Array,
        store: Path,
        name: str,
        *,
        dtype: np.dtype,
        convert: Callable[[np.ndarray], np.ndarray],
        files: ChunkFiles | None,
        cache: BlockCache,
    ) -> None:
        self.array, self.store, self.name, self.dtype = array, store, name, np.dtype(dtype)
        self.shape: tuple[int, ...] = tuple(array.shape)
        self._convert, self._files, self._cache = convert, files, cache
        self.block_rows = _file_shape(array)[0]
        self._memory: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def in_memory(self) -> bool:
        return self._memory is not None

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
        if self._files is not None:
            missing = next(missing_chunks(self.array, start, stop, self._files), None)
            if missing is not None:
                raise UserError(
                    f"The store {self.store} is truncated: its chunk '{missing}' should be there and is not; "
                    "copy or collect the store again (`foreact data import --fill-missing` takes one whose writer left "
                    "out chunks of zeros on purpose)."
                )
        try:
            raw = np.asarray(self.array[start:stop])
        except MemoryError:
            raise
        except Exception as error:  # codecs raise every kind of exception on damaged bytes
            raise UserError(
                f"Steps {start}..{stop} of stream '{self.name}' in {self.store} cannot be decoded ({error}); "
                "the store is damaged, copy or collect it again."
            ) from error
        return self._convert(raw)
