"""What tells one data set from another: its content, wherever it lies and whatever it is called."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreact.data.stores.episodes import EpisodeStore
from foreact.errors import UserError

ROWS = 32
"""Rows of each stream that are looked at, spread evenly from first to last."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Sizes of a store, and digests of its episodes' ends and of some rows of each stream.

    Attributes:
        episodes, steps: how many.
        fps: steps per second.
        digests: "ends" and stream -> 16 hex digits.
    """

    episodes: int
    steps: int
    fps: float
    digests: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"digests": dict(self.digests)}

    @classmethod
    def from_json(cls, raw: Any, where: str) -> Fingerprint:
        """Read back `to_json`; `where` names the file in errors."""
        try:
            digests = {str(name): str(digest) for name, digest in raw["digests"].items()}
            return cls(
                episodes=int(raw["episodes"]),
                steps=int(raw["steps"]),
                fps=float(raw["fps"]),
                digests=digests,
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            raise UserError(
                f"{where} should hold a data set's episodes, steps and digests, found {raw!r:.80}."
            ) from None

    @property
    def digest(self) -> str:
        """All of it in 16 hex digits."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def difference(self, other: Fingerprint) -> str | None:
        """What differs first, in words; None where nothing does."""
        for name, words in (("episodes", "episodes"), ("steps", "steps"), ("fps", "Hz")):
            if (own := getattr(self, name)) != (its := getattr(other, name)):
                return f"{its} {words} instead of {own}"
        for name in sorted({*self.digests, *other.digests}):
            if self.digests.get(name) != other.digests.get(name):
                what = "the lengths of the episodes" if name == "ends" else f"rows of '{name}'"
                return f"{what} differ"
        return None


def fingerprint(store: EpisodeStore, episodes: int | None = None) -> Fingerprint:
    """The fingerprint of a store, or of its first `episodes`, as it was before it grew."""
    lengths = store.lengths[:episodes]
    steps = int(lengths.sum())
    chosen = np.unique(np.linspace(0, steps - 1, min(ROWS, steps)).round().astype(np.int64))
    digests = {"ends": _digest(np.cumsum(lengths, dtype=np.int64))}
    for stream in store.content_streams:
        digests[stream] = _digest(store.peek(stream, chosen))
    return Fingerprint(
        episodes=len(lengths), steps=steps, fps=float(store.spec.fps), digests=digests
    )


def _digest(rows: np.ndarray) -> str:
    rows = np.ascontiguousarray(rows)
    kind = f"{rows.dtype.str} {rows.shape}".encode()
    return hashlib.sha256(kind + rows.tobytes()).hexdigest()[:16]
