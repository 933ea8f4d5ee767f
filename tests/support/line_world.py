"""A world whose occupancy is known: every step of every episode is a
state of its own, with its own code and reward.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreact.types import StreamSpec
from support.arrays import ArrayStore

CAMERA = "pixels"


class LineStore(ArrayStore):
    """Episodes of `length` steps in memory: one code per frame, which names its row; any reward."""

    path = Path("line")

    def __init__(self, episodes: int, length: int, *, rewards: bool = True) -> None:
        n = episodes * length
        draw = np.random.default_rng(0)
        level = np.linspace(0, 3, episodes).repeat(length)
        smooth = np.sin(np.arange(n) / 5) + 0.1 * draw.normal(size=n)
        streams = {
            "reward": (level + smooth).astype(np.float32)[:, None],
            f"tokens_{CAMERA}": np.arange(n, dtype=np.uint16)[:, None, None],
            CAMERA: np.tile(np.arange(n, dtype=np.uint8)[:, None, None, None], (1, 2, 2, 3)),
        }
        spec = StreamSpec(cameras={CAMERA: (2, 2)}, fps=10.0, has_reward=rewards)
        super().__init__(spec, [length] * episodes, streams)

    @property
    def info_names(self) -> list[str]:
        return ["grade"]

    def info(self, name: str) -> np.ndarray:
        return np.array(["poor", "good"], object)[np.arange(len(self)) * 2 // len(self)]


class PerfectModel:
    """Knows the occupancy of a `LineStore` and the rewards of its
    states; as in it, the last state repeats for ever.
    """

    def __init__(self, store: LineStore, frames: int) -> None:
        self.frames, self.length = frames, int(store.lengths[0])
        self.rewards = torch.from_numpy(store.arrays["reward"][:, 0])

    def sample(
        self,
        context: Tensor,
        *,
        samples: int = 1,
        gamma: float | None = None,
        actions: Any = None,
        rng: Any,
    ) -> Tensor:
        assert gamma is not None
        uniform = torch.rand(len(context), samples, generator=rng, dtype=torch.float64)
        delay = 1 + (uniform.log() / math.log(gamma)).floor().long()
        return self.stack(
            context[:, -1, 0, 0][:, None] + delay, context[:, -1, 0, 0][:, None] // self.length
        )

    def stack(self, row: Tensor, episode: Tensor) -> Tensor:
        """The stacks (..., T, 1, 1) that end at rows (...) of the given episodes."""
        first, last = episode * self.length, (episode + 1) * self.length - 1
        rows = torch.minimum(row, last)[..., None] + torch.arange(1 - self.frames, 1)
        return torch.maximum(rows, first[..., None])[..., None, None]

    def predicted_reward(self, tokens: Tensor) -> Tensor:
        return self.rewards[tokens[..., -1, 0, 0]]

    def future_logits(
        self, context: Tensor, future: Tensor, *, gamma: float | None = None, actions: Any = None
    ) -> Tensor:
        """The last frame decides all: it has the probability of its
        delay, and the frames before it have 1.
        """
        assert gamma is not None
        logits = torch.full(
            (len(context), self.frames, len(self.rewards)), -math.inf, dtype=torch.float64
        )
        delay = future[:, -1, 0, 0] - context[:, -1, 0, 0]
        rest = torch.arange(len(self.rewards)) - context[:, -1]  # (B, 1, V) by broadcasting
        rest = rest.flatten(1).double()
        logits[:, -1] = torch.where(
            rest > 0, (rest - 1) * math.log(gamma) + math.log(1 - gamma), -math.inf
        )
        assert (delay > 0).all()
        for frame in range(self.frames - 1):
            logits[torch.arange(len(future)), frame, future[:, frame, 0, 0]] = 0.0
        return logits
