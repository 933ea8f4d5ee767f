"""A small JSON file beside released files that records their bytes, SHA-256 and origin."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from foreact.errors import UserError, in_short
from foreact.files import parse_json, read_text

MANIFEST = "foreact-manifest.json"
BLOCK = 2**20
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What one file should be.

    Attributes:
        sha256: 64 hexadecimal digits in lower case.
        bytes: its length, or None where only the hash is known.
        url: where it came from, or None.
    """

    sha256: str
    bytes: int | None = None
    url: str | None = None


def sha256_of(path: Path, advance: Callable[[int], object] = lambda count: None) -> str:
    """SHA-256 of a file, read in blocks; `advance` is told the bytes of each."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(BLOCK):
            digest.update(data)
            advance(len(data))
    return digest.hexdigest()


def check_file(path: Path, facts: FileFacts) -> None:
    """Compare a file with what is known of it.

    Raises:
        UserError: it is missing, of another length or of another hash.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; download or copy it again.")
    size = path.stat().st_size
    if facts.bytes is not None and size != facts.bytes:
        raise UserError(
            f"{path} should have {facts.bytes:,} bytes, found {size:,}; download or copy it again."
        )
    if (found := sha256_of(path)) != facts.sha256:
        raise UserError(
            f"{path} should have the SHA-256 {facts.sha256}, found {found}; it is damaged or "
            "another file: download or copy it again."
        )


def read_manifest(folder: Path) -> dict[str, FileFacts]:
    """File name -> facts, as recorded in `folder`; empty where nothing is.

    Raises:
        UserError: the manifest is damaged.
    """
    path = Path(folder) / MANIFEST
    try:
        return parse_checksums(read_text(path), str(path))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({in_short(error)}); restore or remove it."
        ) from None


def record(folder: Path, facts: Mapping[str, FileFacts]) -> None:
    """Add `facts` to the manifest of `folder`; what it says of other files stays."""
    path = Path(folder) / MANIFEST
    merged = {**read_manifest(folder), **facts}
    raw = {
        name: {k: v for k, v in asdict(merged[name]).items() if v is not None}
        for name in sorted(merged)
    }
    temporary = path.with_name(f".{MANIFEST}.tmp")
    temporary.write_text(json.dumps({"files": raw}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def parse_checksums(text: str, where: str) -> dict[str, FileFacts]:
    """File name -> facts, from the text of our manifest or of a list as `sha256sum` writes it.

    Args:
        text: the content.
        where: what it is, for error messages.

    Raises:
        UserError: it is neither.
    """
    try:
        entries = _from_json(text) if text.lstrip().startswith("{") else _from_lines(text)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        entries = {}
    if not entries:
        raise UserError(
            f"{where} is neither a {MANIFEST} nor a list of lines 'SHA256  NAME'; "
            "restore it or remove it."
        )
    return entries


def _from_json(text: str) -> dict[str, FileFacts]:
    return {name: _checked(**facts) for name, facts in parse_json(text)["files"].items()}


def _from_lines(text: str) -> dict[str, FileFacts]:
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    # `sha256sum --binary` puts a star before the name; a path in front of it does not count.
    return {
        name.strip().removeprefix("*").rpartition("/")[2]: _checked(sha256=digest)
        for digest, name in pairs
    }


def _checked(*, sha256: str, bytes: int | None = None, url: str | None = None) -> FileFacts:
    if not SHA256.fullmatch(sha256.lower()) or not (
        bytes is None or (type(bytes) is int and bytes >= 0)
    ):
        raise ValueError("neither a hash nor a length")
    return FileFacts(sha256=sha256.lower(), bytes=bytes, url=url)
