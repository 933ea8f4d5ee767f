"""Parquet files of a set: row groups appended, a new file where the size is reached."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foreact.errors import decoding

if TYPE_CHECKING:
    import pyarrow as pa

TASKS_METADATA = {
    "index_columns": ["task"],
    "column_indexes": [
        {
            "name": None,
            "field_name": None,
            "pandas_type": "unicode",
            "numpy_type": "object",
            "metadata": {"encoding": "UTF-8"},
        }
    ],
    "columns": [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {
            "name": "task",
            "field_name": "task",
            "pandas_type": "unicode",
            "numpy_type": "object",
            "metadata": None,
        },
    ],
    "creator": {"library": "pyarrow", "version": ""},
    "pandas_version": "2.0.0",
}
"""What makes a reader of pandas take the column `task` as the index, as lerobot expects it."""


class RowWriter:
    """Appends tables as row groups; a context manager.

    Args:
        name: number of a file -> its path.
        limit: bytes of a file, of which uncompressed rows count as they are.
    """

    def __init__(self, name: Callable[[int], Path], limit: int) -> None:
        self._name, self._limit = name, limit
        self._writer: Any = None
        self.file = -1

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def append(self, table: pa.Table) -> int:
        """Add a row group; returns the number of its file.

        Raises:
            UserError: the disk refuses.
        """
        import pyarrow.parquet as pq

        if self._writer is not None and self._path.stat().st_size + table.nbytes >= self._limit:
            self._close()
        with decoding(f"{self._path.name} cannot be written", "make room"):
            if self._writer is None:
                self.file += 1
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(
                    self._path, table.schema, compression="snappy", use_dictionary=True
                )
            self._writer.write_table(table, row_group_size=max(1, len(table)))
        return self.file

    @property
    def _path(self) -> Path:
        return self._name(self.file)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def column(values: np.ndarray) -> pa.Array:
    """A column of numbers: (N, D) as lists of one length, (N, 1) or (N,) plainly."""
    import pyarrow as pa

    if values.ndim == 1 or values.shape[1] == 1:
        return pa.array(values.reshape(-1))
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def write_tasks(file: Path, texts: Sequence[str]) -> None:
    """Write meta/tasks.parquet, its texts as the index of pandas."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "task_index": pa.array(range(len(texts)), pa.int64()),
            "task": pa.array(texts, pa.string()),
        }
    )
    noted = {b"pandas": json.dumps(TASKS_METADATA).encode()}
    pq.write_table(table.replace_schema_metadata(noted), file)
