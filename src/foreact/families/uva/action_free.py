"""Videos that nobody acted in, as samples of UVA beside those of robots.

They teach how things move: where a sample has no actions, states, instruction or second camera,
`Batch.valid` says so, the losses leave it out, and the model sees the vector for "nothing known".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.windows.loader import WindowDataset, Windows
from foreact.data.windows.window import Window
from foreact.families.uva.config import UVAConfig
from foreact.families.uva.question import TEXT
from foreact.types import Batch, StreamSpec


class ActionFree:
    """Windows of a store of video, with the entries of a robot's windows.

    Args:
        store: the videos, with latents of `camera`.
        camera: of the store; it takes the place of the model's own.
        window: of the robot's data.
        config: of the model.
        spec: of the robot's data.
        episodes: episode numbers.
    """

    augments = False

    def __init__(
        self,
        store: EpisodeStore,
        camera: str,
        window: Window,
        config: UVAConfig,
        spec: StreamSpec,
        episodes: np.ndarray,
    ) -> None:
        self.window, self.config, self.camera, self.spec = window, config, camera, spec
        frames = window.latents[config.camera]
        seen = Window(
            latents={camera: frames},
            span=(frames[0], frames[-1]),
            pad_before=-frames[0],
            pad_after=window.pad_after,
        )
        self._videos = WindowDataset(store, seen, episodes)

    def __len__(self) -> int:
        return len(self._videos)

    def load(self) -> None:
        self._videos.load()

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        found = self._videos.batch(chosen)
        c, rows = self.config, len(chosen)
        latents = found.latents[self.camera]
        batch = Batch(index=found.index, latents={c.camera: latents})
        for name, steps in _masked_steps(self.window).items():
            batch.valid[name] = torch.zeros(rows, steps, dtype=torch.bool)
        batch.valid[c.camera] = found.valid[self.camera]
        if c.wrist_camera is not None:
            batch.latents[c.wrist_camera] = torch.zeros_like(latents)
        if self.window.actions:
            batch.actions = torch.zeros(rows, len(self.window.actions), c.action_dim)
        if self.window.past_actions:
            batch.past_actions = torch.zeros(rows, len(self.window.past_actions), c.action_dim)
        for stream, offsets in self.window.state.items():
            batch.state[stream] = torch.zeros(rows, len(offsets), len(self.spec.state[stream]))
        if c.text_dim is not None:
            batch.text = torch.zeros(rows, c.text_dim)
        return batch


class WithMasks:
    """Windows whose batches say of every entry where it is valid, so that others may join them."""

    def __init__(self, windows: Windows, window: Window) -> None:
        self.windows, self.window = windows, window

    @property
    def augments(self) -> bool:
        return self.windows.augments

    def __len__(self) -> int:
        return len(self.windows)

    def load(self) -> None:
        self.windows.load()

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        batch = self.windows.batch(chosen, rngs)
        for name, steps in _masked_steps(self.window).items():
            batch.valid.setdefault(name, torch.ones(len(chosen), steps, dtype=torch.bool))
        return batch


def _masked_steps(window: Window) -> dict[str, int]:
    """Entry of `Batch.valid` -> steps."""
    steps = {entry.name: len(entry.offsets) for entry in window.entries}
    return steps | ({TEXT: 1} if window.text else {})
