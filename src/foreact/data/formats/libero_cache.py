"""The cache that UVA builds of LIBERO's files, `<folder>_clip.zarr.zip`: recognised and refused.

Its pictures are JPEG 2000 and upside down, its actions belong to the pictures of one step before,
and of each sentence it keeps only the tokens of one text encoder.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NoReturn

from foreact.errors import UserError
from foreact.types import StreamSpec

TOKENS = "data/language/.zarray"
"""What other stores do not have: tokens (N, 2, 30) of the sentence at every step."""


def is_libero_cache(path: Path) -> bool:
    """Whether the path is a zip or folder with a replay buffer that has tokens of sentences."""
    if path.is_dir():
        return (path / TOKENS).is_file()
    if path.suffix.lower() != ".zip" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return TOKENS in archive.namelist()
    except Exception:  # a damaged zip raises anything; whoever opens it says so
        return False


def refuse_to_open(path: Path, spec: StreamSpec | None, *, memory_limit: int) -> NoReturn:
    """As a format's opener.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{path} is UVA's cache of LIBERO's demonstrations, whose pictures are upside down and "
        "whose sentences are gone; give the folder of HDF5 files that it was made of."
    )
