"""Windows with a later state, a random number of steps ahead, for inverse kinematics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foreact.data.windows.augment import Augment
from foreact.data.windows.loader import WindowDataset
from foreact.data.windows.window import place
from foreact.errors import UserError
from foreact.types import Batch


class FutureWindows:
    """Windows with T more frames from up to k steps after the anchor; a `loader.Windows`.

        video    [t-T+1 .. t .. t+n][t+k-T+1 .. t+k]        n >= 0 frames after the anchor

    k is uniform on 1 .. min(reach, steps left in the episode). Training draws it from the sample's
    own generator; without one (validation) it is a function of the window's number alone. As at the
    window's own offsets, frames before the episode's first step repeat that one.

    Args:
        windows: the windows to extend, with the pixels of one camera and without augmentation.
            Every anchor has a step after it.
        frames: frames of a state, T.
        reach: greatest k.
        augment: changes the pixels of training samples, all frames of a window alike.

    Raises:
        UserError: the windows have not one camera, an augmentation of their own, or anchors at an
            episode's last step.
    """

    augments = True  # the generators draw k, whether pixels change or not

    def __init__(
        self,
        windows: WindowDataset,
        *,
        frames: int,
        reach: int = 14,
        augment: Augment | None = None,
    ) -> None:
        if frames < 1 or reach < 1:
            raise UserError(
                f"A later state needs frames >= 1 and reach >= 1, found {frames} and {reach}."
            )
        if len(windows.window.video) != 1 or windows.augment is not None:
            raise UserError(
                "A later state is added to windows of one camera that are not augmented yet."
            )
        self.windows, self.frames, self.reach, self.augment = windows, frames, reach, augment
        (self.camera,) = windows.window.video
        episodes, anchors = windows.index.T
        steps_left = windows.store.lengths[episodes] - 1 - anchors
        if steps_left.min() < 1:
            raise UserError(
                "A later state needs a step after every anchor; let the window's span "
                "end at 1 or later."
            )
        self.limits = np.minimum(steps_left, reach)

    def __len__(self) -> int:
        return len(self.windows)

    def load(self) -> None:
        """See `WindowDataset.load`."""
        self.windows.load()

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """Collate windows.

        Args:
            chosen: int (B,) their numbers.
            rngs: one generator per window, for k and augmentation; None for validation.
        """
        draws = [np.random.default_rng(int(number)) for number in chosen] if rngs is None else rngs
        limits = self.limits[chosen]
        steps = np.array([rng.integers(1, k + 1) for rng, k in zip(draws, limits, strict=True)])
        batch = self.windows.batch(chosen)
        later, inside = self._later(chosen, steps)
        video = torch.cat([batch.video[self.camera], later], dim=1)
        everywhere = torch.ones(batch.video[self.camera].shape[:2], dtype=torch.bool)
        own = batch.valid.get(self.camera, everywhere)
        batch.valid[self.camera] = torch.cat([own, inside], dim=1)
        if rngs is not None and self.augment is not None:
            video = torch.stack(
                [self.augment(clip, rng) for clip, rng in zip(video, rngs, strict=True)]
            )
        batch.video[self.camera] = video
        return batch

    def _later(self, chosen: np.ndarray, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        """Later states, uint8 (B, T, 3, H, W), and which frames are in the episode, bool (B, T)."""
        store = self.windows.store
        episodes, anchors = self.windows.anchors.at(chosen).T
        offsets = range(1 - self.frames, 1)
        rows, inside = place(offsets, anchors + steps, store.lengths[episodes])
        frames = store.gather(self.camera, store.starts[episodes, None] + rows)
        video = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous()
        return video, torch.from_numpy(inside)
