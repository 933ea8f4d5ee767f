"""Changes that spoil files at random: what crashes, bad disks, other programs and attackers leave.

Every change takes a `random.Random` and alters a folder in place; the same generator state gives
the same change.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import random
import shutil
import sqlite3
import struct
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

CANARY = "canary-ran"
"""File that a pickle of ours would create in the working folder if anybody ran it."""


class RunsCode:
    """What an attacker puts into a pickle."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


GREATEST = 2**63 - 1
INTEGERS = (GREATEST, -GREATEST - 1, 2**31 - 1, 2**32 - 1, -1, 0, 1)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    GREATEST,
    2**64,
    -(10**30),
    1e308,
    float("nan"),
    float("inf"),
    "",
    "odd",
    "../../outside",
    "/etc/hostname",
    "line\nbreak\t\x00",
    "x" * 5000,
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    [1, "two", [3]],
    "NaN",
    {"__class__": "os.system"},
)
DEEP = 20_000
"""Brackets within brackets, more than a recursive parser survives."""


# --- bytes ----------------------------------------------------------------------------------------


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Any bytes: cut, bits flipped, blocks zeroed, repeated or moved, integers set."""
    return rng.choice(BYTE_CHANGES)(data, rng)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30)) if data else 0):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zero_block(data: bytes, rng: random.Random) -> bytes:
    start, length = _block(data, rng)
    return data[:start] + bytes(min(length, len(data) - start)) + data[start + length :]


def repeat_block(data: bytes, rng: random.Random) -> bytes:
    start, length = _block(data, rng)
    return data[: start + length] + data[start : start + length] * rng.randint(1, 3) + data[start:]


def drop_block(data: bytes, rng: random.Random) -> bytes:
    start, length = _block(data, rng)
    return data[:start] + data[start + length :]


def set_integer(data: bytes, rng: random.Random) -> bytes:
    """Overwrite 8 or 4 bytes at a place by an extreme number in either order of bytes."""
    width, order = rng.choice((8, 4, 2)), rng.choice("<>")
    value = rng.choice(INTEGERS) % 2 ** (8 * width)
    number = struct.pack(f"{order}{ {8: 'Q', 4: 'I', 2: 'H'}[width] }", value)
    start = _place(data, rng) if data else 0
    return (data[:start] + number + data[start + width :])[: max(len(data), width)]


def append_garbage(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randint(1, 200))


BYTE_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    cut,
    flip_bits,
    flip_bits,
    zero_block,
    repeat_block,
    drop_block,
    set_integer,
    set_integer,
    append_garbage,
)


def _place(data: bytes, rng: random.Random) -> int:
    """A position, every other time among the first 200 bytes, where headers are."""
    return rng.randrange(min(len(data), 200) if rng.random() < 0.5 else len(data))


def _block(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = _place(data, rng) if data else 0
    return start, rng.randint(1, max(1, min(4096, len(data))))


# --- JSON, text, pickles --------------------------------------------------------------------------


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """One entry at any depth removed or given an odd value; or text that is barely JSON."""
    if rng.random() < 0.1:
        return rng.choice(
            (b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP, b"NaN", b"null", b"[]", b"{}", b"")
        )
    if rng.random() < 0.05:
        return data.replace(b":", b": 1" + b"0" * 5000 + b" +", 1)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return damage_bytes(data, rng)
    return json.dumps(change_value(content, rng)).encode()


def change_value(content: Any, rng: random.Random) -> Any:
    """A copy of nested lists and dicts with one entry removed, renamed, repeated or made odd."""
    content = copy.deepcopy(content)
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        keys = value.keys() if isinstance(value, dict) else range(len(value))
        for key in keys:
            places.append((value, key))
            if isinstance(value[key], dict | list) and len(places) < 5000:
                collect(value[key])

    if isinstance(content, dict | list):
        collect(content)
    if not places or rng.random() < 0.03:
        return rng.choice(ODD_VALUES)
    holder, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == 1:
        holder.append(holder[key])
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return content


def damage_lines(data: bytes, rng: random.Random) -> bytes:
    """A table or list of lines: one line changed, dropped, doubled, or one of its cells made odd.

    Lines that are JSON are changed as JSON.
    """
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    elif lines[at].startswith(b"{"):
        lines[at] = damage_json(lines[at], rng)
    else:
        cells = lines[at].split(b"\t")
        odd = str(rng.choice(ODD_VALUES)).encode("utf-8", "surrogatepass")
        cells[rng.randrange(len(cells))] = odd
        lines[at] = b"\t".join(cells)
    return b"\n".join(lines)


def damage_pickle(data: bytes, rng: random.Random) -> bytes:
    """A pickle of plain values with one of them made odd, or one that wants to run something."""
    if rng.random() < 0.2:
        return canary(rng)
    try:
        return pickle.dumps(change_value(pickle.loads(data), rng), rng.choice((2, 4)))
    except Exception:  # damaged before, or of foreign objects
        return damage_bytes(data, rng)


def canary(rng: random.Random) -> bytes:
    return pickle.dumps([RunsCode()], rng.choice((0, 2, 4)))


# --- containers -----------------------------------------------------------------------------------


def damage_zip(data: bytes, rng: random.Random) -> bytes:
    """A zip whose members are changed, removed or renamed, with checksums that are right again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
            kind = archive.infolist()[0].compress_type
    except Exception:  # damaged before
        return damage_bytes(data, rng)
    name = rng.choice(sorted(members))
    choice = rng.randrange(6)
    if choice == 0:
        del members[name]
    elif choice == 1:
        members[rng.choice(("../outside", "/outside", name + "x", name.upper()))] = members[name]
    elif choice == 2:
        members[name] = canary(rng)
    else:
        members[name] = damage_content(name, members[name], rng)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", kind) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return made.getvalue()


def damage_gzip(data: bytes, rng: random.Random) -> bytes:
    """What is packed is changed, and packed again with the right checksum."""
    try:
        return gzip.compress(damage_bytes(gzip.decompress(data), rng), mtime=0)
    except Exception:  # damaged before
        return damage_bytes(data, rng)


def damage_npy(data: bytes, rng: random.Random) -> bytes:
    """The text of an array's header changed, its length kept right."""
    end = 10 + int.from_bytes(data[8:10], "little")
    header = data[10:end].decode("latin-1").strip()
    changes = (
        ("'shape': (", f"'shape': ({GREATEST}, "),
        ("'shape': (", "'shape': (-1, "),
        ("'shape': (", "'shape': ((), "),
        ("'descr': '", "'descr': '|O"),
        ("'descr': '", "'descr': 'q"),
        ("'fortran_order': ", "'fortran_order': 'no"),
        ("}", ""),
        ("{", "{{"),
        ("'shape'", "\x00'shape'"),
        ("'shape'", "  \\\n 'shape"),
    )
    text = header.replace(*rng.choice(changes)).encode("latin-1") + b"\n"
    return data[:8] + len(text).to_bytes(2, "little") + text + data[end:]


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The JSON in front of the tensors changed, its length kept right."""
    size = int.from_bytes(data[:8], "little")
    header = damage_json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def damage_sqlite(path: Path, rng: random.Random) -> None:
    """One cell of a data base made odd, or one of its tables or columns gone."""
    try:
        with closing(sqlite3.connect(path)) as base, base:
            query = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
            table = rng.choice([name for (name,) in base.execute(query)])
            columns = [row[1] for row in base.execute(f"PRAGMA table_info({table})")]
            column, kind = rng.choice(columns), rng.randrange(8)
            if kind == 0:
                base.execute(f"DROP TABLE {table}")
            elif kind == 1:
                base.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO odd")
            elif kind == 2:
                base.execute(f"DELETE FROM {table}")
            else:
                odd = rng.choice(
                    (None, "odd", b"\xff\x00", GREATEST, -1, 1e308, float("inf"), "../../x", "")
                )
                where = "" if kind == 3 else f"WHERE rowid = {rng.randint(1, 10)}"
                base.execute(f"UPDATE {table} SET {column} = ? {where}", (odd,))
    except (sqlite3.Error, IndexError):  # damaged before
        path.write_bytes(damage_bytes(path.read_bytes(), rng))


def damage_hdf5(path: Path, rng: random.Random) -> None:
    """One array of an HDF5 file of another type or shape, gone, or a group."""
    import h5py
    import numpy as np

    try:
        with h5py.File(path, "r+") as file:
            name = rng.choice(sorted(file))
            values: Any = file[name]
            values = values[:]
            del file[name]
            kind = rng.randrange(9)
            if kind == 0:
                return
            if kind == 1:
                file.create_group(name)
            elif kind == 2:
                file[name] = values[: rng.randint(0, len(values))]
            elif kind == 3:
                file[name] = values.astype(rng.choice(("f4", "i8", "u1", "f8", "S3", "c8", "?")))
            elif kind == 4:
                file[name] = values.reshape(len(values), -1, 1)
            elif kind == 5:
                file[name] = np.full_like(values, rng.choice((0, 1, 255)))
            elif kind == 6:
                file[name] = values.astype("f4") * np.float32("nan")
            elif kind == 7:
                file.create_dataset(name, (GREATEST // 4,), "u1", chunks=(2**20,))
            else:
                file.create_dataset(name, data=values, chunks=True, compression="gzip")
    except Exception:  # damaged before
        path.write_bytes(damage_bytes(path.read_bytes(), rng))


# --- any file of a folder -------------------------------------------------------------------------


BY_SUFFIX: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": damage_json,
    ".zarray": damage_json,
    ".zattrs": damage_json,
    ".zgroup": damage_json,
    ".zmetadata": damage_json,
    ".jsonl": damage_lines,
    ".csv": damage_lines,
    ".txt": damage_lines,
    ".pkl": damage_pickle,
    ".npy": damage_npy,
    ".npz": damage_zip,
    ".zip": damage_zip,
    ".pt": damage_zip,
    ".pth": damage_zip,
    ".ckpt": damage_zip,
    ".gz": damage_gzip,
    ".safetensors": damage_safetensors,
}
BY_FILE: dict[str, Callable[[Path, random.Random], None]] = {
    ".db": damage_sqlite,
    ".hdf5": damage_hdf5,
}


def suffix_of(name: str) -> str:
    """The end of a name that tells its kind; ".zarray" is one as a whole."""
    base = name.rpartition("/")[2]
    return base if base.startswith(".z") else Path(base).suffix


def damage_content(name: str, data: bytes, rng: random.Random) -> bytes:
    """A file's content changed as its kind allows, or as bytes."""
    by_kind = BY_SUFFIX.get(suffix_of(name))
    return (by_kind if by_kind and rng.random() < 0.6 else damage_bytes)(data, rng)


def damage_folder(folder: Path, rng: random.Random) -> list[str]:
    """Change one to three entries below a folder; returns what was done, for the report."""
    return [_damage_one(folder, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]


def _damage_one(folder: Path, rng: random.Random) -> str:
    paths = sorted(folder.rglob("*"))
    files = _even_kinds([p for p in paths if p.is_file() and not p.is_symlink()], rng)
    if not files:
        return "nothing was left to change"
    path, kind = rng.choice(files), rng.random()
    name = str(path.relative_to(folder))
    if kind < 0.04:
        path.unlink()
        return f"{name} removed"
    if kind < 0.08:
        path.unlink()
        path.mkdir()
        return f"{name} became a folder"
    if kind < 0.11 and path.parent != folder:
        name = str(path.parent.relative_to(folder))
        shutil.rmtree(path.parent)
        path.parent.write_bytes(rng.choice((b"", b"odd")))
        return f"{name} became a file"
    if kind < 0.14:
        path.write_bytes(canary(rng))
        return f"{name} became a pickle that runs a program"
    if kind < 0.17:
        other = rng.choice(files)
        shutil.copyfile(other, path) if other != path else path.write_bytes(b"")
        return f"{name} became {other.name}"
    by_file = BY_FILE.get(path.suffix)
    if by_file is not None and kind < 0.7:
        by_file(path, rng)
    else:
        path.write_bytes(damage_content(path.name, path.read_bytes(), rng))
    return f"{name} changed"


def _even_kinds(files: Sequence[Path], rng: random.Random) -> list[Path]:
    """The files of one kind, so that a table among a hundred pictures has its turn."""
    kinds = sorted({_kind_of(file) for file in files})
    chosen = rng.choice(kinds) if kinds else None
    return [file for file in files if _kind_of(file) == chosen]


def _kind_of(file: Path) -> str:
    suffix = suffix_of(file.name)
    # Chunks are named by numbers, such as 0.0.0; metadata each for itself.
    return "chunk" if suffix.lstrip(".").isdigit() else suffix or "plain"
