"""Reading episode stores: zarr groups in the replay-buffer layout.

Writing is in `writer`, samples are in `loader`.

Layout: `data/<stream>` holds all episodes one after another along the first axis,
`meta/episode_ends` their cumulative ends (int64), `meta/<name>` one value per episode. The group's
attribute `foreact_spec` says what the streams mean; a store of another project has none and is read
under the spec that the caller gives.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import ZipStore

from foreact.data.stores.chunks import (
    BlockCache,
    ChunkFiles,
    RowReader,
    damaged_chunks,
    missing_chunks,
)
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.frames import FrameReader, has_frame_files
from foreact.data.stores.layout import SPEC_ATTRIBUTE, committed_ends
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError, decoding, in_short
from foreact.types import StreamSpec

__all__ = ["StoreWriter", "ZarrStore", "open_store"]

MEMORY_LIMIT = 2**30
"""Default of `memory_limit`: bytes of one store that may be held decoded in memory."""

ARRAY_METADATA = (".zarray", "zarr.json")
"""Files that make a folder an array, in versions 2 and 3."""

NO_STORE = "{} is not a zarr store in the replay-buffer layout"
REMEDY = "name another one, or copy or collect it again"

CACHE_LIMIT = 64 * 2**20
"""Bytes of decoded blocks kept for the streams that are too large to be held."""


def open_store(
    path: str | Path,
    spec: StreamSpec | None = None,
    *,
    memory_limit: int = MEMORY_LIMIT,
    fill_missing: bool = False,
) -> ZarrStore:
    """Open a store lazily: metadata and `episode_ends` are read and checked, no stream is.

    Args:
        path: folder or .zip, zarr v2 or v3.
        spec: what the streams mean; must equal the store's own spec where it has one, and is needed
            where it has none.
        memory_limit: streams are held decoded in memory, in the order of their first use, while
            they fit in this many bytes altogether; the others are read block by block with a cache
            of 64 MB.
        fill_missing: take a chunk file that is not there for one that its writer left out because
            it held only the fill value, as zarr v3 does by default. Otherwise reading it is an
            error: nothing tells it from a truncated copy.

    Raises:
        UserError: the path is missing or no such store, a stream is missing or contradicts the
            spec, the episode ends do not increase or disagree with the streams' lengths, or a codec
            is not installed.
    """
    return ZarrStore(Path(path), spec, memory_limit=memory_limit, fill_missing=fill_missing)


class ZarrStore(EpisodeStore):
    """See `open_store`; derived streams: latents float16 (T, c, h, w), tokens uint16 (T, h, w)."""

    def __init__(
        self, path: Path, spec: StreamSpec | None, *, memory_limit: int, fill_missing: bool
    ) -> None:
        self.path = path
        self.memory_limit, self.fill_missing = memory_limit, fill_missing
        self._given = spec
        self.refresh()

    def refresh(self) -> None:
        """Drop what is cached and read episodes and streams added to the disk since."""
        self._opened: tuple[int, zarr.Group] | None = None
        self._readers: dict[str, RowReader | FrameReader] = {}
        self._cache = BlockCache(CACHE_LIMIT)
        self._held = 0
        if not self.path.exists():
            raise UserError(
                f"There is no store at {self.path}; collect or import one, or correct the path."
            )
        with decoding(NO_STORE.format(self.path), REMEDY):
            self._files = ChunkFiles(self.path)
        group = self._group()
        with decoding(f"{self.path} cannot be opened"):
            self.native = SPEC_ATTRIBUTE in group.attrs
        self.spec = self._resolve_spec(group)
        ends = self._episode_ends()
        self.lengths = np.diff(ends, prepend=0)
        self.starts = ends - self.lengths
        for name in self.streams:
            self._check_stream(name, int(ends[-1]))

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes that are spawned, not forked, open the store anew.
        return {
            name: getattr(self, name) for name in ("path", "memory_limit", "fill_missing", "_given")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.refresh()

    @property
    def attrs(self) -> dict[str, Any]:
        """The store's own notes."""
        return {k: v for k, v in self._group().attrs.asdict().items() if k != SPEC_ATTRIBUTE}

    def read(
        self, episode: int, start: int, stop: int, streams: Sequence[str]
    ) -> dict[str, np.ndarray]:
        first = self._first_row(episode, start, stop)  # a slice decodes each chunk once
        return {name: self.reader(name).slice(first + start, first + stop) for name in streams}

    @property
    def content_streams(self) -> list[str]:
        # Derived streams say what they were made with; poses and time stamps have nothing to say.
        others = sorted(set(self._node("data").array_keys()) - set(self.streams))
        recorded = [n for n in others if "." not in n and not self._array(f"data/{n}").attrs]
        return [*self.streams, *recorded]

    def peek(self, stream: str, rows: np.ndarray) -> np.ndarray:
        reader = self._readers.get(stream)
        return (self._make_reader(stream) if reader is None else reader).rows(rows)

    def reader(self, stream: str) -> RowReader | FrameReader:
        if self._opened is None or self._opened[0] != os.getpid():
            self._readers = {
                name: reader for name, reader in self._readers.items() if reader.survives_fork
            }
        if stream not in self._readers:
            self._readers[stream] = reader = self._make_reader(stream)
            # Pictures that lie one a file are decoded as they are needed, by all processes.
            if isinstance(reader, RowReader) and self._held + reader.nbytes <= self.memory_limit:
                self._held += reader.nbytes
                reader.load()
        return self._readers[stream]

    def has(self, stream: str) -> bool:
        """Whether the store holds the stream, named by the spec or derived, for every step."""
        try:
            return self._array(f"data/{stream}").shape[0] >= int(self.lengths.sum())
        except KeyError:
            return False

    def info(self, name: str) -> np.ndarray:
        """One value per episode from `meta/<name>`: (E, ...); text as an object array of str."""
        try:
            array = self._array(f"meta/{name}")
            with decoding(f"'{name}' of the episodes of {self.path} is damaged"):
                values = np.asarray(array[: len(self)])
            return values.astype(object) if values.dtype.kind == "T" else values
        except KeyError:
            raise UserError(
                f"The store {self.path} has no '{name}' per episode; it has {self.info_names}."
            ) from None

    @property
    def stored_streams(self) -> list[str]:
        """All streams on disk, also those that the spec does not name."""
        with decoding(f"The group 'data' of {self.path} is damaged"):
            return sorted(self._node("data").array_keys())

    @property
    def info_names(self) -> list[str]:
        with decoding(f"The group 'meta' of {self.path} is damaged"):
            return sorted(set(self._node("meta").array_keys()) - {"episode_ends"})

    def tokenizer_hash(self, stream: str) -> str | None:
        """Tokenizer hash of a stream of latents or tokens that covers every step, or None."""
        try:
            array = self._array(f"data/{stream}")
        except KeyError:
            return None
        if array.shape[0] < int(self.lengths.sum()):
            return None
        tokenizer = array.attrs.get("tokenizer")  # any JSON, in a store of another make
        return tokenizer if isinstance(tokenizer, str) else None

    def bad_chunks(self, stream: str) -> tuple[list[str], list[str]]:
        """Names of the chunk files of the stream's steps that are (missing, too short)."""
        array, total = self._stream_array(stream), int(self.lengths.sum())
        with decoding(f"The chunks of stream '{stream}' in {self.path} cannot be read"):
            missing = missing_chunks(array, 0, total, self._files)
            return list(missing), list(damaged_chunks(array, 0, total, self._files))

    # --- opening ----------------------------------------------------------------------------------

    def _group(self) -> zarr.Group:
        # A zip is one file handle with one position: a forked process must not share it.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _open_group(self.path, self._files.top))
        return self._opened[1]

    def _node(self, name: str) -> zarr.Group:
        with decoding(f"The group '{name}' of {self.path} is damaged"):
            node = self._group().get(name)
        if not isinstance(node, zarr.Group):
            raise UserError(
                f"{self.path} is a zarr store without a group '{name}'; expected the "
                "replay-buffer layout."
            )
        return node

    def _array(self, name: str) -> zarr.Array:
        """Raises KeyError where there is none."""
        inside = f"{self._files.top}{name}"
        if not any(self._files.exists(f"{inside}/{file}") for file in ARRAY_METADATA):
            raise KeyError(name)
        with decoding(f"The metadata of '{name}' in {self.path} is damaged"):
            try:
                node = self._group()[name]
            except ValueError as error:
                node = self._array_with_image_codec(name, error)
            if not isinstance(node, zarr.Array):
                raise ValueError("no array")
            return node

    def _array_with_image_codec(self, name: str, cause: ValueError) -> object:
        """The array again, with the image codecs of UMI's files known to zarr."""
        try:
            from imagecodecs.numcodecs import register_codecs

            register_codecs()
            return self._group()[name]
        except (ImportError, ValueError):
            raise UserError(
                f"'{name}' of {self.path} cannot be opened ({in_short(cause)}); if it needs an "
                'image codec, run `pip install "foreact[jpegxl]"`.'
            ) from cause

    def _resolve_spec(self, group: zarr.Group) -> StreamSpec:
        if not self.native:
            if self._given is None:
                raise UserError(
                    f"The store {self.path} does not say what its streams mean; give the spec of "
                    "a task (--task)."
                )
            return self._given
        try:
            own = StreamSpec.from_json(group.attrs[SPEC_ATTRIBUTE])
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        if self._given is not None:
            own.require_equal(self._given, f"The store {self.path}", "the task")
        return own

    def _episode_ends(self) -> np.ndarray:
        for part in ("data", "meta"):
            self._node(part)
        try:
            array = self._array("meta/episode_ends")
            with decoding(f"meta/episode_ends of {self.path} is damaged"):
                # Before memory is asked for a length that may be a lie.
                if missing := next(missing_chunks(array, 0, array.shape[0], self._files), None):
                    raise ValueError(f"its chunk '{missing}' is not there")
                ends = np.asarray(array[:])
        except KeyError:
            raise UserError(
                f"{self.path} has no meta/episode_ends; expected the replay-buffer layout."
            ) from None
        if ends.ndim != 1 or not np.issubdtype(ends.dtype, np.integer):
            raise UserError(
                f"meta/episode_ends of {self.path} should be integers (E,), found {ends.dtype} "
                f"{ends.shape}."
            )
        ends = committed_ends(ends.astype(np.int64)) if self.native else ends.astype(np.int64)
        if len(ends) == 0:
            raise UserError(
                f"The store {self.path} holds no whole episode yet; collect or import some first."
            )
        if (steps := np.diff(ends, prepend=0)).min() <= 0:
            at = int(np.argmin(steps > 0))
            raise UserError(
                f"meta/episode_ends of {self.path} should increase, but entry {at} is {ends[at]} "
                f"after {ends[at - 1] if at else 0}; the store is damaged."
            )
        return ends

    def _check_stream(self, name: str, total: int) -> None:
        array = self._stream_array(name)
        camera = self.spec.cameras.get(name)
        expected = (*camera, 3) if camera is not None else (self._width(name),)
        kinds = "uf" if camera is not None else "iufb"
        # Of the unsigned integers, pixels may be uint8 only.
        pixels_fit = camera is None or array.dtype.kind == "f" or array.dtype == np.uint8
        if array.shape[1:] != expected or array.dtype.kind not in kinds or not pixels_fit:
            actual = f"{array.dtype} {tuple(array.shape)}"
            dtype = "uint8" if camera is not None else "float32"
            raise UserError(
                f"Stream '{name}' of {self.path} should be {dtype} (N, "
                f"{', '.join(map(str, expected))}) by the spec, found {actual}; use the task that "
                "this store was made for."
            )
        # Only our own writer, when killed, leaves rows after the last whole episode.
        if array.shape[0] < total or (array.shape[0] > total and not self.native):
            raise UserError(
                f"Stream '{name}' of {self.path} has {array.shape[0]} steps and meta/episode_ends "
                f"says {total}; the store is damaged or incomplete."
            )

    def _width(self, name: str) -> int:
        if name in self.spec.state:
            return len(self.spec.state[name])
        if name == "reward":
            return 1
        assert self.spec.action is not None
        return self.spec.action.dim

    def _stream_array(self, name: str) -> zarr.Array:
        try:
            return self._array(f"data/{name}")
        except KeyError:
            raise UserError(
                f"The store {self.path} has no stream '{name}'; it has {self.stored_streams}."
            ) from None

    def _make_reader(self, name: str) -> RowReader | FrameReader:
        array = self._stream_array(name)
        total = int(self.lengths.sum())
        if array.shape[0] < total:
            raise UserError(
                f"Stream '{name}' of {self.path} has {array.shape[0]} of {total} steps; let its "
                "making run to its end."
            )
        dtype, convert = array.dtype, lambda x: x
        if name in self.spec.cameras:
            label = f"Stream '{name}' of {self.path}"
            dtype, convert = np.dtype(np.uint8), lambda x: as_uint8(x, label)
            if has_frame_files(array) and not self.fill_missing:
                return FrameReader(
                    array, self.path, name, convert=convert, files=self._files, cache=self._cache
                )
        elif name in self.spec.state or name in ("action", "reward"):
            dtype, convert = np.dtype(np.float32), lambda x: x.astype(np.float32, copy=False)
        return RowReader(
            array,
            self.path,
            name,
            dtype=dtype,
            convert=convert,
            files=self._files,
            fill_missing=self.fill_missing,
            cache=self._cache,
        )


def as_uint8(images: np.ndarray, label: str) -> np.ndarray:
    """Images as stored (uint8, or floats in 0..255 as in the published PushT file) -> uint8.

    Raises:
        UserError: floats outside 0..255, NaN, or evidently in 0..1.
    """
    if images.dtype == np.uint8 or images.size == 0:
        return images
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 255.0) or (high <= 1.0 and (images != np.rint(images)).any()):
        raise UserError(
            f"{label} should hold images in 0..255, found values {low:g}..{high:g}; "
            "rescale the images."
        )
    return np.rint(images).astype(np.uint8)


def _open_group(path: Path, top: str) -> zarr.Group:
    """The store's group, which in some zips lies below one folder, `top`."""
    with decoding(NO_STORE.format(path), REMEDY):
        target = str(path) if path.is_dir() else ZipStore(path, mode="r")
        # Consolidated metadata would hide streams that were added after it was written.
        return zarr.open_group(
            target, path=top.rstrip("/") or None, mode="r", use_consolidated=False
        )
