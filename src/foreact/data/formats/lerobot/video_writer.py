"""The videos of one camera: the pictures of many episodes one after another, in files of a size."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.stream import VideoStream

from foreact.errors import decoding

Codec = Literal["h264", "av1"]
ENCODERS: Mapping[Codec, str] = {"h264": "libx264", "av1": "libsvtav1"}
# Every second picture is a key picture, so that any picture is decoded from one before it at most.
# A preset of SVT-AV1 beyond 10 leaves changed parts of small flat pictures as they were.
OPTIONS: Mapping[Codec, dict[str, str]] = {
    "h264": {"crf": "18", "g": "2", "bf": "0"},
    "av1": {"crf": "20", "g": "2", "preset": "8"},
}


@dataclass(frozen=True)
class VideoPlace:
    """Where the pictures of an episode came to lie.

    Attributes:
        file: number of the video file, counted over all folders.
        before: pictures before them in the file.
    """

    file: int
    before: int


class VideoWriter:
    """Encodes whole episodes; a context manager.

    A new file begins where the mean episode would no longer fit.

    Args:
        name: number of a file -> its path.
        size: height and width.
        fps: pictures per second.
        codec: H.264 is read everywhere.
        limit: bytes of a file.
    """

    def __init__(
        self,
        name: Callable[[int], Path],
        size: tuple[int, int],
        fps: float,
        codec: Codec,
        limit: int,
    ) -> None:
        self._name, self._size, self._limit = name, size, limit
        self._codec: Codec = codec
        self._period = 1 / Fraction(fps).limit_denominator(100_000)
        # H.264 halves the colours of even sides only; full colours take any.
        is_odd = codec == "h264" and (size[0] % 2 or size[1] % 2)
        self.pix_fmt = "yuv444p" if is_odd else "yuv420p"
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._file = -1
        self._count = self._episodes = self._bytes = 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # after an error, which is what is to be told
            self.finish()

    def append(self, frames: np.ndarray) -> VideoPlace:
        """Add an episode, uint8 (T, H, W, 3).

        Raises:
            UserError: the encoder or the disk refuses.
        """
        if self._container is None or self._is_full():
            self.finish()
            self._open()
        place = VideoPlace(self._file, self._count)
        with self._telling():
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = self._count, self._period
                if number == 0:  # an episode can be read, or cut out, by itself
                    frame.pict_type = PictureType.I
                self._mux(frame)
                self._count += 1
        self._episodes += 1
        return place

    def finish(self) -> None:
        """Write what the encoder holds back, and close the file."""
        container = self._container
        if container is not None:
            with self._telling():
                try:
                    self._mux(None)
                finally:
                    self._container = None
                    container.close()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        assert self._container is not None
        assert self._stream is not None
        for packet in self._stream.encode(frame):
            self._bytes += packet.size
            self._container.mux(packet)

    def _is_full(self) -> bool:
        return self._bytes * (1 + 1 / max(1, self._episodes)) >= self._limit

    @property
    def _path(self) -> Path:
        return self._name(self._file)

    def _open(self) -> None:
        self._file += 1
        self._count = self._episodes = self._bytes = 0
        os.environ.setdefault("SVT_LOG", "1")  # errors only
        with self._telling():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(
                str(self._path), "w", format="mp4", options={"movflags": "+faststart"}
            )
            stream = self._container.add_stream(
                ENCODERS[self._codec], rate=1 / self._period, options=dict(OPTIONS[self._codec])
            )
            assert isinstance(stream, VideoStream)
            stream.height, stream.width = self._size
            stream.pix_fmt, stream.codec_context.time_base = self.pix_fmt, self._period
            self._stream = stream

    def _telling(self) -> Any:
        size = f"{self._size[1]}x{self._size[0]}"
        return decoding(
            f"The video {self._path.name} of {size} pixels cannot be written as {self._codec}",
            "make room, or choose another codec",
        )
