"""Pictures that say which they are: three blocks of colour count episode, frame and camera.

The left block counts episodes in red, the middle one frames in green, the right one cameras in
blue, below a white strip; a flip, a swap of colours and a frame too early all read as another
picture.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE = (32, 48)
STEP = 12
"""Levels between two counts, far more than a codec loses; counts go to 19."""
STRIP = 8


def picture(episode: int, frame: int, camera: int) -> np.ndarray:
    """uint8 (32, 48, 3)."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:STRIP] = 255
    for block, count in enumerate((episode, frame, camera)):
        pixels[STRIP:, 16 * block : 16 * block + 16, block] = STEP * (count + 1)
    return pixels


def video(episode: int, frames: int, camera: int) -> np.ndarray:
    """uint8 (T, 32, 48, 3)."""
    return np.stack([picture(episode, frame, camera) for frame in range(frames)])


def read_code(pixels: np.ndarray) -> tuple[int, int, int]:
    """(episode, frame, camera) of a picture that a codec may have changed a little."""
    assert pixels.shape == (*SIZE, 3)
    assert pixels[1:5, 2:-2].min() > 230, "the white strip should be on top"
    blocks = [pixels[STRIP + 3 : -3, 16 * i + 4 : 16 * i + 12].mean((0, 1)) for i in range(3)]
    for i, colours in enumerate(blocks):
        assert max(np.delete(colours, i)) < colours[i], "the colours should be red, green, blue"
    episode, frame, camera = (round(float(block[i]) / STEP) - 1 for i, block in enumerate(blocks))
    return episode, frame, camera


def codes(frames: np.ndarray) -> list[tuple[int, int, int]]:
    return [read_code(frame) for frame in frames]


def encode(
    path: Path,
    frames: np.ndarray,
    pts: np.ndarray | list[int] | None = None,
    *,
    rate: int = 10,
    ticks: int = 1,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container: str = "mp4",
    **options: str,
) -> Path:
    """Write a video.

    Args:
        path: where.
        frames: uint8 (T, H, W, 3).
        pts: of each frame in units of 1 / (rate * ticks) s; by default one frame each 1 / rate.
        rate: nominal frames per second.
        ticks: of the clock in a period of the rate.
        codec, pix_fmt, container: of the file.
        options: of the encoder, such as g="250".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    base = Fraction(1, rate * ticks)
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, options={"crf": "12", "g": "2"} | options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = base
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number * ticks if pts is None else int(pts[number])
            frame.time_base = base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path
