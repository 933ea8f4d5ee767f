"""Tiny VaViM and VaVAM with non-trivial weights, for tests."""

from __future__ import annotations

import torch
from torch import nn

from foreact.families.driving.vavam import ExpertConfig, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViM, VaViMConfig

VIDEO = VaViMConfig(width=32, heads=2, layers=2, vocab=50, frames=4, grid=(2, 3), base_width=16)
ACTION = VaVAMConfig(
    vavim=VIDEO, expert=ExpertConfig(width=16, horizon=3, base_width=8, base_attention=16)
)


def spread_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter values that matter: muP starts some at zero."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3, generator=rng)
    return model.eval()


def tiny_vavim(config: VaViMConfig = VIDEO) -> VaViM:
    model = spread_weights(VaViM(config))
    assert isinstance(model, VaViM)
    return model


def tiny_vavam(config: VaVAMConfig = ACTION) -> VaVAM:
    model = spread_weights(VaVAM(config))
    assert isinstance(model, VaVAM)
    return model


def some_tokens(
    batch: int, frames: int, config: VaViMConfig = VIDEO, seed: int = 1
) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab, (batch, frames, *config.grid), generator=rng)
