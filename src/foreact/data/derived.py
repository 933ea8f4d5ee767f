"""Streams computed from a store's own episodes, such as latents: added whole, resumed after the last whole episode."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr

from foreact.data.layout import committed_ends, create_stream, extend, get_array, open_for_writing
from foreact.types import UserError


class StreamWriter:
    """Fills one stream derived from a store's episodes, in their order; made by `add_stream`.

    Attributes:
        episodes: how many episodes are done; those of an earlier run that was cut short count.
    """

    def __init__(self, path: Path, name: str, attrs: Mapping[str, Any]) -> None:
        self.path, self.name, self._attrs = path, name, dict(attrs)
        self._group = open_for_writing(path, foreign_too=True)
        ends = np.asarray(get_array(self._group, "meta/episode_ends")[:])
        self._ends = committed_ends(ends)
        self._final, self._partial = path / "data" / name, path / "data" / f"{name}.partial"
        self._array: zarr.Array | None = None
        self.episodes = 0
        if self._is_whole():
            self.episodes = len(self._ends)
            return
        if self._continues(self._final):
            # The store has grown since: the finished stream goes on from where it ended.
            shutil.rmtree(self._partial, ignore_errors=True)
            os.replace(self._final, self._partial)
        if self._continues(self._partial):
            self._array = get_array(self._group, f"data/{name}.partial")
            self.episodes = int(self._array.attrs["episodes"])  # type: ignore[arg-type]
        elif self._partial.exists():
            shutil.rmtree(self._partial)

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._array is not None and self.episodes == len(self._ends):
            retired = self._final.with_name(f"{self.name}.old")
            shutil.rmtree(retired, ignore_errors=True)
            if self._final.exists():
                os.replace(self._final, retired)
            os.replace(self._partial, self._final)
            shutil.rmtree(retired, ignore_errors=True)

    def append(self, rows: np.ndarray) -> None:
        """Add the next episode's rows, (T, ...) with T its length; all episodes of one dtype and row shape.

        Raises:
            UserError: the rows do not fit the episode or the stream, or the disk refuses.
        """
        if self.episodes == len(self._ends):
            raise UserError(f"Stream '{self.name}' already holds all {self.episodes} episodes of {self.path}.")
        start = int(self._ends[self.episodes - 1]) if self.episodes else 0
        length = int(self._ends[self.episodes]) - start
        like = rows if self._array is None else self._array
        shape, dtype = like.shape[1:], like.dtype
        if rows.shape != (length, *shape) or rows.dtype != dtype:
            raise UserError(
                f"Episode {self.episodes} of stream '{self.name}' should be {dtype} {(length, *shape)}, "
                f"found {rows.dtype} {rows.shape}."
            )
        try:
            array = self._array
            if array is None:
                array = create_stream(self._group, f"{self.name}.partial", rows.shape[1:], rows.dtype)
                array.attrs.update({**self._attrs, "episodes": 0})
                self._array = array
            extend(array, start, rows)
            array.attrs["episodes"] = self.episodes + 1
        except OSError as error:
            raise UserError(
                f"Episode {self.episodes} of stream '{self.name}' could not be written to {self.path} ({error}); what "
                "was done is kept: make room and run again."
            ) from error
        self.episodes += 1

    def _is_whole(self) -> bool:
        if not self._final.exists():
            return False
        notes = get_array(self._group, f"data/{self.name}").attrs.asdict()
        return notes == {**self._attrs, "episodes": len(self._ends)}

    def _continues(self, folder: Path) -> bool:
        """Whether `folder` holds whole episodes, fewer than the store's, made with the same attributes."""
        if not folder.exists():
            return False
        try:
            array = get_array(self._group, f"data/{folder.name}")
        except (KeyError, ValueError):
            return False
        notes = array.attrs.asdict()
        done = notes.pop("episodes", None)
        unfinished = folder == self._partial or (done is not None and int(done) < len(self._ends))
        return notes == self._attrs and done is not None and unfinished


def add_stream(path: str | Path, name: str, *, attrs: Mapping[str, Any]) -> StreamWriter:
    """Begin, or go on with, a stream derived from the episodes of the store at `path`, such as `latents_<camera>`.

    The stream is called `<name>.partial` until all episodes are in it, so readers never see half of one. Work of an
    earlier run with the same `attrs` counts; a finished stream with other `attrs` is replaced at the end.

    Args:
        path: a store that is a folder.
        name: name of the stream.
        attrs: what it was made with, JSON-able, such as {"tokenizer": hash}.

    Raises:
        UserError: no store there, or it is a zip.
    """
    return StreamWriter(Path(path), name, attrs)
