"""Camera images of raw data sets -> frames of one size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from foreact.errors import UserError, decoding, in_short, room_or
from foreact.files import parse_json, parse_list, read_text
from foreact.machine import cores

LONGEST_NAME = 255
"""Letters of a name that a file or folder can have."""

READ_AHEAD = 32
"""Images that are decoded side by side."""


def read_frames(paths: Sequence[Path], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Decode images in order, on several threads: uint8 (H, W, 3) each, see `read_frame`."""
    with ThreadPoolExecutor(max_workers=min(8, cores())) as pool:
        for first in range(0, len(paths), READ_AHEAD):
            yield from pool.map(
                lambda path: read_frame(path, size), paths[first : first + READ_AHEAD]
            )


def read_frame(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read an image as RGB uint8 (H, W, 3), downscaled with antialiased bilinear, never cropped.

    A picture that says that its camera was turned comes upright.

    Raises:
        UserError: the image is damaged, or of another aspect ratio than `size`.
    """
    with (
        decoding(f"{path} cannot be decoded", "copy it again, or remove it to go on"),
        Image.open(path) as image,
    ):
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    height, width = pixels.shape[:2]
    if height * size[1] != width * size[0]:
        raise UserError(
            f"{path} is {width}x{height}, of another aspect ratio than {size[1]}x{size[0]}."
        )
    return resized(pixels, size)


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 (H, W, 3) of another size, by antialiased bilinear interpolation."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    planes = torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True)
    return planes[0].permute(1, 2, 0).contiguous().numpy()


@contextmanager
def kept_on_disk(frames: Iterable[np.ndarray], near: Path) -> Iterator[np.ndarray]:
    """A video of any length as a memory-mapped array (T, H, W, 3).

    The temporary file lies in the folder of `near`.
    """
    try:
        with tempfile.TemporaryFile(dir=near.parent) as file:
            shape, count = (), 0
            for frame in frames:
                shape, count = frame.shape, count + 1
                file.write(np.ascontiguousarray(frame).data)
            file.flush()
            yield (
                np.memmap(file, np.uint8, "r", shape=(count, *shape))
                if count
                else np.empty((0, 0, 0, 3), np.uint8)
            )
    except OSError as error:
        raise UserError(
            f"Frames for {near} could not be kept on disk ({in_short(error)}); "
            f"{room_or(error, 'give it the rights')} and run again."
        ) from error


def read_names(path: str | Path) -> list[str]:
    """Names of scenes, logs or videos: a JSON list, or text with one name per line.

    Raises:
        UserError: no such file, or something else in it.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list of names {path} cannot be read ({in_short(error)}).") from None
    try:
        is_json = path.suffix.lower() == ".json" or text.lstrip().startswith("[")
        names = parse_json(text) if is_json else parse_list(text)
    except (ValueError, RecursionError):
        names = None
    are_names = isinstance(names, list) and all(
        isinstance(name, str) and name.isprintable() and len(name) <= LONGEST_NAME for name in names
    )
    if not names or not are_names:
        raise UserError(f"{path} should hold names, as a JSON list of texts or one per line.")
    return names
