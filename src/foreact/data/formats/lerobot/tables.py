"""Parquet files of a set: columns as numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foreact.errors import UserError, decoding

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def parquet() -> Any:
    """The module `pyarrow.parquet`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            'LeRobot sets need pyarrow; install it with `pip install "foreact[lerobot]"`.'
        ) from None
    return pyarrow.parquet


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a file.

    Raises:
        UserError: it is missing, or has no end, as after a recording that was interrupted.
    """
    module = parquet()
    if not file.is_file():
        raise UserError(f"{file} is missing; copy or download the set again.")
    with decoding(f"{file} is no whole parquet file"):
        return module.ParquetFile(file)


def read_columns(file: Path, names: Sequence[str], group: int | None = None) -> pa.Table:
    """Columns of a file, or of one of its row groups.

    Raises:
        UserError: the file is missing or damaged, or lacks a column.
    """
    with open_parquet(file) as opened:
        has = opened.schema_arrow.names
        if lacking := [name for name in names if name not in has]:
            raise UserError(f"{file} lacks the column '{lacking[0]}'; it has {has[:20]}.")
        with decoding(f"{file} is damaged"):
            if group is None:
                return opened.read(columns=list(names))
            return opened.read_row_group(group, columns=list(names))


def numbers(column: pa.ChunkedArray, dims: int, where: str) -> np.ndarray:
    """A column of numbers, or of lists of them however deep: (N, dims) in its own dtype.

    Raises:
        UserError: an entry is empty, or of another length.
    """
    import pyarrow as pa

    with decoding(f"{where} is damaged"):
        values: Any = column.combine_chunks()
        count, empty = len(column), column.null_count
        uneven = False
        while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
            lengths = values.value_lengths().unique()
            uneven |= len(lengths) > 1 and not empty
            values = values.flatten()
            empty += values.null_count
        flat = values.to_numpy(zero_copy_only=False) if not empty else np.empty(0)
    if empty or uneven or flat.dtype.kind not in "iufb" or len(flat) != count * dims:
        found = f"{len(flat)} of type {flat.dtype}"
        found = f"{empty} empty ones" if empty else "rows of several lengths" if uneven else found
        raise UserError(
            f"{where} should hold {count} x {dims} numbers, found {found}; record or convert the "
            "set again."
        )
    return flat.reshape(count, dims)


class RowFiles:
    """The data files of a set as one table.

    Attributes:
        files: in the order of their rows.
        counts: int64 (F,) rows of each.
        group_starts: int64 (G,) first row of each row group of all files.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        groups, self.counts = [], np.zeros(len(self.files), np.int64)
        for number, file in enumerate(self.files):
            with open_parquet(file) as opened, decoding(f"{file} is damaged"):
                metadata = opened.metadata
                sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
                groups += [(number, group, size) for group, size in enumerate(sizes) if size]
                self.counts[number] = sum(sizes)
        self._groups = groups
        sizes = np.array([size for *_, size in groups], np.int64)
        self.group_starts = np.cumsum(sizes) - sizes

    def __len__(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def file_starts(self) -> np.ndarray:
        """int64 (F,) first row of each file."""
        return np.cumsum(self.counts) - self.counts

    def group(self, number: int, name: str) -> tuple[pa.ChunkedArray, Path]:
        """A column of one row group, and the file that it lies in."""
        file, group, _ = self._groups[number]
        return read_columns(self.files[file], [name], group)[name], self.files[file]

    def whole(self, name: str, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        """A column of numbers of all rows: (N, product of shape), as stored or in `dtype`."""
        dims = math.prod(shape)
        parts = []
        for file in self.files:
            column = read_columns(file, [name])[name]
            part = numbers(column, dims, f"The column '{name}' of {file}")
            parts.append(part if dtype is None else part.astype(dtype, copy=False))
        return np.concatenate(parts) if parts else np.empty((0, dims), dtype or np.float32)
