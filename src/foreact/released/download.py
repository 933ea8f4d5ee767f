"""Files of a release: which set the server has, which are local, and what each must be."""

from __future__ import annotations

import fcntl
import os
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from foreact.checkpoints.manifest import (
    FileFacts,
    parse_checksums,
    read_manifest,
    record,
    sha256_of,
)
from foreact.errors import UserError, room_or
from foreact.files import read_text
from foreact.progress import Progress
from foreact.released.transfer import Client, MissingFileError


def fetch(
    candidates: Sequence[Sequence[str]],
    out: Path,
    *,
    base_url: str,
    addresses: Mapping[str, str] | None = None,
    known: Mapping[str, FileFacts] | None = None,
    client: Client | None = None,
    progress: bool = True,
) -> list[Path]:
    """Download one set of files; record bytes, hashes and origin in the folder's manifest.

    Files that the manifest already names are hashed again and not downloaded again. A set whose
    files the server does not have is passed over for the next one.

    Args:
        candidates: sets of file names, in the order to try them; a set is taken whole.
        out: the folder; made where it is missing.
        base_url: the address that the names are appended to.
        addresses: name -> address, of files that lie elsewhere.
        known: name -> what the file should be, from a source that the caller trusts. Must then name
            every file.
        client: how patient to be.
        progress: show a bar.

    Returns:
        The files, in the order of the set.

    Raises:
        UserError: no set exists, a file is not what it should be, or the server fails for too long.
            What was received stays in NAME.part for the next call, unless it is known to be wrong.
    """
    client, out = client or Client(), Path(out)
    for name in {name for names in candidates for name in names}:
        if name in {"", ".", ".."} or "/" in name or "\\" in name:
            raise UserError(f"'{name}' should be the bare name of a file of the release.")
    if known is not None:
        named = [names for names in candidates if all(name in known for name in names)]
        if not named:
            raise UserError(
                f"The checksums do not name {_either(candidates)}; give those of this "
                "release or none."
            )
        candidates = named
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _sole_writer(out):
            urls = {
                name: (addresses or {}).get(name)
                or f"{base_url.rstrip('/')}/{urllib.parse.quote(name)}"
                for names in candidates
                for name in names
            }
            return _fetch_first(candidates, out, base_url, urls, known, client, progress)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error}); {room_or(error, 'choose another --out')}."
        ) from None
    finally:
        if made and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def read_checksums(source: str, client: Client | None = None) -> dict[str, FileFacts]:
    """File name -> facts, from a SHA256SUMS file or a manifest.

    Args:
        source: a path or an http(s) address.
        client: how patient to be.

    Raises:
        UserError: it cannot be read, or is neither.
    """
    if "://" in source:
        return parse_checksums((client or Client()).text(source), source)
    try:
        return parse_checksums(read_text(source), source)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The checksums {source} cannot be read ({error}).") from None


def _fetch_first(
    candidates: Sequence[Sequence[str]],
    out: Path,
    base_url: str,
    urls: Mapping[str, str],
    known: Mapping[str, FileFacts] | None,
    client: Client,
    progress: bool,
) -> list[Path]:
    expected = read_manifest(out) if known is None else known
    present = [
        names
        for names in candidates
        if all(name in expected and (out / name).is_file() for name in names)
    ]
    for names in present[:1] or candidates:
        try:
            return _fetch_set(names, out, urls, expected, client, progress)
        except MissingFileError:
            if len(candidates) == 1:
                raise
    raise UserError(f"{base_url} has none of {_either(candidates)}; check --base-url.")


def _fetch_set(
    names: Sequence[str],
    out: Path,
    urls: Mapping[str, str],
    expected: Mapping[str, FileFacts],
    client: Client,
    progress: bool,
) -> list[Path]:
    absent = [name for name in names if not (out / name).is_file()]
    sizes = {
        name: client.size(urls[name]) if name in absent else (out / name).stat().st_size
        for name in names
    }
    _require_room(out, sum(sizes[name] or 0 for name in absent))
    total = None if None in sizes.values() else sum(size or 0 for size in sizes.values())
    done = 0
    with Progress(total=total, unit="B", unit_scale=True, disable=not progress) as bar:

        def show(count: int) -> None:
            bar.update(done + count - bar.n)

        for name in names:
            bar.set_description(name)
            if name in absent:
                facts = client.download(urls[name], out / name, expected.get(name), show)
            else:
                facts = _checked(out / name, expected.get(name), urls[name], client, bar.update)
            record(out, {name: facts})
            done += facts.bytes or 0
    return [out / name for name in names]


def _checked(
    path: Path,
    expected: FileFacts | None,
    url: str,
    client: Client,
    advance: Callable[[int], object],
) -> FileFacts:
    """Facts of a file that is already there, provided it is what it should be."""
    actual = FileFacts(sha256=sha256_of(path, advance), bytes=path.stat().st_size, url=url)
    if expected is not None and actual.sha256 != expected.sha256:
        raise UserError(
            f"{path} is damaged or another file: its SHA-256 is not {expected.sha256}; remove it "
            "to get it anew."
        )
    if expected is None and (size := client.size(url)) != actual.bytes:
        raise UserError(
            f"{path} has {actual.bytes:,} bytes and {url} has {size}; remove the file "
            "to get it anew."
        )
    return actual


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB of free space, the download needs "
            f"{needed / 1e9:.1f} GB."
        )


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Two downloads into one folder would write into each other's .part files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another download is writing to {folder}; wait for it or choose another folder."
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(handle)


def _either(candidates: Sequence[Sequence[str]]) -> str:
    return " or ".join(", ".join(names) for names in candidates)
