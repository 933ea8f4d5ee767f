"""The loss on episodes that are kept for validation, as a measurement during training."""

from __future__ import annotations

import torch
from torch import nn

from foreact.data.windows.loader import Windows, spread_batches


class ValidationLoss:
    """Training loss and logs on validation windows of all episodes, with fixed draws."""

    name = "val"
    every: int | None = None

    def __init__(self, windows: Windows, *, at_most: int = 64, batch_size: int = 4) -> None:
        self.batches = spread_batches(windows, at_most=at_most, batch_size=batch_size)

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        device = next(model.parameters()).device
        sums: dict[str, float] = {}
        count = 0
        for i, batch in enumerate(self.batches):
            rng = torch.Generator(device=device).manual_seed(i)
            out = model(batch.to(device), rng=rng)
            for name, value in {**out.logs, "loss": out.loss}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
            count += len(batch)
        return {name: total / count for name, total in sums.items()}
