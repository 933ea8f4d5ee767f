"""Streams computed from a store's frames, such as tokens, filled in shards by any processes.

While it is made, a stream lies beside the others under a name that readers do not know:

    data/tokens_front.partial-3f2a9c04d1be/
        .zarray .zattrs            full length from the start
        0.0.0 1.0.0 ...            chunks; a shard is a run of whole ones: no two share a file
        done/0-910 done/1820-2730  marks, empty files: these rows are on disk

The name ends in a digest of what the stream is made with, so that work for one tokenizer never
mixes with work for another. A mark is set after its rows are flushed to disk; whatever has none is
done again by the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from foreact.data.stores.chunks import ChunkFiles, damaged_chunks, missing_chunks
from foreact.data.stores.layout import committed_ends, create_stream, get_array, open_for_writing
from foreact.errors import UserError, in_short, room_or


@dataclass(frozen=True)
class Shard:
    """Rows start..stop of a stream; shard `index` of those that the stream is cut into."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class DerivedStream:
    """One stream in the making; made by `open_stream`.

    Attributes:
        name: what it will be called.
        rows: steps of the store, over all episodes.
        chunk: rows per chunk file.
        finished: whether it is whole already and there is nothing to do.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        attrs: Mapping[str, Any],
    ) -> None:
        self.path, self.name, self.rows = path, name, store_rows(path)
        # As they will be read back.
        notes: dict[str, Any] = json.loads(json.dumps(dict(attrs), sort_keys=True))
        facts = json.dumps([notes, shape, dtype.str])
        self._final = path / "data" / name
        self._partial = (
            path / "data" / f"{name}.partial-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        )
        self._kind = (shape, dtype, notes)
        self.finished = False
        try:
            self._array = self._open(shape, dtype, notes)
        except OSError as error:
            raise UserError(
                f"Stream '{name}' could not be begun in {path} ({in_short(error)}); "
                f"{room_or(error, 'give it the rights')} and run again."
            ) from error
        self.chunk = int(self._array.chunks[0])

    @property
    def notes(self) -> Path:
        """A scratch folder for the processes that make the stream; removed when it is finished."""
        return self._partial / "notes"

    def shards(self, steps: int) -> list[Shard]:
        """The whole stream cut into shards of `steps` rows, rounded up to whole chunks."""
        size = -(-max(1, steps) // self.chunk) * self.chunk
        starts = range(0, self.rows, size)
        return [Shard(i, start, min(start + size, self.rows)) for i, start in enumerate(starts)]

    def missing(self, steps: int) -> list[Shard]:
        """Those of `shards(steps)` that are not wholly marked as done."""
        if self.is_whole():
            return []
        done = np.zeros(-(-self.rows // self.chunk), bool)  # by chunk
        for start, stop in self._marks():
            whole = stop // self.chunk if stop < self.rows else len(done)
            done[start // self.chunk : whole] = True
        return [
            s
            for s in self.shards(steps)
            if not done[s.start // self.chunk : -(-s.stop // self.chunk)].all()
        ]

    def write(self, shard: Shard, rows: np.ndarray) -> None:
        """Write one shard, (len(shard), ...), flush it to disk and mark it as done.

        Raises:
            UserError: the rows do not fit the shard or the stream, or the disk refuses.
        """
        if self.finished:
            raise UserError(f"Stream '{self.name}' of {self.path} is whole already.")
        expected = (len(shard), *self._array.shape[1:])
        if rows.shape != expected or rows.dtype != self._array.dtype:
            raise UserError(
                f"Rows {shard.start}..{shard.stop} of stream '{self.name}' should be "
                f"{self._array.dtype} {expected}, found {rows.dtype} {rows.shape}."
            )
        if self.is_whole():  # another process, which did the same work, has finished it
            return
        try:
            self._array[shard.start : shard.stop] = rows
            for chunk in range(shard.start // self.chunk, -(-shard.stop // self.chunk)):
                sync(
                    self._partial
                    / self._array.metadata.encode_chunk_key((chunk, *[0] * (rows.ndim - 1)))
                )
            sync(self._partial)
            _mark(self._partial, shard.start, shard.stop)
        except OSError as error:
            raise UserError(
                f"Rows {shard.start}..{shard.stop} of stream '{self.name}' could not be written "
                f"to {self.path} ({in_short(error)}); what was done is kept: "
                f"{room_or(error, 'give it the rights')} and run again."
            ) from error

    def is_whole(self) -> bool:
        """Whether the stream is in its place, put there by this process or another one."""
        if not self.finished:
            group = open_for_writing(self.path, foreign_too=True)
            whole = self._matching(group, self._final, *self._kind)
            self.finished = whole is not None and whole.shape[0] == self.rows
        return self.finished

    def read(self, shard: Shard) -> np.ndarray:
        """The rows of a shard as they lie on disk.

        Raises:
            UserError: a chunk is missing or damaged.
        """
        files = ChunkFiles(self.path)
        bad = next(missing_chunks(self._array, shard.start, shard.stop, files), None)
        bad = bad or next(damaged_chunks(self._array, shard.start, shard.stop, files), None)
        try:
            if bad is not None:
                raise ValueError(f"chunk '{bad}' is missing or cut short")
            return np.asarray(self._array[shard.start : shard.stop])
        except MemoryError:
            raise
        except Exception as error:  # codecs raise every kind of exception on damaged bytes
            raise UserError(
                f"Rows {shard.start}..{shard.stop} of stream '{self.name}' in {self.path} cannot "
                f"be read back ({in_short(error)}); run again to make them anew."
            ) from error

    def discard(self, shard: Shard) -> None:
        """Take back the marks that touch a shard, so that its rows are made anew."""
        for start, stop in self._marks():
            if start < shard.stop and shard.start < stop:
                (self._partial / "done" / f"{start}-{stop}").unlink(missing_ok=True)

    def finish(self) -> None:
        """Put the stream in its place, where it replaces an older one of that name.

        Raises:
            UserError: rows are missing, the store has grown meanwhile, or the disk refuses.
        """
        if self.is_whole():
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        if (rows := store_rows(self.path)) != self.rows or self._array.shape[0] != self.rows:
            raise UserError(
                f"The store {self.path} grew from {self.rows} to {rows} steps while stream "
                f"'{self.name}' was made; run again to add the new ones."
            )
        if missing := self.missing(self.chunk):
            raise UserError(
                f"Stream '{self.name}' of {self.path} lacks {sum(map(len, missing))} of "
                f"{self.rows} rows, the first at {missing[0].start}; run again to make them."
            )
        retired = self._final.with_name(f"{self.name}.partial-{uuid.uuid4().hex}")
        try:
            if self._final.exists():
                os.replace(self._final, retired)
            os.replace(self._partial, self._final)
        except OSError as error:
            raise UserError(
                f"Stream '{self.name}' of {self.path} could not be put in its place "
                f"({in_short(error)})."
            ) from error
        self.finished = True
        leftovers = self._final.parent.glob(f"{self.name}.partial-*")
        for folder in (self._final / "done", self._final / "notes", *leftovers):
            shutil.rmtree(folder, ignore_errors=True)

    def _open(self, shape: tuple[int, ...], dtype: np.dtype, attrs: dict[str, Any]) -> zarr.Array:
        """Open or make the stream; as processes race, each step is one rename or repeatable."""
        group = open_for_writing(self.path, foreign_too=True)
        created = False
        while True:
            whole = self._matching(group, self._final, shape, dtype, attrs)
            if whole is not None and whole.shape[0] == self.rows:
                self.finished = True
                if created:  # another process put the stream in its place just before
                    shutil.rmtree(self._partial, ignore_errors=True)
                return whole
            if self._partial.exists():
                try:
                    array = get_array(group, f"data/{self._partial.name}")
                # Put in its place just now; or what a late writer left behind, which is no array.
                except KeyError:
                    shutil.rmtree(self._partial, ignore_errors=True)
                    continue
                if array.shape[0] < self.rows:
                    array.resize((self.rows, *shape))
                return array
            if whole is not None and whole.shape[0] < self.rows:
                # The store has grown since: the finished stream goes on from where it ended.
                try:
                    _mark(self._final, 0, whole.shape[0])
                    os.rename(self._final, self._partial)
                except OSError:
                    if self._final.exists() and not self._partial.exists():
                        raise
            else:
                draft = f"{self._partial.name}.{uuid.uuid4().hex}"
                array = create_stream(group, draft, shape, dtype)
                array.resize((self.rows, *shape))
                array.attrs.update(attrs)
                created = _rename_unless_there(self.path / "data" / draft, self._partial)

    @staticmethod
    def _matching(
        group: zarr.Group,
        folder: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        attrs: dict[str, Any],
    ) -> zarr.Array | None:
        try:
            array = get_array(group, f"data/{folder.name}")
        except (KeyError, ValueError):
            return None
        alike = array.shape[1:] == shape and array.dtype == dtype and array.attrs.asdict() == attrs
        return array if alike else None

    def _marks(self) -> Iterator[tuple[int, int]]:
        folder = self._partial / "done"
        for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
            start, _, stop = name.partition("-")
            yield int(start), int(stop)


def open_stream(
    path: str | Path,
    name: str,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype | type,
    attrs: Mapping[str, Any],
) -> DerivedStream:
    """Begin, or go on with, a stream derived from the store at `path`, such as `latents_<camera>`.

    Any number of processes may open it at a time and write different shards; one of them, or a
    later one, calls `finish`. Readers see nothing of it before. Work of earlier runs with the same
    `attrs` counts, that of a finished stream too if the store has grown since; a finished stream
    with other `attrs` is replaced at the end.

    Args:
        path: a store that is a folder.
        name: name of the stream.
        shape, dtype: of one row.
        attrs: what it is made with, JSON-able, such as {"tokenizer": hash}.

    Raises:
        UserError: no store there, it is a zip, or the disk refuses.
    """
    return DerivedStream(Path(path), name, tuple(int(n) for n in shape), np.dtype(dtype), attrs)


def write_stream(
    path: str | Path, name: str, rows: np.ndarray, *, attrs: Mapping[str, Any]
) -> None:
    """Write a derived stream whose rows, one per step over all episodes, are at hand.

    Raises:
        UserError: as `open_stream`, and if the number of rows differs from the store's.
    """
    stream = open_stream(path, name, shape=rows.shape[1:], dtype=rows.dtype, attrs=attrs)
    if len(rows) != stream.rows:
        raise UserError(
            f"Stream '{name}' of {path} should have {stream.rows} rows, one per step, "
            f"found {len(rows)}."
        )
    for shard in stream.missing(stream.chunk):
        stream.write(shard, rows[shard.start : shard.stop])
    stream.finish()


def store_rows(path: Path) -> int:
    """Steps of the store at `path` over all its episodes."""
    ends = committed_ends(
        np.asarray(get_array(open_for_writing(path, foreign_too=True), "meta/episode_ends")[:])
    )
    return int(ends[-1]) if len(ends) else 0


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mark(folder: Path, start: int, stop: int) -> None:
    (folder / "done").mkdir(exist_ok=True)
    (folder / "done" / f"{start}-{stop}").touch()


def _rename_unless_there(source: Path, target: Path) -> bool:
    """Rename `source` to `target`; if another process was first, remove `source`, return False."""
    try:
        os.rename(source, target)
        return True
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(source, ignore_errors=True)
        return False
