"""Which steps make one sample: offsets from an anchor, and how far they may leave the episode.

    offsets   -12  -8  -4   0 |  4   8  12  16         frames, for example
                          anchor
    actions                   0 1 2 ... 15             actions from the anchor on

Steps outside the episode repeat its first or last step and are marked in a mask; nothing else says
so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from foreact.errors import UserError

Offsets = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of the batch: where it goes, which stream it comes from and at which offsets.

    Attributes:
        kind: field of `Batch`: "video", "latents", "tokens", "state", "actions", "past_actions" or
            "rewards".
        name: key in `Batch.valid` and, for the first four kinds, in that field.
        stream: stream of the store.
        offsets: steps relative to the anchor.
    """

    kind: str
    name: str
    stream: str
    offsets: Offsets


@dataclass(frozen=True, kw_only=True)
class Window:
    """The steps of one sample, relative to an anchor step; mirrors `foreact.types.Batch`.

    Attributes:
        video, latents, tokens: camera -> offsets.
        actions, past_actions, rewards: offsets; empty for none.
        state: stream -> offsets.
        span: first and last offset that decide where anchors may lie; by default the least and
            greatest of all offsets.
        pad_before, pad_after: how many steps the span may reach beyond the episode's ends. The span
            always touches the episode, however large these are.
    """

    video: Mapping[str, Offsets] = field(default_factory=dict)
    latents: Mapping[str, Offsets] = field(default_factory=dict)
    tokens: Mapping[str, Offsets] = field(default_factory=dict)
    actions: Offsets = ()
    past_actions: Offsets = ()
    rewards: Offsets = ()
    state: Mapping[str, Offsets] = field(default_factory=dict)
    span: tuple[int, int] | None = None
    pad_before: int = 0
    pad_after: int = 0

    def __post_init__(self) -> None:
        if self.pad_before < 0 or self.pad_after < 0:
            raise UserError(
                f"A window's padding should be >= 0, found {self.pad_before} and {self.pad_after}."
            )
        if self.span is not None and self.span[0] > self.span[1]:
            raise UserError(
                f"A window's span should be (first, last) with first <= last, found {self.span}."
            )
        if self.span is None and not any(entry.offsets for entry in self.entries):
            raise UserError("A window needs at least one offset.")
        frames: dict[str, Offsets] = {}
        for entry in self.entries:
            if not entry.offsets:
                raise UserError(
                    f"The window names '{entry.stream}' without any offset; leave it "
                    "out or give offsets."
                )
            if frames.setdefault(entry.name, entry.offsets) != entry.offsets:
                raise UserError(
                    f"The window takes '{entry.name}' at {frames[entry.name]} and at "
                    f"{entry.offsets}; one mask serves both, so give the same offsets."
                )

    @property
    def entries(self) -> list[Entry]:
        """Every tensor that the window yields."""
        result = [Entry(kind="video", name=c, stream=c, offsets=o) for c, o in self.video.items()]
        for kind in ("latents", "tokens"):
            cameras: Mapping[str, Offsets] = getattr(self, kind)
            result += [
                Entry(kind=kind, name=c, stream=f"{kind}_{c}", offsets=o)
                for c, o in cameras.items()
            ]
        result += [Entry(kind="state", name=s, stream=s, offsets=o) for s, o in self.state.items()]
        if self.actions:
            result.append(
                Entry(kind="actions", name="action", stream="action", offsets=self.actions)
            )
        if self.past_actions:
            result.append(
                Entry(
                    kind="past_actions",
                    name="past_action",
                    stream="action",
                    offsets=self.past_actions,
                )
            )
        if self.rewards:
            result.append(
                Entry(kind="rewards", name="reward", stream="reward", offsets=self.rewards)
            )
        return result

    @property
    def bounds(self) -> tuple[int, int]:
        """First and last offset of the span."""
        if self.span is not None:
            return self.span
        offsets = [o for entry in self.entries for o in entry.offsets]
        return min(offsets), max(offsets)

    def anchors(self, length: int) -> range:
        """Anchors of an episode of `length` steps; empty where the episode is too short."""
        first, last = self.bounds
        most = last - first  # one step of the span lies inside, at least
        start = -first - min(self.pad_before, most)
        stop = length - last + min(self.pad_after, most)
        return range(start, max(start, stop))

    def all_anchors(self, lengths: Sequence[int] | np.ndarray, episodes: np.ndarray) -> np.ndarray:
        """Every window of the chosen episodes, in order: int64 (N, 2), episode and anchor.

        Raises:
            UserError: there is none.
        """
        ranges = [self.anchors(int(lengths[episode])) for episode in episodes]
        counts = np.array([len(r) for r in ranges], dtype=np.int64)
        if counts.sum() == 0:
            first, last = self.bounds
            chosen = [int(lengths[e]) for e in episodes]
            found = "no episode at all"
            if chosen:
                found = f"{len(chosen)} episodes of {min(chosen)} to {max(chosen)} steps"
            raise UserError(
                f"A window spans {last - first + 1} steps and may reach {self.pad_before} before "
                f"and {self.pad_after} after an episode; none fits into {found}: collect longer "
                "episodes or shorten the window."
            )
        anchors = np.concatenate([np.arange(r.start, r.stop, dtype=np.int64) for r in ranges])
        return np.stack([np.repeat(np.asarray(episodes, np.int64), counts), anchors], axis=1)


def place(
    offsets: Sequence[int], anchor: np.ndarray | int, length: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray]:
    """Where a window's steps lie in an episode.

    Args:
        offsets: (T,) relative to the anchor.
        anchor, length: anchor step and number of steps of the episode, numbers or arrays of one
            shape (...).

    Returns:
        Steps int64 (..., T), those outside moved to the nearest end, and a mask bool (..., T), True
        inside.
    """
    steps = np.asarray(anchor, np.int64)[..., None] + np.asarray(offsets, np.int64)
    last = np.asarray(length, np.int64)[..., None] - 1
    inside = (steps >= 0) & (steps <= last)
    return np.clip(steps, 0, last), inside
