"""Tar archives as streams: written in a fixed form, and extracted without trust."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from foreact.checkpoints.manifest import BLOCK
from foreact.errors import UserError

MAX_MEMBERS = 10_000
MAX_TOTAL = 200_000_000_000
MAX_NAME = 2**16
"""Bytes of an extended header; real ones hold a long name."""
EXTENDED = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
DAMAGE = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
)
"""What reading a damaged archive raises."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What an archive is to hold.

    Attributes:
        name: its path in the archive.
        open: opens its content, which can seek; None for a folder.
    """

    name: str
    open: Callable[[], BinaryIO] | None


def write_tar(entries: Iterable[Entry], packed: Any, advance: Callable[[int], object]) -> None:
    """Write entries one after another, without owners and times.

    Args:
        entries: in order.
        packed: where to, such as a `gzip.GzipFile`.
        advance: is told how many bytes of content were read.
    """
    with tarfile.open(fileobj=packed, mode="w|", bufsize=BLOCK) as tar:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            if entry.open is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                with entry.open() as file:
                    member.size = file.seek(0, os.SEEK_END)
                    file.seek(0)
                    tar.addfile(member, _Watched(file, advance))
            cast(Any, tar).members = []  # it would keep a kilobyte for every file


def extract(
    packed: Any,
    scratch: Path,
    out: Path,
    *,
    max_members: int = MAX_MEMBERS,
    max_total: int = MAX_TOTAL,
) -> None:
    """Extract a tar stream, plain files and folders only, and read it to its end.

    Args:
        packed: a readable that decompresses.
        scratch: an empty folder to write to.
        out: where its content will be moved; what is there already is not to be replaced.
        max_members: how many files and folders the archive may hold.
        max_total: how many bytes it may unpack to.

    Raises:
        UserError: an unsafe member, or a limit is passed.
        Exception: one of `DAMAGE`, or what `packed` raises.
    """
    left = max_total

    def spend(size: int) -> None:
        nonlocal left
        left -= size
        if left < 0:
            raise UserError(
                f"The archive unpacks to more than {max_total:,} bytes; raise the limit if you "
                "trust its source."
            )

    body: Any = _Watched(packed, spend)
    with tarfile.open(fileobj=body, mode="r|", bufsize=BLOCK, tarinfo=_StrictHeader) as tar:
        for number, member in enumerate(tar):
            if number == max_members:
                raise UserError(
                    f"The archive holds more than {max_members:,} files; raise the limit if you "
                    "trust its source."
                )
            _place(tar, member, scratch, out)
            cast(Any, tar).members = []
        # Reading on to the end is what checks the length and checksum of the compression.
        while data := tar.fileobj.read(BLOCK):
            if data.strip(b"\0"):
                raise tarfile.ReadError("there is more after its end")


class _Watched:
    """A readable that tells how much is read of it."""

    def __init__(self, file: Any, advance: Callable[[int], object]) -> None:
        self._file, self._advance = file, advance

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._advance(len(data))
        return data


class _StrictHeader(tarfile.TarInfo):
    """A tar header that raises where damaged or absurdly long; tarfile would end the archive.

    tarfile reads an extended header (a long name, say) into memory whole, whatever size it claims.
    """

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> tarfile.TarInfo:
        if buf and not buf.strip(b"\0"):
            return super().frombuf(buf, encoding, errors)  # the regular end
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a file's header is damaged: {error}") from None
        if header.type in EXTENDED and header.size > MAX_NAME:
            raise tarfile.ReadError(f"a file's name claims {header.size:,} bytes")
        return header


def _place(tar: tarfile.TarFile, member: tarfile.TarInfo, scratch: Path, out: Path) -> None:
    """Write one member below `scratch`."""
    name = PurePosixPath(member.name)
    if name == PurePosixPath():
        return  # "." itself
    if not member.name.isprintable():
        raise UserError(
            f"The archive holds the name {member.name!r}, which cannot be printed; it "
            "was not unpacked."
        )
    if name.is_absolute() or ".." in name.parts or not (scratch / name).is_relative_to(scratch):
        raise UserError(
            f"The archive wants to write to '{member.name}', outside its folder; it "
            "was not unpacked."
        )
    # The holes of a sparse file cost an attacker nothing and count towards no limit.
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise UserError(
            f"'{member.name}' in the archive is a link, a device or sparse, which weights never "
            "are; it was refused."
        )
    if os.path.lexists(out / name.parts[0]):
        raise UserError(f"{out / name.parts[0]} exists; remove it or choose another folder.")
    try:
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if member.isdir():
            target.mkdir(exist_ok=True)
            return
        source = tar.extractfile(member)
        assert source is not None  # the member is a plain file
        with open(target, "xb") as file:
            shutil.copyfileobj(source, file, BLOCK)
    except (FileExistsError, NotADirectoryError, ValueError):
        raise UserError(
            f"The archive holds '{member.name}' twice or in an impossible place."
        ) from None
    if target.stat().st_size != member.size:
        raise tarfile.ReadError(f"{member.name} is cut short")


@contextmanager
def scratch_folder(folder: Path, prefix: str) -> Iterator[Path]:
    """A temporary folder inside `folder`, which goes again if it was made for nothing."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=prefix) as scratch:
            yield Path(scratch)
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()
