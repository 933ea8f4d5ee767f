"""What a policy remembers of the episodes it acts in. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.types import Observation


def generator_for(*key: int) -> torch.Generator:
    """A generator seeded by the whole key, such as (episode seed, step)."""
    # SeedSequence decorrelates neighbouring seeds and steps; it takes no negative words.
    words = [k % 2**64 for k in key]
    (seed,) = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed) >> 1)  # torch takes signed 64-bit seeds


@dataclass
class Episode:
    """One episode; policies add what they keep of it.

    Attributes:
        seed: seed of the episode.
        step: number of the newest observation, -1 before the first.
    """

    seed: int
    step: int = -1


E = TypeVar("E", bound=Episode)


class Memory(Generic[E]):
    """History of a policy's episodes, numbered in the order of seeds; see `foreact.types.Policy`.

    Args:
        begin: an episode of that seed, of which nothing has been seen.
    """

    def __init__(self, begin: Callable[[int], E]) -> None:
        self._begin = begin
        self._episodes: list[E] = []

    def reset(self, seeds: Sequence[int]) -> None:
        """Forget all, and begin one episode per seed."""
        self._episodes = [self._begin(int(seed)) for seed in seeds]

    def episodes(self, ids: Sequence[int] | None) -> list[E]:
        """Those of the given numbers; None: all."""
        if not self._episodes:
            raise ValueError("No episode runs; call reset(seeds) first.")
        return self._episodes if ids is None else [self._episodes[i] for i in ids]

    def now(self, ids: Sequence[int] | None) -> tuple[list[E], int]:
        """Those episodes and the step that all of them have reached."""
        episodes = self.episodes(ids)
        steps = {episode.step for episode in episodes}
        if len(steps) != 1 or -1 in steps:
            raise ValueError(
                "act plans for episodes observed up to one and the same step; these are at "
                f"{sorted(steps)}."
            )
        return episodes, steps.pop()


def pictures_of(
    obs: Observation, camera: str, rows: int, size: tuple[int, int] | None
) -> np.ndarray:
    """The pictures that a policy watches, one per running episode.

    Args:
        obs: what was seen.
        camera: which camera.
        rows: running episodes, B.
        size: (height, width) of training; None takes any.

    Returns:
        uint8 (B, H, W, 3).

    Raises:
        UserError: the camera is missing, or shows something else.
    """
    frames = obs.cameras.get(camera)
    if frames is None:
        raise UserError(
            f"The policy watches camera '{camera}'; the observation has {sorted(obs.cameras)}."
        )
    fits = (
        frames.dtype == np.uint8
        and frames.ndim == 4
        and frames.shape[::3] == (rows, 3)
        and frames.size > 0
    )
    if not fits or (size is not None and frames.shape[1:3] != tuple(size)):
        expected = f"({rows}, {'H, W' if size is None else f'{size[0]}, {size[1]}'}, 3)"
        raise UserError(
            f"Camera '{camera}' should be uint8 {expected}, found {frames.dtype} {frames.shape}; "
            "give one RGB picture per running "
            f"episode{'' if size is None else ', as large as in training'}."
        )
    return frames


@dataclass
class History(Episode):
    """An episode whose recent frames, states and actions are kept.

    Attributes:
        frames: step -> {camera: uint8 (H, W, 3)}, the newest `reach + 1` steps.
        states: step -> {stream: (S,)}, of the same steps.
        latents: step -> {camera: (c, h, w)}, for those frames that were asked for.
        actions: step -> (A,), as played, where the policy notes them.
        text: the instruction, or None.
    """

    frames: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    states: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    latents: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    actions: dict[int, np.ndarray] = field(default_factory=dict)
    text: str | None = None

    def add(
        self, frames: Mapping[str, np.ndarray], states: Mapping[str, np.ndarray], reach: int
    ) -> None:
        self.step += 1
        # Copies: environments may reuse the array in which they draw.
        self.frames[self.step] = {
            name: np.array(frame, dtype=np.uint8) for name, frame in frames.items()
        }
        self.states[self.step] = {
            name: np.array(values, np.float32) for name, values in states.items()
        }
        for by_step in (self.frames, self.states, self.latents, self.actions):
            by_step.pop(self.step - reach - 1, None)

    def steps(self, offsets: Sequence[int]) -> list[int]:
        """Steps at `offsets` (each <= 0) from now, clamped to the episode's first frame."""
        return [max(self.step + offset, 0) for offset in offsets]
