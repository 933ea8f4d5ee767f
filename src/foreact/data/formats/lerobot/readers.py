"""Rows of the streams of a set, as the loader asks for them."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foreact.data.formats.lerobot.episodes import VideoPlaces
from foreact.data.formats.lerobot.tables import RowFiles
from foreact.data.formats.mp4 import VideoFrames
from foreact.errors import UserError, decoding

STAMP_ERROR = 2e-4
"""Seconds by which a time stamp of float32 may differ from the time that it stands for."""

GROUPS_HELD = 4
"""Row groups whose coded pictures are kept for a camera."""


class InMemory:
    """Numbers of a stream, all of them."""

    def __init__(self, values: np.ndarray) -> None:
        values.setflags(write=False)
        self.values = values

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.values[index]


def snapped(stamps: np.ndarray, frame_index: np.ndarray, fps: float) -> np.ndarray:
    """Seconds since the start of an episode, float64 (N,).

    Args:
        stamps: float (N,) as stored; float32 is off by up to 6e-5 s after a quarter of an hour.
        frame_index: int (N,) steps since the start of the episode.
        fps: steps per second. A stamp that is no rounded frame_index / fps is taken as it is.
    """
    stamps = stamps.astype(np.float64)
    exact = frame_index / fps
    return np.where(np.abs(stamps - exact) <= STAMP_ERROR, exact, stamps)


class VideoRows:
    """Pictures of one camera in video files.

    Args:
        frames: what decodes them.
        places: of the camera.
        starts: int64 (E,) first row of each episode.
        seconds: float64 (N,) of each row since the start of its episode.
        fps: steps per second; a picture may lie half a period from its row's time.
        size: height and width that all files should have.
    """

    def __init__(
        self,
        frames: VideoFrames,
        places: VideoPlaces,
        starts: np.ndarray,
        seconds: np.ndarray,
        fps: float,
        size: tuple[int, int],
    ) -> None:
        self._frames, self._places, self._starts = frames, places, starts
        self._seconds, self._fps, self._size = seconds, fps, size

    def rows(self, index: np.ndarray) -> np.ndarray:
        flat = index.reshape(-1)
        out = np.empty((len(flat), *self._size, 3), np.uint8)
        episode = np.searchsorted(self._starts, flat, side="right") - 1
        times = self._places.start[episode] + self._seconds[flat]
        file_of = self._places.file_of[episode]
        for number in np.unique(file_of):
            chosen, file = file_of == number, self._places.files[number]
            found = self._frames.take(file, self._numbers(file, times[chosen], episode[chosen]))
            if found.shape[1:3] != self._size:
                raise UserError(
                    f"{file} has pictures of {found.shape[1:3]}, the first file of the camera of "
                    f"{self._size}; convert the set again."
                )
            out[chosen] = found
        return out.reshape(*index.shape, *out.shape[1:])

    def _numbers(self, file: Path, times: np.ndarray, episode: np.ndarray) -> np.ndarray:
        index = self._frames.index(file)
        numbers = index.nearest(times)
        off = np.abs(index.times[numbers] - times)
        # Half a period and what rounding adds: a stamp just between two pictures has both.
        # Written so that a time that is no number is refused too.
        if not off[worst := int(off.argmax())] <= 0.5 / self._fps + STAMP_ERROR:
            raise UserError(
                f"{file} has no picture at {times[worst]:.3f} s, where episode {episode[worst]} "
                f"has a step (the nearest is {off[worst]:.3f} s away, its last at "
                f"{index.times[-1]:.3f} s); record or convert the set again, or delete the episode."
            )
        return numbers


class ImageRows:
    """Pictures of one camera in the rows of the data files, PNG or any other format of PIL."""

    def __init__(self, files: RowFiles, column: str, size: tuple[int, int]) -> None:
        self._files, self._column, self._size = files, column, size
        self._groups: OrderedDict[int, tuple[list[bytes | None], Path]] = OrderedDict()

    def rows(self, index: np.ndarray) -> np.ndarray:
        flat = index.reshape(-1)
        out = np.empty((len(flat), *self._size, 3), np.uint8)
        group_of = np.searchsorted(self._files.group_starts, flat, side="right") - 1
        for group in np.unique(group_of):
            chosen = np.flatnonzero(group_of == group)
            coded, file = self._coded(int(group))
            for place in chosen:
                row = int(flat[place])
                data = coded[row - int(self._files.group_starts[group])]
                picture = decode_picture(data, f"The picture '{self._column}' of row {row}", file)
                if picture.shape[:2] != self._size:
                    raise UserError(
                        f"The picture '{self._column}' of row {row} in {file} is "
                        f"{picture.shape[:2]}, the first one {self._size}; convert the set again."
                    )
                out[place] = picture
        return out.reshape(*index.shape, *out.shape[1:])

    def _coded(self, group: int) -> tuple[list[bytes | None], Path]:
        """The coded pictures of a row group, and the file that it lies in."""
        if group not in self._groups:
            column, file = self._files.group(group, self._column)
            self._groups[group] = coded_pictures(column), file
            if len(self._groups) > GROUPS_HELD:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return self._groups[group]


def coded_pictures(column: Any) -> list[bytes | None]:
    """The bytes of a column of pictures, which holds them plainly or beside a path."""
    return [
        value.get("bytes") if isinstance(value, dict) else value for value in column.to_pylist()
    ]


def decode_picture(data: bytes | None, what: str, file: Path) -> np.ndarray:
    """RGB uint8 (H, W, 3) of a coded picture.

    Raises:
        UserError: there are no bytes, or they are no picture of 8 bits.
    """
    if not isinstance(data, bytes):
        raise UserError(
            f"{what} in {file} has no bytes, perhaps a path to a file that was not brought along; "
            "write the set again with its pictures in it."
        )
    with decoding(f"{what} in {file} cannot be decoded"), Image.open(io.BytesIO(data)) as image:
        if image.mode[0] in "IF":
            raise UserError(
                f"{what} in {file} is of mode {image.mode}, as depth is, not of 8 bits a colour; "
                "mark the feature as depth or leave it out."
            )
        return np.array(image.convert("RGB"))
