"""Rows of an array whose every row is one compressed picture file, such as UMI's JPEG-XL frames.

Only the frames that are asked for are decoded, several at once, and nothing but a small cache is
kept: a decoder works outside Python's lock, so threads share the work. `shared_frames` keeps more.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from torch.utils.data import get_worker_info
from zarr.core.metadata import ArrayV2Metadata

from foreact.data.stores.chunks import BlockCache, ChunkFiles
from foreact.data.stores.shared_frames import shared_frames
from foreact.errors import UserError, decoding

MOST_THREADS = 8
FEW_FRAMES = 4
"""Up to so many frames are decoded one after another."""

_threads: tuple[int, ThreadPoolExecutor] | None = None
"""Of this process, by its id: threads do not survive a fork."""


def has_frame_files(array: zarr.Array) -> bool:
    """Whether every row of the array is one file, compressed by an image codec."""
    metadata = array.metadata
    return (
        isinstance(metadata, ArrayV2Metadata)
        and array.shards is None
        and array.chunks == (1, *array.shape[1:])
        and not metadata.filters
        and metadata.order == "C"
        and metadata.compressor is not None
        and not isinstance(metadata.compressor, numcodecs.Blosc)
    )


class FrameReader:
    """Rows of a camera stream for which `has_frame_files`.

    Args:
        array: the stream.
        store: path of its store, for messages.
        name: of the stream.
        convert: decoded pixels -> what is handed out, of one shape.
        files: the store's files.
        cache: keeps the frames used last.

    Raises:
        UserError: a frame's file is not there; zarr would show it as black.
    """

    survives_fork = True

    def __init__(
        self,
        array: zarr.Array,
        store: Path,
        name: str,
        *,
        convert: Callable[[np.ndarray], np.ndarray],
        files: ChunkFiles,
        cache: BlockCache,
    ) -> None:
        metadata = array.metadata
        assert isinstance(metadata, ArrayV2Metadata)
        self.shape, self._dtype = tuple(array.shape), array.dtype
        self._codec: Any = metadata.compressor
        self._store, self._name = store, name
        self._convert, self._files, self._cache = convert, files, cache
        zeros = (0,) * (len(self.shape) - 1)
        path = f"{array.path}/"
        self._key = lambda row: path + metadata.encode_chunk_key((row, *zeros))
        missing = [row for row in range(self.shape[0]) if not files.exists(self._key(row))]
        if missing:
            raise UserError(
                f"The store {store} is truncated: {len(missing)} of {self.shape[0]} frames of "
                f"'{name}' are missing, the first is '{self._key(missing[0])}'; copy or download "
                "the store again."
            )
        self._shared = shared_frames(store, name, self.shape)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Frames by number, of any shape: (*index.shape, *frame shape)."""
        out = np.empty((*index.shape, *self.shape[1:]), np.uint8)
        wanted, places = np.unique(index, return_inverse=True)
        places = places.reshape(index.shape)
        unknown = []
        for number, row in enumerate(wanted.tolist()):
            frame = self._cache.find((self._name, row))
            if frame is None:
                unknown.append(number)
            else:
                out[places == number] = frame
        for number, frame in zip(unknown, self._decoded(wanted[unknown].tolist()), strict=True):
            out[places == number] = frame
            self._cache.put((self._name, int(wanted[number])), frame)
        return out

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Frames start..stop as a new array."""
        return self.rows(np.arange(start, stop))

    def _decoded(self, rows: list[int]) -> list[np.ndarray]:
        # Worker processes are the threads of those who have them.
        if len(rows) <= FEW_FRAMES or get_worker_info() is not None:
            return [self._decode(row) for row in rows]
        return list(_pool().map(self._decode, rows))

    def _decode(self, row: int) -> np.ndarray:
        if self._shared is None:
            return self._decode_file(row)
        frame = self._shared.find(row)
        if frame is None:
            frame = self._decode_file(row)
            self._shared.put(row, frame)
        return frame

    def _decode_file(self, row: int) -> np.ndarray:
        key = self._key(row)
        with decoding(
            f"Frame {row} of '{self._name}' in {self._store} cannot be decoded (file '{key}')",
            "the store is damaged, copy or download it again",
        ):
            pixels = self._codec.decode(self._files.read(key))
            if not isinstance(pixels, np.ndarray):
                pixels = np.frombuffer(pixels, self._dtype)
            return self._convert(pixels.reshape(self.shape[1:]))


def _pool() -> ThreadPoolExecutor:
    global _threads
    if _threads is None or _threads[0] != os.getpid():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        _threads = os.getpid(), ThreadPoolExecutor(min(MOST_THREADS, cores), "frames")
    return _threads[1]
