"""What a model would have seen at moments of recorded episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from foreact.data.stores.episodes import EpisodeStore
from foreact.types import Seen


class Watcher(Protocol):
    """A model that says what it looks at; all offsets are steps from now, 0 or less."""

    @property
    def cameras(self) -> Sequence[str]: ...

    @property
    def offsets(self) -> Sequence[int]:
        """Of the frames."""
        ...

    @property
    def state_offsets(self) -> Sequence[int]:
        """Of the states; empty: it reads none."""
        ...

    @property
    def past_offsets(self) -> Sequence[int]:
        """Of the actions taken before; empty: it reads none."""
        ...

    @property
    def reads_text(self) -> bool:
        """Whether it is told what to do."""
        ...


def read_seen(model: Watcher, store: EpisodeStore, moments: Sequence[tuple[int, int]]) -> Seen:
    """What the model would have seen at (episode, step) moments of a store.

    Steps before an episode show its first one; actions before it are NaN.
    """
    episodes, now = np.array(moments, np.int64).reshape(-1, 2).T
    first = store.starts[episodes][:, None]

    def rows(offsets: Sequence[int]) -> np.ndarray:
        return first + np.maximum(now[:, None] + np.array(offsets), 0)

    past_actions, text = None, None
    if model.past_offsets:
        before = now[:, None] + np.array(model.past_offsets) < 0
        past_actions = store.gather("action", rows(model.past_offsets)).astype(np.float32)
        past_actions = np.where(before[..., None], np.float32(np.nan), past_actions)
    if model.reads_text:
        instructions = store.instructions
        text = [instructions[i] for i in store.instruction_of(rows([0])[:, 0])]
    return Seen(
        frames={camera: store.gather(camera, rows(model.offsets)) for camera in model.cameras},
        state={
            stream: store.gather(stream, rows(model.state_offsets))
            for stream in (store.spec.state if model.state_offsets else ())
        },
        past_actions=past_actions,
        text=text,
    )
