"""`foreact weights`: list and get released files, unpack and pack them, verify checkpoints."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tyro.conf import Positional

from foreact.checkpoints.format import load_checkpoint
from foreact.checkpoints.manifest import MANIFEST, check_file, read_manifest
from foreact.checkpoints.shipped import names, resolve, shipped
from foreact.checkpoints.verify import verify as verify_checkpoint
from foreact.errors import UserError
from foreact.released import archives
from foreact.released.archives import MAX_MEMBERS
from foreact.released.catalogue import Entry, catalogue
from foreact.released.download import fetch, read_checksums
from foreact.released.transfer import Client


def list_() -> None:
    """List the installed weights, and below them the released ones that `get` downloads."""
    for name in names():
        checkpoint = load_checkpoint(shipped(name))
        size = sum(p.stat().st_size for p in shipped(name).rglob("*") if p.is_file()) / 1e6
        facts = f"{checkpoint.family:<8}{checkpoint.parameters:>12,} parameters {size:>6.1f} MB"
        print(f"{name:<16}{facts}  {checkpoint.hash[:19]}")
        for key, value in (checkpoint.card or {}).items():
            print(f"{'':<16}{key}: {value}")
    print(
        "\nReleased by others; `foreact weights get ID --out DIR` downloads them. Hashes are not "
        "published, and become known when a file is here."
    )
    for release, of_release in groupby(catalogue().entries, key=lambda entry: entry.release):
        print(f"\n{release}")
        for title, entries in groupby(of_release, key=lambda entry: entry.title):
            print(f"\n{title}{_parameters(title)}")
            for entry in entries:
                print(f"  {entry.id:<26}{_facts(entry)}, {_size(entry)}")
                if entry.note:
                    print(f"  {'':<26}note: {entry.note}")


def _size(entry: Entry) -> str:
    return f"size {entry.published_size or 'unknown'}"


def _parameters(title: str) -> str:
    size = next(entry.size for entry in catalogue().entries if entry.title == title)
    if size is None:
        return ""
    if title.startswith("VaViM"):
        return f"  {size.parameters:,} parameters (published as {size.label})"
    return (
        f"  {size.parameters:,} + {size.action_parameters:,} parameters "
        f"(published as {size.label} + {size.action_label})"
    )


def _facts(entry: Entry) -> str:
    steps = ""
    if entry.pretraining_steps is not None:
        steps = f"pretrained {entry.pretraining_steps // 1000}k steps"
    if entry.total_steps is not None:
        steps += f", finetuned to {entry.total_steps // 1000}k"
    if entry.stage == "action":
        steps += ", then the action expert"
    return f"{steps:<50}{_files(entry)}" if steps else _files(entry)


def _files(entry: Entry) -> str:
    if not entry.candidates:
        return "no known file"
    if entry.folder:
        return f"{entry.folder}: {len(entry.candidates[0])} files"
    names = [
        f"{name} ({len(rest) + 1} parts)" if rest else name for name, *rest in entry.candidates
    ]
    stem = names[0].partition(".")[0]
    return " or ".join([names[0], *(name.removeprefix(stem) for name in names[1:])])


def get(
    id: Positional[str],
    out: Path = Path("released"),
    base_url: str | None = None,
    sha256: str | None = None,
    files: tuple[str, ...] = (),
    timeout: float = 30.0,
) -> list[Path]:
    """Download a released model, resuming and checking it, and record it in a manifest.

    Args:
        id: what to get; `foreact weights list` shows all.
        out: the folder to put the files in.
        base_url: where the files lie, instead of the release itself; http or https.
        sha256: path or address of a SHA256SUMS file or a manifest to check the files against.
        files: names of the release's files to take instead of those that the catalogue names.
        timeout: seconds of silence after which a connection counts as broken.
    """
    entry = catalogue().entry(id)
    candidates = [files] if files else entry.candidates
    if not candidates:
        raise UserError(
            f"'{id}' cannot be downloaded: {entry.note}; if you know its files, name "
            "them with --files."
        )
    url, addresses, target = base_url, {}, out
    if url is None:
        url, addresses = f"{entry.url}/{entry.folder}".rstrip("/"), entry.addresses
    if entry.folder:  # names the task, by which a data set is known
        target = out / entry.folder
    print(f"{entry.id}: {entry.title}, {_files(entry)}")
    print(f"from     {next(iter(addresses.values()), url)}")
    print(f"size     {entry.published_size or 'unknown'}, SHA-256 unknown to this catalogue")
    licence = entry.licence or "none stated; see the release"
    print(f"licence  {'unknown: the catalogue has no such files' if files else licence}")
    if entry.note:
        print(f"note     {entry.note}")
    client = Client(timeout=timeout)
    known = None if sha256 is None else read_checksums(sha256, client)
    paths = fetch(candidates, target, base_url=url, addresses=addresses, known=known, client=client)
    print(
        f"\n{len(paths)} file{'s' * (len(paths) > 1)} in {target}, hashes in {target / MANIFEST}:"
    )
    for path in paths:
        print(f"  {path}")
    if paths[0].name.endswith(".gz") or ".part_" in paths[0].name:
        print(f"next: foreact weights unpack {paths[0]} --out {out}")
    elif paths[0].suffix == ".hdf5":
        print(f"next: foreact data check --store {target}")
    return paths


def unpack(
    src: Positional[Path],
    out: Path,
    max_total: str = "200GB",
    max_files: int = MAX_MEMBERS,
) -> list[Path]:
    """Extract a release archive, whole or in parts; nothing appears before all of it is checked.

    Args:
        src: the .tar.gz, any of its parts, or the folder that holds it.
        out: the folder to extract into.
        max_total: refuse an archive that unpacks to more than this.
        max_files: refuse an archive of more files than this.
    """
    paths = archives.unpack(
        src, out, max_members=max_files, max_total=archives.parse_size(max_total)
    )
    print(f"{out} now holds {', '.join(path.name for path in paths)}")
    return paths


def pack(
    files: Positional[tuple[Path, ...]],
    out: Path,
    max_size: str = "1900MB",
    extension: str | None = None,
) -> list[Path]:
    """Write a release archive: OUT.tar.gz, or OUT_chunked.tar.gz.part_aa, ... if too large.

    Args:
        files: files and folders to pack.
        out: the archive's path without its suffixes.
        max_size: the largest part.
        extension: of a folder, take only files that end in this, such as pt.
    """
    parts = archives.pack(files, out, max_size=archives.parse_size(max_size), extension=extension)
    print(f"{len(parts)} file{'s' * (len(parts) > 1)}, hashes in {out.parent / MANIFEST}:")
    for part in parts:
        print(f"  {part}  {part.stat().st_size:,} bytes")
    return parts


def verify(weights: Positional[str]) -> None:
    """Read a whole checkpoint, or files with a manifest; print counts, sizes and hashes.

    Args:
        weights: a checkpoint folder, a shipped name, or a folder of released files as `get` and
            `pack` leave it.
    """
    folder = Path(weights)
    if (folder / "config.json").is_file() or not (folder / MANIFEST).is_file():
        print(verify_checkpoint(resolve(weights)))
        return
    facts = read_manifest(folder)
    for name, fact in sorted(facts.items()):
        check_file(folder / name, fact)
        print(f"{name}  {(folder / name).stat().st_size:,} bytes  sha256 {fact.sha256}")
    print(f"{len(facts)} file{'s' * (len(facts) > 1)} as {folder / MANIFEST} says.")
