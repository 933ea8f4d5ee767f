"""Which steps make one sample: offsets from an anchor, and how far they may leave the episode.

    offsets   -12  -8  -4   0 |  4   8  12  16         frames, for example
                          anchor
    actions                   0 1 2 ... 15             actions from the anchor on

Steps outside the episode repeat its first or last step and are marked in a mask; nothing else says
so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from foreact.errors import UserError

Offsets = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of the batch: where it goes, which stream it comes from and at which offsets.

    Attributes:
        kind: field of `Batch`: "video", "latents", "tokens", "state", "actions", "past_actions" or
            "rewards"; or any field that `compute` makes.
        name: key in `Batch.valid` and, for the first four kinds, in that field.
        stream: stream of the store.
        offsets: steps relative to the anchor.
        compute: the stream's rows (B, T, ...) -> the tensor (B, ...), such as plans from poses;
            None where the rows are taken as they are.
    """

    kind: str
    name: str
    stream: str
    offsets: Offsets
    compute: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """The steps of one sample, relative to an anchor step; mirrors `foreact.types.Batch`.

    Attributes:
        video, latents, tokens: camera -> offsets.
        actions, past_actions, rewards: offsets; empty for none.
        state: stream -> offsets.
        text: whether a sample has the features of the instruction that its anchor step follows.
        computed: entries that are computed from their stream's rows.
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
    text: bool = False
    computed: tuple[Entry, ...] = ()
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
        return [*result, *self.computed]

    @property
    def bounds(self) -> tuple[int, int]:
        """First and last offset of the span."""
        if self.span is not None:
            return self.span
        offsets = [o for entry in self.entries for o in entry.offsets]
        return min(offsets), max(offsets)

    def leaves(self, offsets: Offsets) -> bool:
        """Whether a step at one of these offsets may lie outside the episode."""
        first, last = self.bounds
        return min(offsets) < first + self.pad_before or max(offsets) > last - self.pad_after

    def anchors(self, length: int, start: int = 0, stop: int | None = None) -> range:
        """Anchors in an episode of `length` steps; empty where the window does not fit.

        Args:
            length: steps of the episode.
            start, stop: the run of steps that the span may touch; the whole episode by default.
                Padding reaches beyond the episode's ends only, never out of a run inside it.
        """
        stop = length if stop is None else stop
        first, last = self.bounds
        most = last - first  # one step of the span lies inside, at least
        before = min(self.pad_before, most) if start == 0 else 0
        after = min(self.pad_after, most) if stop == length else 0
        begin, end = start - first - before, stop - last + after
        return range(begin, max(begin, end))


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
