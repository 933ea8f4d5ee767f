"""A unit-sphere codebook learned by a moving average, without gradient (BEiT v2, 2208.06366).

    latents z, length 1 ─► nearest row ─► code
                           row of code i <- normalise(decay * row + (1 - decay) * normalise(sum of
                           the z with code i))

The look-up of a step sees the rows from before it. In evaluation nothing changes: the reference
counts codes there too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foreact.tokenizers.quantize import Quantized, Quantizer


class CosineCodebook(Quantizer):
    """A `Quantizer` with buffers as rows: forwards collect sums, `after_step` moves the rows.

    So that gradient accumulation and several processes give one process's result, `step_sums`
    belong to a whole optimiser step: forwards add to them, and a loop over several processes sums
    them over these before `after_step`, as it does with gradients. They are zero between steps, and
    so no part of the state; a skipped step zeroes them too.

    Args:
        codes: number of rows, V.
        dim: length of a row, c.
        decay: of the moving averages, per optimiser step.

    Attributes:
        weight: float32 (V, c), rows of length 1.
        cluster_size: float32 (V,), moving average of how many latents of a step get each code.
        initialised: bool (), whether the rows were ever taken from latents; random directions until
            then.
        step_sums: what this step's training forwards have gathered, latents per code (V,) and their
            sum (V, c), both float32; empty before the first of them.
    """

    weight: Tensor
    cluster_size: Tensor
    initialised: Tensor

    def __init__(self, codes: int, dim: int, *, decay: float) -> None:
        super().__init__(codes, dim, normalized=True)
        self.decay = decay
        del self.weight  # the base class has it as a parameter
        self.register_buffer("weight", normalize(torch.randn(codes, dim), dim=1))
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.register_buffer("initialised", torch.tensor(False))
        self.step_sums: tuple[Tensor, ...] = ()

    def forward(self, z: Tensor) -> Quantized:
        """Quantise latents (N, c, h, w); in training also gather them for `after_step`."""
        quantized = super().forward(z)
        if self.training:
            totals = self._totals(z, quantized.codes)
            if not self.step_sums:
                self.step_sums = totals
            else:
                for total, more in zip(self.step_sums, totals, strict=True):
                    total += more
        return quantized

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the rows towards the latents of this step's training forwards."""
        hits, sums = self.step_sums
        self.count(hits)
        self._move(hits, sums, self.decay)
        self.step_sums = ()

    def count(self, hits: Tensor) -> None:
        """Take the numbers of latents per code, float32 (V,), into `cluster_size`."""
        self.cluster_size.lerp_(hits, 1.0 - self.decay)

    @torch.no_grad()
    def initialise(self, z: Tensor, order: Tensor, *, iterations: int = 10) -> Tensor:
        """Set the rows by k-means on the sphere.

        Args:
            z: latents (N, c, h, w) with N h w >= V.
            order: int64, at least V different numbers below N h w; the first V latents in this
                order are the start.
            iterations: assignments, each followed by moving every row into the middle of its
                latents.

        Returns:
            float32 (V,), latents per row in the last assignment; `cluster_size` is left alone.

        Raises:
            ValueError: there are too few latents.
        """
        vectors = self._vectors(z)
        if min(len(vectors), len(order)) < len(self.weight):
            raise ValueError(
                f"{len(self.weight)} rows cannot start from {min(len(vectors), len(order))} latents"
            )
        self.weight.copy_(vectors[order[: len(self.weight)]])
        hits = torch.zeros_like(self.cluster_size)
        for _ in range(iterations):
            hits, sums = self._totals(z, self.encode(z))
            self._move(hits, sums, decay=0.0)
        self.initialised.fill_(True)
        return hits

    def _vectors(self, z: Tensor) -> Tensor:
        """(N, c, h, w) -> float32 (N h w, c) of length 1."""
        return self._prepared(z).permute(0, 2, 3, 1).flatten(0, 2)

    @torch.no_grad()
    def _totals(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Latents per code (V,), and their sum per code (V, c)."""
        flat = codes.flatten()
        hits = torch.bincount(flat, minlength=len(self.weight)).to(self.cluster_size)
        return hits, torch.zeros_like(self.weight).index_add_(0, flat, self._vectors(z))

    def _move(self, hits: Tensor, sums: Tensor, decay: float) -> None:
        """Turn rows towards their latents; a row without any keeps its place."""
        target = torch.where(hits[:, None] > 0, normalize(sums, dim=1), self.weight)
        self.weight.copy_(normalize(decay * self.weight + (1.0 - decay) * target, dim=1))
