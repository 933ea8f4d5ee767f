"""Writing episode stores, one whole episode after another.

Reading is in `store`, derived streams are in `derived`.

What makes an episode part of a store is its entry in `meta/episode_ends`, written last; zarr
replaces files atomically. A writer that dies leaves rows that nobody counts, and the next writer
cuts them off.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr

from foreact.data.stores.layout import (
    ARRAY_CONFIG,
    SPEC_ATTRIBUTE,
    committed_ends,
    create_store,
    extend,
    get_array,
    open_for_writing,
    stream_shapes,
)
from foreact.errors import UserError, decoding, in_short, room_or
from foreact.types import StreamSpec


class StoreWriter:
    """Appends whole episodes to a store, new or begun before.

    Used as a context manager. The store is valid at any moment, also after a crash or on a full
    disk, and holds `episodes` episodes.

    Args:
        path: a folder; one writer at a time.
        spec: what the streams mean; must equal the spec of a store begun before.
        attrs: JSON-able notes, kept beside the spec.

    Raises:
        UserError: the path holds something else, or a store of another spec.
    """

    def __init__(
        self, path: str | Path, spec: StreamSpec, *, attrs: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.spec = Path(path), spec
        if not self.path.exists():
            create_store(self.path, spec, attrs or {})
        self._group = open_for_writing(self.path)
        own = StreamSpec.from_json(self._group.attrs[SPEC_ATTRIBUTE])
        own.require_equal(spec, f"The store {self.path}", "the new episodes")
        self._arrays = {
            name: get_array(self._group, f"data/{name}") for name in stream_shapes(spec)
        }
        self._ends = get_array(self._group, "meta/episode_ends")
        self._trim()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None  # every episode is complete on disk as soon as `append` returns

    @property
    def episodes(self) -> int:
        """Whole episodes in the store."""
        return len(self._committed)

    @property
    def attrs(self) -> dict[str, Any]:
        """The notes that the store was made with."""
        return {k: v for k, v in self._group.attrs.asdict().items() if k != SPEC_ATTRIBUTE}

    def append(self, episode: Mapping[str, np.ndarray], **info: Any) -> None:
        """Add one episode.

        Args:
            episode: {stream: array} with exactly the spec's streams: uint8 (T, H, W, 3) for
                cameras, finite numbers (T, D) for states and "action", (T, 1) for "reward", all of
                one length T >= 1.
            info: one value per episode (number, array of numbers or text), the same names for every
                episode.

        Raises:
            UserError: the episode contradicts the spec, or the disk refuses; nothing was added
                then.
        """
        checked = self._check(episode)
        values = self._check_info(info)
        total = int(self._committed[-1]) if self.episodes else 0
        length = len(next(iter(checked.values())))
        try:
            if self._dirty:
                self._trim()
            self._dirty = True
            for name, rows in checked.items():
                extend(self._arrays[name], total, rows)
            for name, value in values.items():
                extend(self._info_array(name, value), self.episodes, value[None])
            extend(self._ends, self.episodes, np.array([total + length], np.int64))
        except OSError as error:
            raise UserError(
                f"Episode {self.episodes} could not be written to {self.path} ({in_short(error)}); "
                f"the {self.episodes} whole episodes before it are kept: "
                f"{room_or(error, 'give it the rights')} and run again."
            ) from error
        self._committed = np.append(self._committed, total + length)
        self._dirty = False

    def _trim(self) -> None:
        """Cut off what an unfinished `append` left."""
        self._committed = committed_ends(np.asarray(self._ends[:]))
        total = int(self._committed[-1]) if self.episodes else 0
        self._ends.resize((self.episodes,))
        for name, array in self._arrays.items():
            if array.shape[0] < total:
                raise UserError(
                    f"Stream '{name}' of {self.path} has {array.shape[0]} steps and its episodes "
                    f"need {total}; the store is damaged, begin a new one."
                )
            array.resize((total, *array.shape[1:]))
        self._info: dict[str, zarr.Array] = {}
        for folder in sorted((self.path / "meta").iterdir()):
            if not folder.is_dir() or folder.name == "episode_ends":
                continue
            if self.episodes == 0:
                shutil.rmtree(folder)
                continue
            self._info[folder.name] = array = get_array(self._group, f"meta/{folder.name}")
            array.resize((self.episodes, *array.shape[1:]))
        self._dirty = False

    def _check(self, episode: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = stream_shapes(self.spec)
        if set(episode) != set(shapes):
            raise UserError(
                f"An episode should have the streams {sorted(shapes)}, found {sorted(episode)}."
            )
        checked, lengths = {}, {}
        for name, (shape, dtype) in shapes.items():
            rows = np.asarray(episode[name])
            fits = rows.dtype == np.uint8 if dtype == np.uint8 else rows.dtype.kind in "iufb"
            if rows.shape[1:] != shape or rows.ndim == 0 or not fits:
                raise UserError(
                    f"Stream '{name}' should be {dtype} (T, {', '.join(map(str, shape))}), "
                    f"found {rows.dtype} {rows.shape}."
                )
            if dtype != np.uint8 and not np.isfinite(rows).all():
                step, dim = np.argwhere(~np.isfinite(rows))[0]
                raise UserError(
                    f"Stream '{name}' should be finite, found {rows[step, dim]} at "
                    f"step {step}, dim {dim}."
                )
            checked[name], lengths[name] = rows.astype(dtype, copy=False), len(rows)
        if len(set(lengths.values())) != 1 or min(lengths.values()) < 1:
            raise UserError(
                "The streams of an episode should have one length of at least 1 step, "
                f"found {lengths}."
            )
        return checked

    def _check_info(self, info: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if self.episodes and set(info) != set(self._info):
            raise UserError(
                f"Every episode of {self.path} carries {sorted(self._info)}, this one "
                f"{sorted(info)}."
            )
        if self.spec.has_text and "text" not in info:
            raise UserError("The spec says that episodes have text; give append(..., text=...).")
        values = {}
        for name, value in info.items():
            array = np.asarray(value)
            if (
                name == "episode_ends"
                or array.dtype.kind not in "iufbU"
                or (array.dtype.kind == "U" and array.ndim)
            ):
                raise UserError(
                    f"'{name}' of an episode should be numbers or one text, found {value!r}."
                )
            if name in self._info and self._info[name].shape[1:] != array.shape:
                raise UserError(
                    f"'{name}' should have shape {self._info[name].shape[1:]}, found {array.shape}."
                )
            values[name] = array
        return values

    def _info_array(self, name: str, value: np.ndarray) -> zarr.Array:
        if name not in self._info:
            dtype: Any = str if value.dtype.kind == "U" else value.dtype
            self._info[name] = self._group.create_array(
                f"meta/{name}",
                shape=(0, *value.shape),
                chunks=(4096, *value.shape),
                dtype=dtype,
                config=ARRAY_CONFIG,
            )
        return self._info[name]


def committed_episodes(path: Path) -> int:
    """Whole episodes of the store at `path`.

    Raises:
        UserError: there is no store of ours.
    """
    group = open_for_writing(path)
    with decoding(f"meta/episode_ends of {path} is damaged", "begin a new store"):
        return len(committed_ends(np.asarray(get_array(group, "meta/episode_ends")[:])))


def drop_episodes(path: Path, keep: int) -> None:
    """Take back all but the first `keep` episodes; the next writer cuts off their rows."""
    get_array(open_for_writing(path), "meta/episode_ends").resize((keep,))
