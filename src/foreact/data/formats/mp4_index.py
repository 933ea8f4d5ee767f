"""When the frames of a video file are shown: mp4 and any other container that FFmpeg opens.

The frame count, the rate and the duration in a header are often wrong, and packets come in the
order of decoding; so a file is scanned once, without decoding it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition

from foreact.data.formats.video import picture_stream, quarter_turns
from foreact.errors import UserError, decoding

REWRITE = "rewrite it with `ffmpeg -i IN -c:v libx264 OUT.mp4`"
HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}
"""Transfer characteristics (ITU-T H.273) that 8 bits without tone mapping would wash out."""


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a video file in the order of their presentation.

    Attributes:
        pts: int64 (N,) presentation times, rising, in units of `time_base`.
        keys: int64 (K,) numbers of the frames that decoding can start at; the first is frame 0.
        time_base: seconds.
        digest: of the coded pictures, the same in every copy whatever its name and container.
    """

    pts: np.ndarray
    keys: np.ndarray
    time_base: Fraction
    digest: str

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def times(self) -> np.ndarray:
        """float64 (N,) presentation times in seconds; the first need not be 0."""
        return self.pts * float(self.time_base)

    def nearest(self, times: np.ndarray) -> np.ndarray:
        """Numbers of the frames that are nearest to times in seconds: int64, as `times`."""
        own = self.times
        after = np.minimum(np.searchsorted(own, times), len(own) - 1)
        before = np.maximum(after - 1, 0)
        return np.where(np.abs(times - own[before]) <= np.abs(own[after] - times), before, after)


@dataclass(frozen=True)
class VideoFacts:
    """What one decoded frame tells of a video file.

    Attributes:
        size: height and width, upright.
        codec: such as "h264".
        pix_fmt: such as "yuv420p".
        pixel_aspect: width of a pixel by its height.
        dynamic_range: "PQ" or "HLG" where the pictures are of high dynamic range, else None.
    """

    size: tuple[int, int]
    codec: str
    pix_fmt: str
    pixel_aspect: Fraction
    dynamic_range: str | None


@contextmanager
def opened_video(path: Path) -> Iterator[InputContainer]:
    """A video file; whatever FFmpeg says of it while it is open is told in a sentence.

    Raises:
        UserError: there is no such file, or it has no moving pictures.
    """
    if not path.is_file():
        raise UserError(f"There is no video at {path}.")
    with decoding(f"{path} cannot be decoded as a video"), av.open(str(path)) as container:
        require_pictures(path, container)
        yield container


def require_pictures(path: Path, container: InputContainer) -> None:
    """Raise a `UserError` where a container has only sound, or a cover."""
    cover = Disposition.attached_pic
    if all(stream.disposition & cover for stream in container.streams.video):
        raise UserError(
            f"{path} has no moving pictures, or is cut short; leave it out, or copy it again."
        )


def look_at_video(path: Path) -> VideoFacts:
    """Decode the first frame of a file.

    Raises:
        UserError: it cannot be decoded.
    """
    with opened_video(path) as container:
        stream = picture_stream(container)
        stream.codec_context.thread_count = 1
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UserError(f"{path} has no frame that can be decoded; copy it again.")
        is_on_its_side = quarter_turns(frame) % 2 == 1
        size = (frame.width, frame.height) if is_on_its_side else (frame.height, frame.width)
        return VideoFacts(
            size=size,
            codec=stream.codec_context.codec.canonical_name,
            pix_fmt=frame.format.name,
            pixel_aspect=Fraction(stream.sample_aspect_ratio or 1),
            dynamic_range=HIGH_DYNAMIC_RANGE.get(int(frame.color_trc)),
        )


def scan_video(path: Path) -> VideoIndex:
    """Read a whole file without decoding it.

    Raises:
        UserError: there is no such file, no moving picture in it, or it is cut short.
    """
    pts, keys, count, digest = [], [], 0, hashlib.blake2b(digest_size=16)
    with opened_video(path) as container:
        stream = picture_stream(container)
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_corrupt:
                raise UserError(f"{path} is cut short after {count} frames; copy it again.")
            count += 1
            digest.update(packet)
            if packet.is_discard:  # cut off by an edit list: decoded, never shown
                continue
            if packet.pts is None:
                raise UserError(f"{path} does not say when its frames are shown; {REWRITE}.")
            pts.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
        stated, time_base = stream.frames, stream.time_base
    if count < stated:
        raise UserError(
            f"{path} is cut short: its header counts {stated} frames and {count} are there; copy "
            "it again."
        )
    shown = np.unique(np.array(pts, np.int64))
    if len(shown) == 0 or time_base is None:
        raise UserError(f"{path} holds no frame; copy it again, or leave it out.")
    if len(shown) < len(pts):
        raise UserError(f"{path} shows several frames at one time; {REWRITE}.")
    numbers = np.unique(np.append(np.searchsorted(shown, np.array(keys, np.int64)), 0))
    return VideoIndex(shown, numbers, time_base, digest.hexdigest())
