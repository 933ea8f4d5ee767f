"""Frames of video files by number, decoded when they are asked for.

A frame is decoded from the last key frame before it, and what the decoder returns is known by its
presentation time, never by counting. Requests that go on in the same group of pictures are decoded
onwards without a seek.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from foreact.data.formats.mp4_cache import index_of_video
from foreact.data.formats.mp4_index import VideoIndex
from foreact.data.formats.video import picture_stream, quarter_turns
from foreact.data.stores.chunks import BlockCache
from foreact.errors import UserError, decoding

OPEN_FILES = 8
"""Decoders that a process keeps open."""
CACHE_LIMIT = 64 * 2**20
"""Bytes of decoded frames that a process keeps."""

_OF_OTHER_PROCESSES: list[object] = []
"""Decoders that came with a fork. They are never closed here: they share files with the parent."""

Change = Callable[[np.ndarray], np.ndarray]


class VideoFrames:
    """Frames of any number of video files.

    Indices are kept for good, decoders and frames only as far as the limits go. Decoders belong to
    the process that opened them: a worker process that was forked or spawned opens its own.

    Attributes:
        change: applied to every decoded frame uint8 (H, W, 3), such as a resize; set it before the
            first frame is taken.
    """

    def __init__(self) -> None:
        self.change: Change | None = None
        self._indices: dict[Path, VideoIndex] = {}
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"change": self.change, "indices": self._indices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.change, self._indices = state["change"], state["indices"]
        self._forget()

    def index(self, path: Path) -> VideoIndex:
        """The frames of a file; it is scanned the first time, see `mp4_cache`."""
        if path not in self._indices:
            self._indices[path] = index_of_video(path)
        return self._indices[path]

    def take(self, path: Path, numbers: np.ndarray) -> np.ndarray:
        """Frames of one file.

        Args:
            path: the file.
            numbers: int (n,) of frames in the order of presentation, in any order.

        Returns:
            uint8 (n, H, W, 3), upright.

        Raises:
            UserError: the file is missing, cut short or damaged, or its frames change in size.
        """
        if self._process != os.getpid():
            _OF_OTHER_PROCESSES.append(self._decoders)
            self._forget()
        unique, place = np.unique(numbers, return_inverse=True)
        frames = [self._frame(path, int(number)) for number in unique]
        if len({frame.shape for frame in frames}) > 1:
            raise UserError(f"The frames of {path} change in size; cut it where they do.")
        return np.stack(frames)[place]

    def _frame(self, path: Path, number: int) -> np.ndarray:
        def decode() -> np.ndarray:
            frame = self._decoder(path).frame(number)
            return frame if self.change is None else self.change(frame)

        return self._cache.get((str(path), number), decode)

    def _decoder(self, path: Path) -> _Decoder:
        if path not in self._decoders:
            self._decoders[path] = _Decoder(path, self.index(path))
            if len(self._decoders) > OPEN_FILES:
                self._decoders.popitem(last=False)[1].close()
        self._decoders.move_to_end(path)
        return self._decoders[path]

    def _forget(self) -> None:
        self._process = os.getpid()
        self._decoders: OrderedDict[Path, _Decoder] = OrderedDict()
        self._cache = BlockCache(CACHE_LIMIT)


class _Decoder:
    """One open file, decoded up to some frame."""

    def __init__(self, path: Path, index: VideoIndex) -> None:
        self._path, self._index = path, index
        with self._telling(0):
            self._container = av.open(str(path))
            self._stream = picture_stream(self._container)
            # Processes are what reads in parallel; threads on top would only compete with them.
            self._stream.codec_context.thread_count = 1
        self._rgb = VideoReformatter()
        self._coming: Iterator[av.VideoFrame] | None = None
        self._next = 0  # number of the frame that comes next, at least

    def close(self) -> None:
        self._container.close()

    def frame(self, number: int) -> np.ndarray:
        """One frame, uint8 (H, W, 3)."""
        with self._telling(number):
            key = int(np.searchsorted(self._index.keys, number, side="right")) - 1
            goes_on = self._coming is not None and self._index.keys[key] <= self._next <= number
            if not goes_on:
                self._seek(key)
            # A seek may land behind its target, as in files without an index: go further back.
            while (found := self._decode_to(number)) is None and key > 0 and not goes_on:
                key -= 1
                self._seek(key)
            if found is None:
                raise UserError(
                    f"{self._path} is damaged: frame {number} of {len(self._index)} does not come "
                    "out of the decoder; copy it again."
                )
            return found

    def _seek(self, key: int) -> None:
        first = int(self._index.keys[key])
        self._container.seek(int(self._index.pts[first]), stream=self._stream, backward=True)
        self._coming, self._next = self._container.decode(self._stream), 0

    def _decode_to(self, number: int) -> np.ndarray | None:
        """The frame, or None where the decoder is already past it."""
        assert self._coming is not None
        wanted = int(self._index.pts[number])
        for frame in self._coming:
            if frame.pts is None or frame.pts < wanted:
                continue
            self._next = int(np.searchsorted(self._index.pts, frame.pts, side="right"))
            if frame.pts > wanted:
                break
            if frame.is_corrupt:
                raise UserError(f"{self._path} is damaged at frame {number}; copy it again.")
            rgb = self._rgb.reformat(frame, format="rgb24").to_ndarray()
            return np.ascontiguousarray(np.rot90(rgb, quarter_turns(frame)))
        self._coming = None
        return None

    def _telling(self, number: int) -> Any:
        return decoding(f"{self._path} cannot be decoded as a video at frame {number}")
