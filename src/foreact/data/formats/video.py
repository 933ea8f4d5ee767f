"""Pictures for people: mp4 files, contact sheets, videos side by side. Not used by training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont

from foreact.errors import UserError, in_short

LABEL_HEIGHT = 14
CRF = "18"
"""H.264 quality; 18 looks lossless at these sizes."""
MP4_OPTIONS = {"movflags": "+faststart"}
ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".mpg", ".mpeg", ".wmv")
"""Of the names of video files, in lower or upper case."""


def write_mp4(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write an H.264 mp4 that browsers play; the file appears when it is whole.

    Args:
        path: target; its folder is made.
        frames: uint8 (T, H, W, 3), T >= 1. An odd height or width is padded by one repeated row or
            column.
        fps: frames per second, > 0.

    Raises:
        UserError: other frames, or the disk refuses.
    """
    path = Path(path)
    _check_frames(frames, str(path))
    if not fps > 0:
        raise UserError(f"A video needs fps > 0, found {fps}.")
    frames = np.pad(
        frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge"
    )
    with (
        _whole_file(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options=MP4_OPTIONS) as container,
    ):
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": CRF}
        )
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                )
            )
        container.mux(stream.encode())


def read_video(path: str | Path) -> tuple[np.ndarray, float]:
    """Decode a whole video.

    Returns:
        Frames uint8 (T, H, W, 3), turned as the container says, and frames per second.

    Raises:
        UserError: the file is missing, no video, or has no frame.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no video at {path}.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no video stream.")
            stream = picture_stream(container)
            stream.thread_type = "AUTO"
            frames = [
                np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns(frame))
                for frame in container.decode(stream)
            ]
            rate = stream.average_rate or stream.base_rate
    except FFmpegError as error:
        raise UserError(f"{path} cannot be decoded as a video ({in_short(error)}).") from error
    if not frames or rate is None:
        raise UserError(f"{path} has no frame that can be decoded.")
    return np.stack(frames), float(rate)


def picture_stream(container: InputContainer) -> VideoStream:
    """The moving pictures of a container that has some; a cover that is attached is passed over."""
    stream = container.streams.best("video")
    return stream if isinstance(stream, VideoStream) else container.streams.video[0]


def quarter_turns(frame: av.VideoFrame) -> int:
    """How often `np.rot90` turns a decoded frame until it stands as its container says."""
    return frame.rotation // 90 % 4 if frame.rotation % 90 == 0 else 0


def contact_sheet(
    images: Sequence[np.ndarray], labels: Sequence[str], *, columns: int = 8
) -> Image.Image:
    """A grid of labelled images, row by row.

    Args:
        images: uint8 (H, W, 3) each, of any sizes.
        labels: one line of text for each, "" for none.
        columns: images per row.
    """
    if not images or len(images) != len(labels) or columns < 1:
        raise UserError(
            f"A contact sheet needs images with one label each, found {len(images)} "
            f"and {len(labels)}."
        )
    tiles = [_labelled(image, label) for image, label in zip(images, labels, strict=True)]
    columns = min(columns, len(tiles))
    height, width = max(t.shape[0] for t in tiles) + 2, max(t.shape[1] for t in tiles) + 2
    sheet = np.full((-(-len(tiles) // columns) * height, columns * width, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return Image.fromarray(sheet)


def save_image(path: str | Path, image: Image.Image) -> None:
    """Write a PNG; the file appears when it is whole."""
    with _whole_file(Path(path)) as temporary:
        image.save(temporary, format="PNG")


def side_by_side(videos: Mapping[str, np.ndarray], *, scale: int = 1) -> np.ndarray:
    """Videos next to each other, each under its label.

    Args:
        videos: label -> uint8 (T, H, W, 3); a shorter one stays on its last frame.
        scale: whole-number enlargement of the pixels.

    Returns:
        uint8 (T', H', W', 3) with T' the greatest T.
    """
    if not videos or scale < 1:
        raise UserError(
            f"Expected at least one video and scale >= 1, found {len(videos)} and {scale}."
        )
    for label, frames in videos.items():
        _check_frames(frames, label)
    length = max(len(frames) for frames in videos.values())
    height = max(frames.shape[1] for frames in videos.values()) * scale
    columns = []
    for label, frames in videos.items():
        big = frames.repeat(scale, axis=1).repeat(scale, axis=2)
        big = np.pad(big, ((0, length - len(big)), (0, 0), (0, 0), (0, 0)), mode="edge")
        big = np.pad(big, ((0, 0), (0, height - big.shape[1]), (1, 1), (0, 0)), constant_values=255)
        strip = _strip(label, big.shape[2])
        columns.append(
            np.concatenate([np.broadcast_to(strip, (length, *strip.shape)), big], axis=1)
        )
    return np.concatenate(columns, axis=2)


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, moved there at the end; nothing is left where that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, FFmpegError) as error:
        raise UserError(f"{path} could not be written ({in_short(error)}).") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _labelled(image: np.ndarray, label: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"Image '{label}' should be uint8 (H, W, 3), found {image.dtype} {image.shape}."
        )
    return np.concatenate([_strip(label, image.shape[1]), image])


def _strip(label: str, width: int) -> np.ndarray:
    """uint8 (LABEL_HEIGHT, width, 3): black text on white, cut at the right edge."""
    strip = Image.new("RGB", (width, LABEL_HEIGHT), "white")
    ImageDraw.Draw(strip).text((1, 1), label, fill="black", font=ImageFont.load_default(size=10))
    return np.asarray(strip)


def _check_frames(frames: np.ndarray, label: str) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise UserError(
            f"Frames of '{label}' should be uint8 (T, H, W, 3), found {frames.dtype} "
            f"{frames.shape}."
        )
