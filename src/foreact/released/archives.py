"""Release archives: write and read one .tar.gz, whole or in parts, in constant memory."""

from __future__ import annotations

import gzip
import os
import re
import tarfile
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

from foreact.checkpoints.manifest import (
    MANIFEST,
    FileFacts,
    read_manifest,
    record,
    sha256_of,
)
from foreact.errors import UserError, in_short
from foreact.progress import Progress
from foreact.released.parts import PartsReader, PartsWriter, find_parts, suffixes
from foreact.released.tar_streams import (
    DAMAGE,
    MAX_MEMBERS,
    MAX_TOTAL,
    Entry,
    extract,
    scratch_folder,
    write_tar,
)

MAX_PART = 1_900_000_000
"""Bytes of one part: what the release uses, below the 2 GiB that GitHub takes."""

UNITS = {"": 1, "B": 1} | {
    unit: base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in ((f"{letter}B", 1000), (letter, 1024), (f"{letter}IB", 1024))
}


def parse_size(text: str) -> int:
    """Bytes of a size as `split` reads it: 1900MB is 1900 * 10**6, 1900M and 1900MiB 1900 * 2**20.

    Raises:
        UserError: it is no positive size.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS or int(match[1]) == 0:
        raise UserError(f"'{text}' should be a positive size such as 1900MB, 2GiB or 500000.")
    return int(match[1]) * UNITS[match[2].upper()]


# --- packing --------------------------------------------------------------------------------------


def pack(
    sources: Sequence[Path],
    stem: Path,
    *,
    max_size: int = MAX_PART,
    extension: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Write files and folders as STEM.tar.gz, or STEM_chunked.tar.gz.part_aa, ... if too large.

    The same content gives the same bytes: names are sorted, owners and times are left out. The
    manifest beside the parts records the hash of each.

    Args:
        sources: files and folders; each is stored under its own name.
        stem: path of the archive without its suffixes.
        max_size: bytes of one part.
        extension: of a folder, take only the files that end in this, such as "pt".
        progress: show a bar over the bytes read.

    Returns:
        The parts, in order.

    Raises:
        UserError: nothing to pack, two sources of one name, an archive of that name exists, or the
            disk refuses. Nothing is left half-written.
    """
    if max_size < 1:
        raise UserError(f"A part should have at least 1 byte, found {max_size}.")
    stem = Path(stem)
    name = stem.name.removesuffix(".tar.gz").removesuffix("_chunked")
    if name in ("", ".."):
        raise UserError(
            f"'{stem}' does not name an archive; give its path, such as {stem / 'weights'}."
        )
    stem = stem.with_name(name)
    lone, whole = f"{name}.tar.gz", f"{name}_chunked.tar.gz"
    if stem.parent.is_dir():
        for path in sorted(stem.parent.iterdir()):
            # A part left over from an older archive would become the end of the new one.
            if path.name == lone or path.name.startswith(f"{whole}.part_"):
                raise UserError(
                    f"{path} exists; remove the old archive first or choose another name."
                )
    members = _members(sources, extension)
    total = sum(path.stat().st_size for path in members.values() if path.is_file())
    try:
        with (
            scratch_folder(stem.parent, ".pack-") as scratch,
            Progress(
                total=total,
                unit="B",
                unit_scale=True,
                desc=f"pack {stem.name}",
                disable=not progress,
            ) as bar,
        ):
            with closing(PartsWriter(scratch, max_size)) as writer:
                # Weights hardly compress: level 1 costs a few per cent of size and saves most of
                # the time.
                packed: Any = gzip.GzipFile(
                    filename="", mode="wb", compresslevel=1, fileobj=cast(Any, writer), mtime=0
                )
                with packed:
                    write_tar((_entry(*item) for item in members.items()), packed, bar.update)
            names = [lone]
            if len(writer.facts) > 1:
                names = [
                    f"{whole}.part_{suffix}"
                    for suffix, _ in zip(suffixes(), writer.facts, strict=False)
                ]
            for index, name in enumerate(names):
                os.replace(writer.path(index), stem.parent / name)
        record(stem.parent, dict(zip(names, writer.facts, strict=True)))
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{stem} could not be packed ({in_short(error)}).") from None
    return [stem.parent / name for name in names]


def _members(sources: Sequence[Path], extension: str | None) -> dict[str, Path]:
    """Name inside the archive -> path, sorted by name."""
    ending = "" if extension is None else f".{extension.removeprefix('.')}"
    members: dict[str, Path] = {}
    for source in map(Path, sources):
        top = Path(os.path.abspath(source))
        if not top.exists():
            raise UserError(f"There is no {source} to pack.")
        entries = {top.name: top}
        if top.is_dir():
            inside = {
                f"{top.name}/{path.relative_to(top).as_posix()}": path for path in top.rglob("*")
            }
            matching = {
                k: p
                for k, p in inside.items()
                if not ending or (p.is_file() and p.name.endswith(ending))
            }
            entries = matching if ending else entries | matching
        if twice := sorted(set(entries) & set(members)):
            raise UserError(f"Two sources are called '{twice[0]}'; rename one of them.")
        members |= entries
    odd = [
        p for p in members.values() if not p.is_file() and not (p.is_dir() and not p.is_symlink())
    ]
    if odd:
        raise UserError(f"{odd[0]} is neither a file nor a plain folder and cannot be packed.")
    if unprintable := [name for name in members if not name.isprintable()]:
        raise UserError(
            f"The name {unprintable[0]!r} cannot be printed and is not packed; rename it."
        )
    if not any(path.is_file() for path in members.values()):
        of = f" that ends in {ending}" if ending else ""
        raise UserError(
            f"There is no file{of} in {', '.join(map(str, sources)) or 'an empty list'} to pack."
        )
    return dict(sorted(members.items()))


def _entry(name: str, path: Path) -> Entry:
    return Entry(name=name, open=None if path.is_dir() else partial(open, path, "rb"))


# --- unpacking ------------------------------------------------------------------------------------


def unpack(
    src: Path,
    out: Path,
    *,
    max_members: int = MAX_MEMBERS,
    max_total: int = MAX_TOTAL,
    progress: bool = True,
) -> list[Path]:
    """Extract an archive, whole or in parts, into a folder.

    Parts that a manifest beside them names are first checked against it. Only plain files and
    folders are extracted, and only below `out`; they appear there when the last byte of the archive
    has been checked.

    Args:
        src: a .tar.gz, any part of a set, or the folder that holds them.
        out: the folder; made where it is missing. What it holds stays, and nothing in it is
            replaced.
        max_members: how many files and folders the archive may hold.
        max_total: how many bytes it may unpack to.
        progress: show a bar over the bytes read.

    Returns:
        What appeared in `out`, sorted.

    Raises:
        UserError: a part is missing, swapped, cut short or damaged, a member is unsafe or exists
            already, a limit is passed, or the disk refuses. Nothing is left half-written.
    """
    parts, out = find_parts(src), Path(out)
    total = sum(path.stat().st_size for path in parts)
    try:
        _check_parts(parts, total, progress)
        with (
            scratch_folder(out, ".unpack-") as scratch,
            Progress(
                total=total, unit="B", unit_scale=True, desc="unpack", disable=not progress
            ) as bar,
            closing(PartsReader(parts, bar.update)) as reader,
        ):
            try:
                # A stream is read from front to back, so of a file gzip asks for no more than
                # `read`.
                packed: Any = gzip.GzipFile(fileobj=cast(Any, reader), mode="rb")
                with packed:
                    extract(packed, scratch, out, max_members=max_members, max_total=max_total)
            except DAMAGE as error:
                raise UserError(_diagnosis(parts, reader.current, error)) from None
            placed = sorted(out / path.name for path in scratch.iterdir())
            for path in placed:
                os.rename(scratch / path.name, path)
    except OSError as error:
        raise UserError(
            f"{parts[0]} could not be unpacked into {out} ({in_short(error)})."
        ) from None
    return placed


# --- what is wrong with a set of parts ------------------------------------------------------------


def _check_parts(parts: Sequence[Path], total: int, progress: bool) -> None:
    """Compare parts with the manifest beside them; unnamed parts rely on gzip's checksum."""
    manifest = read_manifest(parts[0].parent)
    if not any(path.name in manifest for path in parts):
        return
    whole = parts[0].name.rpartition(".part_")[0]
    for name in sorted(manifest):
        if whole and name.startswith(f"{whole}.part_") and not (parts[0].parent / name).is_file():
            raise UserError(f"{name} is missing, which {MANIFEST} names; download it again.")
    with Progress(
        total=total, unit="B", unit_scale=True, desc="check", disable=not progress
    ) as bar:
        for path in parts:
            actual = FileFacts(sha256=sha256_of(path, bar.update), bytes=path.stat().st_size)
            expected = manifest.get(path.name, actual)
            if actual.sha256 == expected.sha256:
                continue
            same_content = [
                name for name, facts in manifest.items() if facts.sha256 == actual.sha256
            ]
            why = (
                f"it holds what {same_content[0]} should hold"
                if same_content
                else "its SHA-256 differs"
            )
            if expected.bytes is not None and actual.bytes != expected.bytes:
                why += f" and it has {actual.bytes:,} bytes instead of {expected.bytes:,}"
            raise UserError(
                f"{path} is not the file that {MANIFEST} describes ({why}); download it again."
            )


def _diagnosis(parts: Sequence[Path], current: Path, error: Exception) -> str:
    """One sentence on the likeliest cause why an archive could not be read to its end."""
    if len(parts) == 1:
        what = "is cut short" if isinstance(error, EOFError) else "is damaged or no .tar.gz"
        return f"{current} {what} ({in_short(error)}); download it again."
    seen: dict[str, Path] = {}
    for path in parts:
        if (other := seen.setdefault(sha256_of(path), path)) is not path:
            return (
                f"{path} holds the same as {other.name}: a part is there twice; download it again."
            )
    sizes = [path.stat().st_size for path in parts]
    for path, size in zip(parts[:-1], sizes, strict=False):
        if size < max(sizes):
            return (
                f"{path} has {size:,} bytes where others have {max(sizes):,}: it is cut short or "
                "swapped with another."
            )
    if isinstance(error, EOFError):
        return (
            f"The archive ends too early: {parts[-1]} is cut short or parts after it are missing; "
            "download them again."
        )
    return (
        f"The archive is damaged at {current} ({in_short(error)}): that part is corrupt or parts "
        "are swapped; download it again."
    )
