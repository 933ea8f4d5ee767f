"""Tiny UVA models with data that fit them, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreact.families.uva.model import UVA, Question, UVAConfig
from foreact.types import Batch

SMALL: dict[str, Any] = {
    "latent_channels": 3,
    "grid": (3, 4),
    "frames": 2,
    "horizon": 6,
    "action_dim": 2,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "decoder_width": 12,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "video_head_width": 16,
    "video_head_depth": 1,
    "action_head_width": 16,
    "action_head_depth": 1,
    "video_sampling_steps": "3",
    "action_sampling_steps": "3",
}
FULL: dict[str, Any] = SMALL | {
    "wrist_camera": "wrist",
    "text_dim": 5,
    "text_tokens": 2,
    "past_actions": True,
    "proprioception": {"pos": 3, "grip": 1},
    "proprioception_steps": 4,
    "proprioception_prediction": {"pos": 3},
}


def build(config: UVAConfig, seed: int = 0) -> UVA:
    """A model whose heads do not start at zero."""
    torch.manual_seed(seed)
    model = UVA(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model.eval()


def make_batch(c: UVAConfig, rows: int = 3, seed: int = 1) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=g)

    cameras = [c.camera] + ([c.wrist_camera] if c.wrist_camera else [])
    return Batch(
        latents={camera: normal(2 * c.frames, c.latent_channels, *c.grid) for camera in cameras},
        actions=normal(c.horizon, c.action_dim).clamp(-1, 1),
        past_actions=normal(c.horizon, c.action_dim) if c.past_actions else None,
        text=normal(c.text_dim) if c.text_dim else None,
        state={
            s: normal(c.proprioception_steps + c.horizon, d) for s, d in c.proprioception.items()
        },
    )


def ask(c: UVAConfig, batch: Batch, mode: str) -> Question:
    """The question `mode` about a batch, with all that it takes."""
    latents, inverse = batch.latents, mode == "inverse"
    return Question(
        mode=mode,
        context=latents[c.camera][:, : c.frames],
        future=latents[c.camera][:, c.frames :] if inverse else None,
        wrist_context=latents["wrist"][:, : c.frames] if c.shows_wrist else None,
        wrist_future=latents["wrist"][:, c.frames :] if c.predicts_wrist and inverse else None,
        actions=batch.actions if mode == "dynamics" else None,
        past_actions=batch.past_actions,
        proprioception={s: batch.state[s][:, : c.proprioception_steps] for s in c.proprioception},
        text=batch.text,
    )


def rngs(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]
