"""One tiny world for the recipes' tests: three real episodes, an
autoencoder of 16 x 16 pictures, a UVA of 8 tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from support.refusals import refused
from support.tiny_world import MODEL, VAE, World, settings

from foreact.commands.collect import pusht as collect
from foreact.families.codes.tokenize import tokenize
from foreact.families.codes.train_kl_vae import KLVAERun, train_kl_vae
from foreact.families.uva.train import train_uva


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The road from nothing to an acting model, through the recipes:
    collect, autoencoder, latents, two stages.
    """
    root = tmp_path_factory.mktemp("world")
    store = root / "pusht.zarr"
    collect(episodes=3, out=store, noise=(0.0,), workers=1)
    vae = train_kl_vae(
        KLVAERun(
            data=store,
            out=root / "kl-vae",
            model=VAE,
            train=settings(best_k=0),
            val_ratio=0.3,
            device="cpu",
        )
    )
    tokenize(store, str(vae), device="cpu")
    made = World(
        store=store, vae=vae, video=root / "video" / "weights", uva=root / "joint" / "weights"
    )
    stage = {"modes": {"video": 1.0}, "predict_action": False}
    train_uva(made.run(root / "video", stage="video", model=dataclasses.replace(MODEL, **stage)))
    train_uva(made.run(root / "joint", init=str(made.video)))
    return made


__all__ = ["refused"]
