"""What a tiny VaVAM needs to drive: a size of pictures, and a tokenizer that needs no training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from support.tiny_vavam import VIDEO

SIZE = (32, 48)
LEVELS = 48


class BrightnessTokenizer:
    """One id per cell of a grid: its mean brightness in `LEVELS`
    steps. Counts the frames that it encoded.
    """

    def __init__(self, grid: tuple[int, int] = VIDEO.grid, vocab: int | None = LEVELS) -> None:
        self.grid = grid
        self.vocab = vocab
        self.frames = 0

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        self.frames += video.shape[0] * video.shape[1]
        brightness = (adaptive_avg_pool2d(video.flatten(0, 1).mean(1), self.grid) + 1) / 2
        return (brightness * LEVELS).long().clamp(0, LEVELS - 1).unflatten(0, video.shape[:2])

    def decode(self, z: Tensor) -> Tensor:
        raise AssertionError("a policy draws no pictures")
