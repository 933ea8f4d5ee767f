"""The files in a zip, found once and read from any process.

`zipfile` keeps half a kilobyte for every file and one position for all readers. A data set of
JPEG-XL frames has a million files, and its worker processes share the handle when they fork.
"""

from __future__ import annotations

import os
import posixpath
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Before every file: a mark, and at its end the lengths of the name and of what follows it."""


class ZipDirectory:
    """Names, places and checksums of a zip's files.

    Args:
        path: the zip.

    Attributes:
        top: the innermost folder that all files lie in, with "/" at its end; "" where there is
            none.

    Raises:
        OSError, zipfile.BadZipFile: it is none.
    """

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        self.numbers = {entry.filename: number for number, entry in enumerate(entries)}
        self._offsets = np.array([entry.header_offset for entry in entries], np.int64)
        self._sizes = np.array([entry.compress_size for entry in entries], np.int64)
        self._sums = np.array([entry.CRC for entry in entries], np.uint32)
        self._methods = np.array([entry.compress_type for entry in entries], np.int16)
        folders = {name.rpartition("/")[0] for name in self.numbers}
        top = f"{common}/" if (common := posixpath.commonpath(folders or [""])) else ""
        self.top = top if any(name.startswith(f"{top}data/") for name in self.numbers) else ""
        self._file = path.open("rb", buffering=0)

    @property
    def size(self) -> int:
        """Bytes of all files, as they are compressed."""
        return int(self._sizes.sum())

    def __contains__(self, name: str) -> bool:
        return name in self.numbers

    def read(self, number: int) -> bytes:
        """Content of file `number`; safe in forked processes and threads.

        Raises:
            ValueError: it is damaged, or compressed by another method than deflate.
        """
        # Reading at a place moves no position, so that nobody disturbs anybody.
        handle, start = self._file.fileno(), int(self._offsets[number])
        mark, name, extra = LOCAL_HEADER.unpack(os.pread(handle, LOCAL_HEADER.size, start))
        if mark != b"PK\x03\x04":
            raise ValueError("the zip has no file where its directory says")
        size, method = int(self._sizes[number]), int(self._methods[number])
        data = os.pread(handle, size, start + LOCAL_HEADER.size + name + extra)
        if method == zipfile.ZIP_DEFLATED:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        elif method != zipfile.ZIP_STORED:
            raise ValueError(f"the zip's compression {method} is neither none nor deflate")
        if zlib.crc32(data) != int(self._sums[number]):
            raise ValueError("its checksum differs")
        return data
