"""Indices of large video files in the cache folder, so that a file is scanned once for good."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np

from foreact.data.formats.mp4_index import VideoIndex, scan_video
from foreact.data.stores.companion import cache_folder

LARGE = 16 * 2**20
"""Bytes from which a file's index is kept; smaller ones are scanned in a moment."""


def index_of_video(path: Path) -> VideoIndex:
    """The index of a file, from the cache where the file has its size and time of change still.

    Raises:
        UserError: as `scan_video`.
    """
    try:
        state = path.stat()
    except OSError:
        return scan_video(path)  # which tells what is wrong
    if state.st_size < LARGE:
        return scan_video(path)
    facts = np.array([state.st_size, state.st_mtime_ns], np.int64)
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    kept = cache_folder() / "videos" / f"{name}.npz"
    index = _read(kept, facts)
    if index is None:
        index = scan_video(path)
        _write(kept, index, facts)
    return index


def _read(kept: Path, facts: np.ndarray) -> VideoIndex | None:
    """What was kept of the file with these facts; None where there is nothing, or it is damaged."""
    with suppress(Exception), np.load(kept, allow_pickle=False) as arrays:
        if np.array_equal(arrays["facts"], facts):
            top, bottom = arrays["time_base"].tolist()
            digest = str(arrays["digest"])
            return VideoIndex(arrays["pts"], arrays["keys"], Fraction(top, bottom), digest)
    return None


def _write(kept: Path, index: VideoIndex, facts: np.ndarray) -> None:
    draft = kept.with_name(f".{kept.name}.{os.getpid()}")
    with suppress(OSError):  # without a cache the file is scanned again
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                np.savez(
                    file,
                    facts=facts,
                    pts=index.pts,
                    keys=index.keys,
                    time_base=np.array(index.time_base.as_integer_ratio(), np.int64),
                    digest=np.array(index.digest),
                )
            os.replace(draft, kept)
        finally:
            draft.unlink(missing_ok=True)
