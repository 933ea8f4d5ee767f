"""An mp4 whose container says how its camera was held, as telephones write it."""

from __future__ import annotations

import struct
from pathlib import Path

QUARTERS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def turn(path: Path, degrees: int) -> None:
    """Make an mp4 say that a player should turn it clockwise by so many degrees."""
    data = bytearray(path.read_bytes())
    header = data.find(b"tkhd")
    start = header + 8 + (36 if data[header + 4] == 0 else 48)  # by the version of the header
    a, b, c, d = (0x10000 * number for number in QUARTERS[degrees])
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
