"""Episodes as windows, evaluations and importers read them, whatever their format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from foreact.data.stores.findings import Finding
from foreact.errors import UserError
from foreact.types import StreamSpec


class Rows(Protocol):
    """Rows of one stream."""

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Rows by number: (*index.shape, *row shape)."""
        ...


class EpisodeStore(ABC):
    """Read access to episodes whose steps are consecutive rows of streams, opened lazily.

    A format brings the attributes below, `reader` and `has`, and overrides what else it knows. The
    action of step t is what was done after its frame was seen; the reward of step t came with its
    frame.

    Attributes:
        path: where it lies.
        spec: what its streams mean.
        native: whether it says itself what its streams mean.
        lengths: int64 (E,) steps of each episode.
        starts: int64 (E,) first row of each episode.
    """

    path: Path
    spec: StreamSpec
    native: bool
    lengths: np.ndarray
    starts: np.ndarray

    @abstractmethod
    def reader(self, stream: str) -> Rows:
        """The reader of one stream, held in memory from the first use on where it fits."""

    @abstractmethod
    def has(self, stream: str) -> bool:
        """Whether it holds the stream, named by the spec or derived, for every step."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        steps = int(self.lengths.sum())
        return f"{type(self).__name__}({self.label}, {len(self)} episodes, {steps} steps)"

    @property
    def label(self) -> str:
        """What messages call it."""
        return str(self.path)

    @property
    def streams(self) -> list[str]:
        """Streams that the spec names: cameras, states, action, reward."""
        spec = self.spec
        action = ["action"] if spec.action is not None else []
        reward = ["reward"] if spec.has_reward else []
        return [*spec.cameras, *spec.state, *action, *reward]

    @property
    def stored_streams(self) -> list[str]:
        """All streams that it holds, also those that the spec does not name."""
        return self.streams

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Its own notes."""
        return {}

    @property
    def info_names(self) -> list[str]:
        """What `info` knows."""
        return []

    def info(self, name: str) -> np.ndarray:
        """One value per episode, (E, ...)."""
        raise UserError(
            f"{self.label} has no '{name}' per episode; it has {self.info_names or 'nothing'}."
        )

    @property
    def names(self) -> list[str]:
        """One name per episode: its own, or its number."""
        if "name" in self.info_names:
            return self.info("name").tolist()
        return [str(episode) for episode in range(len(self))]

    def read(
        self, episode: int, start: int, stop: int, streams: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Steps start..stop of one episode.

        Returns:
            {stream: array}: uint8 (T, H, W, 3) for cameras, float32 (T, D) for states and action,
            float32 (T, 1) for "reward", derived streams as stored. Never normalised.

        Raises:
            UserError: no such episode, stream or steps, or a damaged store.
        """
        rows = np.arange(start, stop) + self._first_row(episode, start, stop)
        return {name: self.gather(name, rows) for name in streams}

    def gather(self, stream: str, rows: np.ndarray) -> np.ndarray:
        """Rows of the whole stream, counted over all episodes: (*rows.shape, *row shape).

        The fast way to batches.
        """
        return self.reader(stream).rows(rows)

    @property
    def content_streams(self) -> list[str]:
        """Streams that were recorded, not computed from others: what tells it from other data."""
        return self.streams

    def peek(self, stream: str, rows: np.ndarray) -> np.ndarray:
        """As `gather`, for a few rows: nothing is held in memory for it."""
        return self.gather(stream, rows)

    def all_rows(self, stream: str) -> np.ndarray:
        """The whole stream (N, ...), for streams of numbers."""
        return self.gather(stream, np.arange(int(self.lengths.sum())))

    def where(self, row: int) -> str:
        """Which step of which episode a row is, for messages."""
        episode = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"step {row - self.starts[episode]} of '{self.names[episode]}' in {self.label}"

    @property
    def instructions(self) -> list[str]:
        """The distinct instructions, in the order of their first use.

        Raises:
            UserError: the episodes carry none.
        """
        return list(dict.fromkeys(self.info("text").tolist()))

    def instruction_of(self, rows: np.ndarray) -> np.ndarray:
        """Which of `instructions` each row of the whole stream follows: int64, as `rows`."""
        numbers = {text: number for number, text in enumerate(self.instructions)}
        per_episode = np.array([numbers[text] for text in self.info("text").tolist()], np.int64)
        return per_episode[np.searchsorted(self.starts, rows, side="right") - 1]

    def findings(self) -> list[Finding]:
        """What is wrong, or worth knowing, in ways that only its format knows; read in full."""
        return []

    def tokenizer_hash(self, stream: str) -> str | None:
        """Hash of the tokenizer that a stream of latents or tokens was made with, if it says so."""
        return None

    def bad_chunks(self, stream: str) -> tuple[list[str], list[str]]:
        """Parts on disk that the stream's steps need and that are (missing, too short)."""
        return [], []

    def _first_row(self, episode: int, start: int, stop: int) -> int:
        """Row of an episode's first step; a `UserError` where steps start..stop are not there."""
        if not 0 <= episode < len(self):
            raise UserError(
                f"{self.label} has episodes 0..{len(self) - 1}; {episode} was asked for."
            )
        if not 0 <= start <= stop <= (length := int(self.lengths[episode])):
            raise UserError(
                f"Episode {episode} of {self.label} has steps 0..{length}; steps {start}..{stop} "
                "were asked for."
            )
        return int(self.starts[episode])
