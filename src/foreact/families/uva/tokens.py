"""Tokens of UVA: latents cut into tokens and back, and some of a video's tokens picked by place.

A video has N = F h w tokens of d channels, ordered by frame, then row, then column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foreact.families.uva.config import UVAConfig


def patchify(latents: Tensor, config: UVAConfig) -> Tensor:
    """(B, F, c, h, w) -> (B, N, d), ordered by frame, row, column; in a patch, channels first."""
    p = config.patch
    x = latents.unflatten(4, (-1, p)).unflatten(3, (-1, p))  # B F c h p w q
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)  # B F h w (c p q) -> B (F h w) d


def unpatchify(tokens: Tensor, config: UVAConfig) -> Tensor:
    """Inverse of `patchify`."""
    (h, w), p = config.token_grid, config.patch
    x = tokens.unflatten(2, (config.latent_channels, p, p))  # B N c p q
    x = x.unflatten(1, (config.frames, h, w))  # B F h w c p q
    x = x.permute(0, 1, 4, 2, 5, 3, 6)  # B F c h p w q
    return x.flatten(5, 6).flatten(3, 4)  # B F c (h p) (w q)


def first_places(order: Tensor, start: int, stop: int, frames: int, places: int) -> Tensor:
    """Tokens at the places order[:, start:stop] of every frame, increasing in each row.

    Returns:
        int64 (B, F (stop - start)).
    """
    chosen = order[:, start:stop].sort(dim=1).values  # (B, n)
    offsets = torch.arange(frames, device=order.device) * places  # first token of every frame
    return (offsets[:, None] + chosen[:, None, :]).flatten(1)  # (B, F, n) -> (B, F n)


def token_mask(tokens: Tensor, count: int) -> Tensor:
    """bool (B, count), True at the `tokens` (B, n)."""
    mask = torch.zeros(tokens.shape[0], count, dtype=torch.bool, device=tokens.device)
    return mask.scatter_(1, tokens, True)


def take(values: Tensor, tokens: Tensor) -> Tensor:
    """Rows of (B, N, C) at `tokens` (B, n): (B, n, C)."""
    rows = tokens + torch.arange(values.shape[0], device=tokens.device)[:, None] * values.shape[1]
    return values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, tokens.shape)
