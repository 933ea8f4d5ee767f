"""Decoded frames in one file that all processes of a machine read and fill.

Every frame is decoded once, by whoever needs it first. The file lies in the folder that the
variable FOREACT_FRAMES names, such as one in /dev/shm or on a fast disk; without it frames are
decoded whenever they are needed. It is read and written, not mapped, so that the memory of a
process does not grow; it stays until somebody removes it.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np

from foreact.errors import UserError, in_short

VARIABLE = "FOREACT_FRAMES"
CHECKSUM = 4
"""Bytes before each frame. A frame that is not there, or was cut off by a crash, has another."""


class SharedFrames:
    """Frames of one stream by row.

    Args:
        path: the file; made where it is missing, with room for all frames.
        rows: how many frames there are.
        shape: of one frame, uint8.

    Raises:
        UserError: the disk refuses, or has too little room.
    """

    def __init__(self, path: Path, rows: int, shape: tuple[int, ...]) -> None:
        self.path, self._shape = path, shape
        self._record = CHECKSUM + math.prod(shape)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", 0)
            # Room is taken now, and content that is there stays: nobody fails half-way.
            if hasattr(os, "posix_fallocate"):  # not on a Mac
                os.posix_fallocate(self._file.fileno(), 0, rows * self._record)
        except OSError as error:
            raise UserError(
                f"{rows} decoded frames need {rows * self._record / 1e9:.1f} GB in {path.parent} "
                f"({in_short(error)}); make room, or name another folder with {VARIABLE}, or none."
            ) from error

    def find(self, row: int) -> np.ndarray | None:
        """The frame, or None where nobody has decoded it yet."""
        data = os.pread(self._file.fileno(), self._record, row * self._record)
        expected = int.from_bytes(data[:CHECKSUM], "little")
        pixels = memoryview(data)[CHECKSUM:]
        if zlib.crc32(pixels) != expected:
            return None
        return np.frombuffer(pixels, np.uint8).reshape(self._shape)

    def put(self, row: int, frame: np.ndarray) -> None:
        """Keep a decoded frame; processes may do so at once with the same one."""
        pixels = np.ascontiguousarray(frame).tobytes()
        data = zlib.crc32(pixels).to_bytes(CHECKSUM, "little") + pixels
        os.pwrite(self._file.fileno(), data, row * self._record)


def shared_frames(store: Path, stream: str, shape: tuple[int, ...]) -> SharedFrames | None:
    """The file of a store's stream (N, H, W, 3); None where no folder is named for such files."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    content = store / "data" / stream if store.is_dir() else store
    facts = content.stat()
    key = f"{store.resolve()} {stream} {shape} {facts.st_size} {facts.st_mtime_ns}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = Path(folder).expanduser() / f"{store.name.split('.')[0]}-{stream}-{digest}.frames"
    return SharedFrames(path, shape[0], shape[1:])
