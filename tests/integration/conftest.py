"""One tiny world for the recipes' tests: three real episodes, an autoencoder of 16 x 16 pictures, a UVA of 8 tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from foreact.commands.collect import pusht as collect
from foreact.families.codes.tokenize import tokenize
from foreact.families.codes.train_kl_vae import KLVAERun, train_kl_vae
from foreact.families.uva.config import UVAConfig
from foreact.families.uva.train import UVARun, train_uva
from foreact.tokenizers.kl_vae import KLVAEConfig
from foreact.train.config import TrainConfig

VAE = KLVAEConfig(
    channels=4, multipliers=(1, 1, 1), blocks=1, latent_channels=4, norm_groups=4, image_size=(16, 16), kl_weight=1e-3
)
MODEL = UVAConfig(
    latent_channels=4, grid=(4, 4), patch=2, frames=2, horizon=8, action_dim=2, width=16, depth=1, heads=2,
    decoder_width=16, decoder_depth=1, decoder_heads=2, dropout=0.0, attention_dropout=0.0, head="flow",
    video_head_depth=1, video_head_width=16, action_head_depth=1, action_head_width=16, video_sampling_steps="2",
    action_sampling_steps="2", proprioception_prediction={"state": 5},
)  # fmt: skip


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{
        "steps": 2, "batch_size": 4, "lr": 1e-3, "warmup": 1, "workers": 0, "log_every": 1, "save_every": 100,
        "eval_every": 2, "tensorboard": False, "precision": "fp32", **changes,
    })  # fmt: skip


@dataclass(frozen=True)
class World:
    """Everything that the recipes made, in the order in which they made it."""

    store: Path
    vae: Path
    video: Path
    uva: Path

    def run(self, out: Path, **changes: Any) -> UVARun:
        """A run of the joint stage on this world's data; `train` takes changes of the training settings."""
        training = settings(**changes.pop("train", {}))
        base = UVARun(
            data=self.store, tokenizer=str(self.vae), out=out, model=MODEL, train=training, val_ratio=0.3, device="cpu"
        )
        return dataclasses.replace(base, **changes)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The road from nothing to an acting model, through the recipes: collect, autoencoder, latents, two stages."""
    root = tmp_path_factory.mktemp("world")
    store = root / "pusht.zarr"
    collect(episodes=3, out=store, noise=(0.0,), workers=1)
    vae = train_kl_vae(
        KLVAERun(data=store, out=root / "kl-vae", model=VAE, train=settings(best_k=0), val_ratio=0.3, device="cpu")
    )
    tokenize(store, str(vae), device="cpu")
    made = World(store=store, vae=vae, video=root / "video" / "weights", uva=root / "joint" / "weights")
    stage = {"modes": {"video": 1.0}, "predict_action": False}
    train_uva(made.run(root / "video", stage="video", model=dataclasses.replace(MODEL, **stage)))
    train_uva(made.run(root / "joint", init=str(made.video)))
    return made
