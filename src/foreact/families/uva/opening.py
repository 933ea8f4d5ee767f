"""Checkpoints of UVA, opened to act or to imagine."""

from __future__ import annotations

from pathlib import Path

import torch

from foreact.checkpoints.format import build, load_checkpoint, load_tokenizer
from foreact.errors import UserError
from foreact.families.uva.model import UVA
from foreact.families.uva.policy import UVAOptions, UVAPolicy
from foreact.tokenizers.kl_vae import KLVAE


def open_policy(
    path: Path,
    options: UVAOptions | None = None,
    *,
    execute: int | None = None,
    device: torch.device | str = "cpu",
) -> UVAPolicy:
    """A policy from a checkpoint folder.

    Args:
        path: checkpoint of a UVA with spec and statistics.
        options: how it acts.
        execute: actions played before planning again; None: 8.
        device: where to compute.

    Raises:
        UserError: the checkpoint is missing, broken, or not one that can act.
    """
    policy = open_imagining(path, options, execute=execute, device=device)
    if not policy.model.config.predict_action:
        raise UserError(
            f"{path} was trained to foresee video only and cannot act; name weights "
            "of stage 'joint'."
        )
    return policy


def open_imagining(
    path: Path,
    options: UVAOptions | None = None,
    *,
    execute: int | None = None,
    device: torch.device | str = "cpu",
) -> UVAPolicy:
    """`open_policy` for a model that is asked for futures, and need not know actions."""
    options = options or UVAOptions()
    checkpoint = load_checkpoint(path, of="uva")
    if checkpoint.spec is None or checkpoint.stats is None:
        lacks = "spec" if checkpoint.spec is None else "statistics of the actions"
        raise UserError(
            f"{path} has no {lacks}, so it cannot act; export it again with the task "
            "it was trained on."
        )
    model = build(checkpoint, device)
    vae = load_tokenizer(checkpoint, options.tokenizer, device)
    if not isinstance(model, UVA) or not isinstance(vae, KLVAE):
        raise UserError(
            f"{path} belongs to a {type(vae).__name__}; UVA acts on the latents of a KL-VAE."
        )
    execute = 8 if execute is None else execute
    return UVAPolicy(
        model,
        vae,
        checkpoint.stats,
        checkpoint.spec,
        options,
        execute=execute,
        device=device,
        weights=checkpoint.hash,
    )
