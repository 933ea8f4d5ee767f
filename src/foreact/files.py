"""Files as people have them: text of any editor, tables of any spreadsheet, folders of any system.

Editors put a byte-order mark before a text, and end its lines as they like; spreadsheets fill up
rows with empty cells; archives made on a Mac carry a file `._NAME` beside every NAME.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks -> encoding that takes them off."""
DELIMITERS = "\t;,"
SYSTEM_FILES = (".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX")

_TEXT_OR_LAST_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[\]}])')
_NUMBER = re.compile(r"([0-9]+)")


def decode_text(data: bytes) -> str:
    r"""Text of bytes: without a byte-order mark, every line ended by "\n".

    Raises:
        UnicodeDecodeError: neither UTF-8 nor, after its mark, UTF-16.
    """
    return data.decode(_encoding(data)).replace("\r\n", "\n").replace("\r", "\n")


def open_text(path: str | Path, *, errors: str = "strict") -> TextIO:
    """Open a file to read its text as `decode_text` does.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        encoding = _encoding(file.read(4))
    return open(path, encoding=encoding, errors=errors)


def read_text(path: str | Path) -> str:
    """Text of a file, see `decode_text`.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
    """
    with open_text(path) as file:
        return file.read()


def _encoding(data: bytes) -> str:
    return next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")


def parse_json(text: str) -> Any:
    """Value of a JSON text, which may have a comma after the last entry of a list or object.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    try:
        return json.loads(text)
    except ValueError:
        without = _TEXT_OR_LAST_COMMA.sub(lambda match: match[1] or "", text)
        if without == text:
            raise
        return json.loads(without)


def finite(value: Any) -> Any:
    """JSON values with null for NaN and infinities, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with null for NaN and infinities.

    Raises:
        OSError: the disk refused; nothing is left of the attempt.
    """
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(finite(value), indent=2, allow_nan=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def parse_list(text: str) -> list[str]:
    """Entries of a text with one per line; blank lines and a comma after an entry do not count."""
    entries = (line.strip().rstrip(",;").strip() for line in text.splitlines())
    return [entry for entry in entries if entry]


def parse_table(text: str) -> list[dict[str, str]]:
    """Rows of a table with a header, by column; blank rows and columns without a name do not count.

    Cells are separated by tabs, semicolons or commas, whichever the header has most of. A row that
    ends early has no entry for the rest.

    Raises:
        csv.Error: it is no table.
    """
    lines = [line for line in text.split("\n") if line.strip(" " + DELIMITERS)]
    header = lines[0] if lines else ""
    delimiter = max(DELIMITERS, key=header.count)
    # A quotation mark is a letter like others between tabs, where titles of videos hold some.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(lines, delimiter=delimiter, quoting=quoting)
    names = [name.strip() for name in next(rows, [])]
    return [
        {name: cell.strip() for name, cell in zip(names, row, strict=False) if name} for row in rows
    ]


def listed(folder: Path, pattern: str = "*", *, endings: Iterable[str] = ()) -> list[Path]:
    """What a folder holds, without the files that operating systems leave in it.

    Args:
        folder: where; one that does not exist holds nothing.
        pattern: of `Path.glob`.
        endings: of file names, such as ".mp4", in upper or lower case; empty: all.

    Returns:
        The paths in natural order: shard 2 comes before shard 10.
    """
    lowered = tuple(ending.lower() for ending in endings)
    paths = [
        path
        for path in folder.glob(pattern)
        if not any(map(is_system_file, path.relative_to(folder).parts))
        and (not lowered or path.name.lower().endswith(lowered))
    ]
    return sorted(paths, key=natural_order)


def is_system_file(name: str) -> bool:
    """Whether a file of this name is an operating system's, such as `._shard.hdf5` of a Mac."""
    return name.startswith("._") or name in SYSTEM_FILES


def natural_order(path: str | Path) -> tuple[list[tuple[int, str]], str]:
    """Key that sorts numbers inside names by their value."""
    parts = _NUMBER.split(str(path))
    # Texts and numbers alternate, so that alike is compared with alike.
    return [(int(p), "") if p.isdecimal() and p.isascii() else (0, p) for p in parts], str(path)
