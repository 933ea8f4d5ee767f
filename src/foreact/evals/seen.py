"""What a model would have seen at moments of recorded episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.windows.hand_poses import HandPoses
from foreact.types import Seen

Moments = Sequence[tuple[int, int]]
"""Episode and step of each."""


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


class Recordings:
    """Recorded episodes as a policy counts them, by (episode, step) moments.

    Args:
        store: the episodes.
        hands: where states and actions are computed from recorded poses: whose, and how many
            recorded steps make one of the policy; None: they are stored.
    """

    def __init__(self, store: EpisodeStore, hands: HandPoses | None = None) -> None:
        self.store, self.hands = store, hands
        self.stride = 1 if hands is None else hands.stride
        self.lengths = -(-store.lengths // self.stride)

    def frames(self, camera: str, moments: Moments, offsets: Sequence[int]) -> np.ndarray:
        """uint8 (B, T, H, W, 3)."""
        return self.store.gather(camera, self._rows(moments, offsets))

    def states(self, moments: Moments, offsets: Sequence[int]) -> dict[str, np.ndarray]:
        """stream -> float32 (B, T, S), of all streams."""
        if self.hands is None:
            rows = self._rows(moments, offsets)
            return {stream: self.store.gather(stream, rows) for stream in self.store.spec.state}
        now = self._rows(moments, [0])[:, 0]
        names = [hand.start for hand in self.hands.hands if hand.start is not None]
        starts = {name: self.store.gather(name, now).astype(np.float64) for name in names}
        found = self.hands.states(self._poses(moments, [*offsets, 0]), starts=starts)
        return {name: values[:, :-1].astype(np.float32) for name, values in found.items()}

    def actions(self, moments: Moments, offsets: Sequence[int]) -> np.ndarray:
        """float32 (B, T, A)."""
        if self.hands is None:
            return self.store.gather("action", self._rows(moments, offsets)).astype(np.float32)
        poses = self._poses(moments, [*offsets, 0])
        ahead = {name: values[:, :-1] for name, values in poses.items()}
        now = {name: values[:, -1] for name, values in poses.items()}
        return self.hands.actions(ahead, now).astype(np.float32)

    def instructions(self, moments: Moments) -> list[str]:
        """What is to be done at each moment."""
        known = self.store.instructions
        return [known[i] for i in self.store.instruction_of(self._rows(moments, [0])[:, 0])]

    def _rows(self, moments: Moments, offsets: Sequence[int]) -> np.ndarray:
        """Rows of the store, int64 (B, T); steps outside of an episode are its first or last."""
        episodes, now = np.array(moments, np.int64).reshape(-1, 2).T
        steps = self.stride * (now[:, None] + np.array(offsets, np.int64))
        last = self.store.lengths[episodes][:, None] - 1
        return self.store.starts[episodes][:, None] + np.clip(steps, 0, last)

    def _poses(self, moments: Moments, offsets: Sequence[int]) -> dict[str, np.ndarray]:
        assert self.hands is not None
        rows, hands = self._rows(moments, offsets), self.hands.hands
        streams = [name for hand in hands for name in (hand.position, hand.rotation, hand.gripper)]
        return {name: self.store.gather(name, rows).astype(np.float64) for name in streams}


def read_seen(model: Watcher, recordings: Recordings, moments: Moments) -> Seen:
    """What the model would have seen at moments of recorded episodes.

    Steps before an episode show its first one; actions before it are NaN.
    """
    past_actions = None
    if model.past_offsets:
        now = np.array(moments, np.int64).reshape(-1, 2)[:, 1]
        before = now[:, None] + np.array(model.past_offsets) < 0
        past_actions = recordings.actions(moments, model.past_offsets)
        past_actions = np.where(before[..., None], np.float32(np.nan), past_actions)
    return Seen(
        frames={c: recordings.frames(c, moments, model.offsets) for c in model.cameras},
        state=recordings.states(moments, model.state_offsets) if model.state_offsets else {},
        past_actions=past_actions,
        text=recordings.instructions(moments) if model.reads_text else None,
    )
