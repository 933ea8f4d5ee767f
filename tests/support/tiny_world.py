"""A tiny UVA's world: pictures of 16 x 16, an autoencoder, and runs of a few steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreact.families.uva.config import UVAConfig
from foreact.families.uva.recipes import UVARun
from foreact.tokenizers.kl_vae import KLVAEConfig
from foreact.train.config import TrainConfig

VAE = KLVAEConfig(
    channels=4,
    multipliers=(1, 1, 1),
    blocks=1,
    latent_channels=4,
    norm_groups=4,
    image_size=(16, 16),
    kl_weight=1e-3,
)


MODEL = UVAConfig(
    latent_channels=4,
    grid=(4, 4),
    patch=2,
    frames=2,
    horizon=8,
    action_dim=2,
    width=16,
    depth=1,
    heads=2,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
    dropout=0.0,
    attention_dropout=0.0,
    head="flow",
    video_head_depth=1,
    video_head_width=16,
    action_head_depth=1,
    action_head_width=16,
    video_sampling_steps="2",
    action_sampling_steps="2",
    proprioception_prediction={"state": 5},
)


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "steps": 2,
            "batch_size": 4,
            "lr": 1e-3,
            "warmup": 1,
            "workers": 0,
            "log_every": 1,
            "save_every": 100,
            "eval_every": 2,
            "tensorboard": False,
            "precision": "fp32",
            **changes,
        }
    )


@dataclass(frozen=True)
class World:
    """Everything that the recipes made, in the order in which they made it."""

    store: Path
    vae: Path
    video: Path
    uva: Path

    def run(self, out: Path, **changes: Any) -> UVARun:
        """A run of the joint stage on this world's data; `train`
        takes changes of the training settings.
        """
        training = settings(**changes.pop("train", {}))
        base = UVARun(
            data=self.store,
            tokenizer=str(self.vae),
            out=out,
            model=MODEL,
            train=training,
            val_ratio=0.3,
            device="cpu",
        )
        return dataclasses.replace(base, **changes)
