"""What a policy remembers of the episodes it acts in: recent frames, states and latents. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def generator_for(*key: int) -> torch.Generator:
    """A generator that depends on the whole key, such as (episode seed, step), and on nothing else."""
    # SeedSequence mixes, so that neighbouring seeds and steps give unrelated draws, and takes no negative words.
    words = [k % 2**64 for k in key]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))


@dataclass
class History:
    """The recent past of one episode.

    Attributes:
        seed: seed of the episode.
        step: number of the newest observation, -1 before the first.
        frames: step -> uint8 (H, W, 3), the newest `reach + 1` steps.
        states: step -> {stream: (S,)}, of the same steps.
        latents: step -> (c, h, w), for those frames that were asked for.
    """

    seed: int
    step: int = -1
    frames: dict[int, np.ndarray] = field(default_factory=dict)
    states: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    latents: dict[int, Tensor] = field(default_factory=dict)

    def add(self, frame: np.ndarray, states: Mapping[str, np.ndarray], reach: int) -> None:
        self.step += 1
        # A copy: environments may reuse the array in which they draw.
        self.frames[self.step] = np.array(frame, dtype=np.uint8)
        self.states[self.step] = {name: np.array(values, np.float32) for name, values in states.items()}
        for kept in (self.frames, self.states, self.latents):
            kept.pop(self.step - reach - 1, None)

    def steps(self, offsets: Sequence[int]) -> list[int]:
        """Steps at `offsets` (each <= 0) from now; before the start of the episode its first frame stands in."""
        return [max(self.step + offset, 0) for offset in offsets]
