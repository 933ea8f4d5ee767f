"""GPTs of Video Occupancy Models: their authors' files, bare Hugging Face state dicts, as our checkpoints and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from foreact.models.voc import VOC, VOCConfig
from foreact.types import Codes, StreamSpec, UserError
from foreact.weights.configs import config_from_json
from foreact.weights.format import build, load_checkpoint, save_checkpoint
from foreact.weights.gpt2_reference import occupancy_state, read_gpt2, write_gpt2

DINO = "vqkd"
"""Family whose codes the authors model in stacks of two frames, with four attention heads, tokens first."""


def convert_voc(
    src: Path,
    dst: Path,
    payload: Any,
    *,
    tokenizer: Path,
    gamma: float = 0.8,
    frames: int | None = None,
    heads: int | None = None,
    spec: StreamSpec | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[str, str]:
    """Write a GPT as a VOC checkpoint, with the tokenizer whose codes it models.

    The file holds the GPT alone: the target network starts as its copy, and the reward head untrained.

    Args:
        src: the authors' file, for messages.
        dst: the folder to write.
        payload: content of the file.
        tokenizer: checkpoint of the tokenizer; its grid, codebook and vocabulary are taken over.
        gamma: discount that the GPT was trained for.
        frames: frames of a stack; by default 3, with VQ-KD codes 2, as published.
        heads: attention heads; by default 8, with VQ-KD codes 4, as published.
        spec: what the numbers mean.
        dtype: type to store floating-point tensors in; None keeps theirs.

    Returns:
        The content hash and the account of the file.

    Raises:
        UserError: the file is not all of a GPT-2, or does not fit the tokenizer.
    """
    codes = load_checkpoint(tokenizer)
    module = build(codes)
    if not isinstance(module, Codes):
        raise UserError(f"{tokenizer} holds a '{codes.family}', which has no codebook; name a vq, a vqkd or a musik.")
    dino = codes.family == DINO
    found = read_gpt2(src, payload, heads=heads or (4 if dino else 8))
    gpt = found.config
    if gpt.vocab != module.vocab:
        raise UserError(
            f"{src} models {gpt.vocab} codes, the tokenizer {tokenizer} makes {module.vocab}; name the one it was "
            "trained on."
        )
    config = VOCConfig(
        width=gpt.width, heads=gpt.heads, layers=gpt.layers, positions=gpt.positions, vocab=gpt.vocab,
        code_dim=module.codebook.shape[1], grid=module.grid, frames=frames or (2 if dino else 3), gammas=(gamma,),
        feature_order="tokens_first" if dino else "channels_first",
    )  # fmt: skip
    report = f"{found.report}\nnot in the file: reward head (untrained), target network (a copy)"
    digest = save_checkpoint(
        dst, family="voc", config=config, state=occupancy_state(found, config, codebook=module.codebook.detach()),
        spec=spec, tokenizer=tokenizer, card={"source": src.name, "account": report.splitlines()}, dtype=dtype,
    )  # fmt: skip
    return digest, report


def write_voc(weights: Path, dst: Path) -> None:
    """Write the GPT of a VOC checkpoint as a folder for Hugging Face's `GPT2LMHeadModel.from_pretrained`.

    Raises:
        UserError: it is conditioned on gammas or actions, which a GPT-2 is not, or the disk refuses.
    """
    checkpoint = load_checkpoint(weights)
    config = config_from_json(VOCConfig, checkpoint.config)
    model = build(checkpoint)
    assert isinstance(model, VOC)
    write_gpt2(dst, config.gpt, model.gpt.state_dict())
