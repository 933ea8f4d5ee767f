"""Streams derived from a data set that is not written to: they lie in a cache folder beside it.

A zip, HDF5 shards, a folder on a read-only disk and another project's store are left as they are.
What is computed from their frames, such as latents, goes into a store of its own that has no
streams but derived ones, in a folder named after the content of the data.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foreact.data.stores.episodes import EpisodeStore, Rows
from foreact.data.stores.findings import Finding
from foreact.data.stores.fingerprint import fingerprint
from foreact.data.stores.layout import create_store, get_array, open_for_writing
from foreact.data.stores.store import ZarrStore, open_store
from foreact.errors import UserError, in_short
from foreact.types import StreamSpec


def cache_folder() -> Path:
    """Where derived streams are kept: $FOREACT_CACHE, else foreact in the user's cache folder."""
    if own := os.environ.get("FOREACT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "foreact"


def accompanied(store: EpisodeStore) -> EpisodeStore:
    """The store itself where streams may be added to it, else with the companion that gets them."""
    ours = isinstance(store, ZarrStore) and store.native and store.path.is_dir()
    return store if ours and os.access(store.path / "data", os.W_OK) else AccompaniedStore(store)


class AccompaniedStore(EpisodeStore):
    """A store, and the streams derived from it in its companion.

    Args:
        store: the data, which are only read.

    Attributes:
        companion: folder of the companion, whether it is there yet or not.
    """

    def __init__(self, store: EpisodeStore) -> None:
        self.store, self.path, self.spec, self.native = store, store.path, store.spec, store.native
        self.lengths, self.starts = store.lengths, store.starts
        # The size on disk changes with any frame; a copy elsewhere keeps it.
        name = f"{fingerprint(store).digest}-{_size_on_disk(store.path)}.zarr"
        self.companion = cache_folder() / "streams" / name
        self._derived = self._open_companion()

    def make_companion(self) -> Path:
        """The companion's folder, made where it is missing.

        Raises:
            UserError: the disk refuses.
        """
        was_there = self.companion.is_dir()
        self._derived = self._open_companion()  # another process may have made it since
        if self._derived is None:
            if was_there:  # damaged: it appears by a rename, whole
                shutil.rmtree(self.companion, ignore_errors=True)
            draft = self.companion.with_name(f".{self.companion.stem}.{os.getpid()}")
            try:
                self.companion.parent.mkdir(parents=True, exist_ok=True)
                create_store(draft, StreamSpec(cameras={}, fps=self.spec.fps), {})
                ends = get_array(open_for_writing(draft), "meta/episode_ends")
                ends.resize((len(self.lengths),))
                ends[:] = np.cumsum(self.lengths)
                os.rename(draft, self.companion)
            except (OSError, UserError) as error:
                if not self.companion.is_dir():  # else another process was first
                    raise UserError(
                        f"What is computed from {self.label} cannot be kept in {self.companion} "
                        f"({in_short(error)}); name another folder with the variable FOREACT_CACHE."
                    ) from None
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return self.companion

    def _open_companion(self) -> ZarrStore | None:
        """The companion; None where there is none, or a damaged one, which is made anew."""
        try:
            companion = open_store(self.companion) if self.companion.is_dir() else None
        except UserError:
            return None
        fits = companion is not None and np.array_equal(companion.lengths, self.lengths)
        return companion if fits else None

    def refresh(self) -> None:
        """See the streams that were added to the companion since."""
        self._derived = open_store(self.companion)

    def reader(self, stream: str) -> Rows:
        if self._derived is not None and self._derived.has(stream):
            return self._derived.reader(stream)
        return self.store.reader(stream)

    def has(self, stream: str) -> bool:
        return self.store.has(stream) or (self._derived is not None and self._derived.has(stream))

    def tokenizer_hash(self, stream: str) -> str | None:
        if self._derived is not None and self._derived.has(stream):
            return self._derived.tokenizer_hash(stream)
        return self.store.tokenizer_hash(stream)

    def bad_chunks(self, stream: str) -> tuple[list[str], list[str]]:
        if self._derived is not None and self._derived.has(stream):
            return self._derived.bad_chunks(stream)
        return self.store.bad_chunks(stream)

    @property
    def content_streams(self) -> list[str]:
        return self.store.content_streams

    def peek(self, stream: str, rows: np.ndarray) -> np.ndarray:
        return self.store.peek(stream, rows)

    @property
    def label(self) -> str:
        return self.store.label

    @property
    def streams(self) -> list[str]:
        return self.store.streams

    @property
    def attrs(self) -> Mapping[str, Any]:
        return self.store.attrs

    @property
    def info_names(self) -> list[str]:
        return self.store.info_names

    def info(self, name: str) -> np.ndarray:
        return self.store.info(name)

    @property
    def instructions(self) -> list[str]:
        return self.store.instructions

    def instruction_of(self, rows: np.ndarray) -> np.ndarray:
        return self.store.instruction_of(rows)

    def findings(self) -> list[Finding]:
        return self.store.findings()


def _size_on_disk(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
