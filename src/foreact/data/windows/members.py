"""A data set as a member of a mixture: with an instruction of its own, and mirrors made black."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from foreact.data.stores.episodes import EpisodeStore, Rows
from foreact.data.stores.findings import Finding
from foreact.data.windows.mirror import blacken


class MemberStore(EpisodeStore):
    """A store whose episodes all follow one instruction, or whose pictures have black mirrors.

    What is computed from its frames, such as latents, is kept apart from what is computed from the
    frames as they are recorded, since the content differs.

    Args:
        store: the recordings.
        instruction: of every episode; None: what the store says itself, if anything.
        mirror_mask: whether to blacken the mirrors of UMI's gripper, see `mirror`.
    """

    def __init__(
        self, store: EpisodeStore, *, instruction: str | None = None, mirror_mask: bool = False
    ) -> None:
        self.store, self.path, self.native = store, store.path, store.native
        self.lengths, self.starts = store.lengths, store.starts
        self.instruction, self.mirror_mask = instruction, mirror_mask
        has_text = store.spec.has_text or instruction is not None
        self.spec = dataclasses.replace(store.spec, has_text=has_text)

    def reader(self, stream: str) -> Rows:
        reader = self.store.reader(stream)
        return _Masked(reader) if self._is_masked(stream) else reader

    def peek(self, stream: str, rows: np.ndarray) -> np.ndarray:
        values = self.store.peek(stream, rows)
        return blacken(values) if self._is_masked(stream) else values

    def has(self, stream: str) -> bool:
        # Latents beside the store may be of frames with mirrors.
        return self.store.has(stream) and (not self.mirror_mask or stream in self.store.streams)

    def tokenizer_hash(self, stream: str) -> str | None:
        return self.store.tokenizer_hash(stream) if self.has(stream) else None

    @property
    def content_streams(self) -> list[str]:
        return self.store.content_streams

    @property
    def label(self) -> str:
        return self.store.label

    @property
    def attrs(self) -> Mapping[str, Any]:
        return self.store.attrs

    @property
    def info_names(self) -> list[str]:
        own = {"text"} if self.instruction is not None else set()
        return sorted({*self.store.info_names, *own})

    def info(self, name: str) -> np.ndarray:
        if name == "text" and self.instruction is not None:
            return np.full(len(self), self.instruction, object)
        return self.store.info(name)

    def findings(self) -> list[Finding]:
        return self.store.findings()

    def bad_chunks(self, stream: str) -> tuple[list[str], list[str]]:
        return self.store.bad_chunks(stream)

    def _is_masked(self, stream: str) -> bool:
        return self.mirror_mask and stream in self.spec.cameras


class _Masked:
    def __init__(self, reader: Rows) -> None:
        self._reader = reader

    def rows(self, index: np.ndarray) -> np.ndarray:
        return blacken(self._reader.rows(index))
