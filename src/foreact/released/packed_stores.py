"""Stores as one file, NAME.zarr.tar.lz4: an LZ4 frame around a tar of the folder NAME.zarr.

A store of JPEG-XL frames has a million small files. UVA moves it as one, and unpacks it on the disk
or in the shared memory of the machine that trains, where every process reads the same copy.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from foreact.data.stores.zip_directory import ZipDirectory
from foreact.errors import UserError, decoding, in_short
from foreact.files import is_system_file, natural_order
from foreact.progress import Progress
from foreact.released.tar_streams import DAMAGE, Entry, extract, scratch_folder, write_tar

ENDING = ".zarr.tar.lz4"
MAX_FILES = 50_000_000
METADATA = (".zgroup", "zarr.json")
"""Of a zarr group, in versions 2 and 3."""


def pack_store(src: Path, out: Path, *, progress: bool = True) -> Path:
    """Write a store, a folder or a zip, as NAME.zarr.tar.lz4.

    The same store gives the same bytes.

    Args:
        src: the store.
        out: the file; the archive's folder is called as it is, without ".tar.lz4".
        progress: show a bar over the bytes of content.

    Raises:
        UserError: `src` is no zarr store, `out` exists or has another ending, the package lz4 is
            not installed, or the disk refuses. Nothing is left half-written.
    """
    frame = _lz4()
    if not out.name.endswith(ENDING) or out.name == ENDING:
        raise UserError(f"A packed store is called NAME{ENDING}; {out} is not.")
    if out.exists():
        raise UserError(f"{out} exists; remove it or choose another name.")
    top = out.name.removesuffix(".tar.lz4")
    names, size, open_file = _files_of(src)
    draft = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        draft = Path(name)
        bar = Progress(
            total=size, unit="B", unit_scale=True, desc=f"pack {top}", disable=not progress
        )
        # Frames are compressed already: the fastest level loses nothing.
        with os.fdopen(handle, "wb") as file, bar:
            with frame.LZ4FrameFile(
                file, "wb", content_checksum=True, block_linked=False
            ) as packed:
                write_tar(_entries(top, names, open_file), packed, bar.update)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o644)
        os.rename(draft, out)
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{src} could not be packed as {out} ({in_short(error)}).") from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)
    return out


def unpack_store(src: Path, to: Path, *, progress: bool = True) -> Path:
    """Extract a packed store; it appears below `to` when all of it has been written and checked.

    Args:
        src: NAME.zarr.tar.lz4, also one that `tar` and `lz4` made.
        to: the folder that is to hold NAME.zarr; made where it is missing.
        progress: show a bar over the bytes of the archive.

    Returns:
        The store's folder.

    Raises:
        UserError: the archive is missing, damaged, unsafe or holds something else; the store is
            there already; too little room; the package lz4 is not installed. Nothing is left
            half-written.
    """
    frame = _lz4()
    if not src.is_file():
        raise UserError(f"There is no packed store {src}; correct the path.")
    size = src.stat().st_size
    needed = max(size, _content_size(frame, src))
    _require_room(to, needed)
    try:
        with (
            scratch_folder(to, ".unpack-") as scratch,
            Progress(
                total=size, unit="B", unit_scale=True, desc="unpack", disable=not progress
            ) as bar,
            src.open("rb") as file,
        ):
            with decoding(f"{src} is damaged or no LZ4 archive", "copy or download it again"):
                try:
                    packed = frame.LZ4FrameFile(_Advancing(file, bar.update), "rb")
                    extract(packed, scratch, to, max_members=MAX_FILES, max_total=2**62)
                except OSError as error:
                    if error.errno is not None:  # of the disk, not of the decoder
                        raise _DiskError(error) from error
                    raise
            tops = sorted(scratch.iterdir())
            if len(tops) != 1 or not any((tops[0] / name).is_file() for name in METADATA):
                raise UserError(
                    f"{src} should hold one zarr store, found {[top.name for top in tops][:3]}; "
                    "unpack it with tar to see what it is."
                )
            os.rename(tops[0], to / tops[0].name)
            return to / tops[0].name
    except _DiskError as error:
        raise UserError(
            f"{src} could not be unpacked into {to} ({in_short(error.cause)}); make room there or "
            "choose another folder."
        ) from error.cause
    except OSError as error:
        raise UserError(f"{src} could not be unpacked into {to} ({in_short(error)}).") from error


class _DiskError(UserError):
    """Tells what the disk refused from what the decoder did."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Advancing(io.RawIOBase):
    """A file that tells how much is read of it."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], object]) -> None:
        self._file, self._advance = file, advance

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._advance(len(data))
        return data


def _lz4() -> Any:
    try:
        import lz4.frame
    except ImportError:
        raise UserError(
            'Packed stores need the package lz4; run `pip install "foreact[umi]"`.'
        ) from None
    return lz4.frame


def _content_size(frame: Any, src: Path) -> int:
    """What the frame says that it unpacks to; 0 where it says nothing."""
    with src.open("rb") as file, decoding(f"{src} is no LZ4 archive", "name a packed store"):
        return int(frame.get_frame_info(file.read(64))["content_size"])


def _require_room(to: Path, needed: int) -> None:
    folder = next(path for path in (to, *to.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{to} has {free:,} bytes free, and the store needs at least {needed:,}; make room or "
            "choose another folder."
        )


def _files_of(src: Path) -> tuple[list[str], int, Callable[[str], BinaryIO]]:
    """Names in a store, bytes altogether, and how to open one."""
    if src.is_dir():
        paths = [path for path in src.rglob("*") if path.is_file() or path.is_symlink()]
        if odd := next((path for path in paths if path.is_symlink()), None):
            raise UserError(f"{odd} is a link, which is not packed; put the file in its place.")
        names = [path.relative_to(src).as_posix() for path in paths]
        size = sum(path.stat().st_size for path in paths)
        open_file: Callable[[str], BinaryIO] = lambda name: (src / name).open("rb")  # noqa: E731
    elif zipfile.is_zipfile(src):
        with decoding(f"{src} is no whole zip"):
            directory = ZipDirectory(src)
        names = [name.removeprefix(directory.top) for name in directory.numbers]
        size = directory.size
        open_file = partial(_open_zipped, directory)
    else:
        raise UserError(f"There is no store at {src}; name a zarr folder or its zip.")
    names = [name for name in names if not any(map(is_system_file, name.split("/")))]
    if not any(name in METADATA for name in names):
        raise UserError(
            f"{src} is not a zarr store; name the folder that holds .zgroup, or its zip."
        )
    return sorted(names, key=natural_order), size, open_file


def _open_zipped(directory: ZipDirectory, name: str) -> BinaryIO:
    return io.BytesIO(directory.read(directory.numbers[directory.top + name]))


def _entries(top: str, names: list[str], open_file: Callable[[str], BinaryIO]) -> Iterator[Entry]:
    for name in names:
        yield Entry(name=f"{top}/{name}", open=partial(open_file, name))
