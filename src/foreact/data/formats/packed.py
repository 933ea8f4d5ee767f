"""Packed stores, which are unpacked before they are read."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from foreact.errors import UserError
from foreact.types import StreamSpec


def is_packed(path: Path) -> bool:
    """Whether a path is called like a packed store."""
    return path.name.endswith(".tar.lz4")


def refuse_to_open(path: Path, spec: StreamSpec | None, *, memory_limit: int) -> NoReturn:
    raise UserError(
        f"{path} is a packed store; extract it with `foreact data unpack {path} --to FOLDER` and "
        "name what appears there."
    )
