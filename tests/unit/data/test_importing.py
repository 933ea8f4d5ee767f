"""A store that is imported: what an import that fails leaves behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from foreact.data.formats.importing import store_to_import
from foreact.errors import UserError, decoding


@pytest.mark.parametrize(
    ("number", "is_kept"),
    [(errno.ENOSPC, True), (errno.EIO, True), (errno.EINVAL, False), (errno.ENOENT, False)],
)
def test_what_a_disk_refused_is_kept_and_what_the_source_holds_is_not(
    tmp_path: Path, number: int, is_kept: bool
) -> None:
    # A seek to a place that damaged bytes name is EINVAL: the file's fault, not the disk's.

    def damaged() -> None:
        with store_to_import(tmp_path / "s.zarr") as draft, decoding("a is damaged"):
            draft.mkdir()
            raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match="a is damaged"):
        damaged()
    assert [p.name for p in tmp_path.iterdir()] == [".s.zarr.unfinished"] * is_kept
