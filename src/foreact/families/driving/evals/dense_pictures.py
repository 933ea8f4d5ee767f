"""Pictures of dense probing: the frame, its true labels and the predicted ones."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from foreact.data.formats.video import contact_sheet
from foreact.families.driving.evals.dense import IGNORE

# The colours that Cityscapes publishes for its 19 classes.
PALETTE = np.array(
    [
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ],
    dtype=np.uint8,
)


def label_picture(labels: Tensor) -> np.ndarray:
    """Integer classes or float depth in 0..1, (1, H, W) -> uint8 (H, W, 3); black for no class."""
    values = labels[0].cpu().numpy()
    if labels.is_floating_point():
        grey = (values.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    coloured = PALETTE[values.astype(np.int64) % len(PALETTE)]
    coloured[values == IGNORE] = 0
    return coloured


def probe_picture(images: Tensor, truth: Tensor, predicted: Tensor) -> Image.Image:
    """One row per picture: the (last) frame, its true labels, the predicted ones.

    Args:
        images: uint8 (B, T, 3, H, W).
        truth, predicted: (B, 1, H, W), see `label_picture`.
    """
    tiles, names = [], []
    for clip, true, guess in zip(images, truth, predicted, strict=True):
        frame = clip[-1].movedim(0, -1).cpu().numpy()
        tiles += [frame, label_picture(true), label_picture(guess)]
        names += ["seen", "true", "found"]
    return contact_sheet(tiles, names, columns=3)
