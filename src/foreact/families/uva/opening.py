"""Checkpoints of UVA, opened to act or to imagine."""

from __future__ import annotations

from pathlib import Path

import torch

from foreact.checkpoints.format import Checkpoint, build, load_checkpoint, load_tokenizer
from foreact.errors import UserError
from foreact.families.uva.asking import TextFeatures
from foreact.families.uva.model import UVA
from foreact.families.uva.policy import UVAOptions, UVAPolicy
from foreact.text.opening import find_text_encoder
from foreact.tokenizers.kl_vae import KLVAE

TEXT_ENCODER = "text_encoder"
"""Folder of a CLIP in a checkpoint that was converted with one."""


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
    text_features = None
    if checkpoint.config["text_dim"] is not None:
        text_features = _text_features(checkpoint, options.text_encoder, device)
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
        text_features=text_features,
    )


def _text_features(
    checkpoint: Checkpoint, encoder: str | None, device: torch.device | str
) -> TextFeatures:
    """How the model's instructions become numbers: by its own table, or by their encoder."""
    own = checkpoint.path / TEXT_ENCODER
    if encoder is None and own.is_dir():
        encoder = f"clip:{own}"
    opened = None if encoder is None else find_text_encoder(encoder, device)
    table = checkpoint.text
    if table is not None:
        return lambda texts: table.features_for(texts, opened)
    if opened is None:
        raise UserError(
            f"{checkpoint.path} is told what to do and brings no instructions; name its text "
            "encoder with --text-encoder, such as clip:FOLDER."
        )
    expected = checkpoint.config["text_dim"]
    if opened.dim != expected:
        raise UserError(
            f"{checkpoint.path} reads instructions of {expected} numbers, '{opened.name}' makes "
            f"{opened.dim}; name the encoder that it was trained with."
        )
    return opened.encode
