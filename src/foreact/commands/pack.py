"""`foreact data pack` and `unpack`: a store of a million files as one."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from foreact.released.packed_stores import pack_store, unpack_store


def pack(src: Positional[Path], out: Path) -> Path:
    """Write a store as one file, an LZ4 frame around a tar.

    Args:
        src: the store, a zarr folder or its zip.
        out: the file, NAME.zarr.tar.lz4.
    """
    path = pack_store(src, out)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return path


def unpack(src: Positional[Path], to: Path) -> Path:
    """Extract a packed store, which appears when it is whole.

    Args:
        src: NAME.zarr.tar.lz4.
        to: the folder that is to hold NAME.zarr, such as one in /dev/shm.
    """
    path = unpack_store(src, to)
    print(f"{path} is whole; next: foreact data check --store {path} --task umi")
    return path
