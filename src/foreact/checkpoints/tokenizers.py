"""Tokenizers by reference: a checkpoint folder, a shipped name, or a TorchScript file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foreact.checkpoints.format import Checkpoint, build, load_checkpoint, load_tokenizer
from foreact.checkpoints.shipped import resolve
from foreact.checkpoints.torchscript import TorchScriptTokenizer
from foreact.errors import UserError
from foreact.tokenizers.images import Preprocessing, prepare
from foreact.types import Encoder

SCRIPTS = (".jit", ".pt")


class LoadedTokenizer(NamedTuple):
    """A tokenizer, the content hash that names it, and how it wants its frames.

    Attributes:
        tokenizer: one that knows the way back to pixels is a `foreact.types.Tokenizer`, which
            whoever decodes demands.
        image_size: (height, width); None takes frames as stored.
    """

    tokenizer: Encoder
    hash: str
    image_size: tuple[int, int] | None
    preprocessing: Preprocessing = "symmetric"

    def prepare(self, frames: Tensor) -> Tensor:
        """Resize uint8 (..., 3, H, W) to the tokenizer's size -> float32 in [-1, 1].

        See `tokenizers.images.prepare`.
        """
        return prepare(frames, self.image_size, self.preprocessing)


def open_tokenizer(
    ref: str | Path, device: torch.device | str = "cpu", *, decoder: Path | None = None
) -> LoadedTokenizer:
    """Open a tokenizer.

    Args:
        ref: a checkpoint folder, a shipped name, or a TorchScript encoder (.jit or .pt).
        device: where it computes.
        decoder: TorchScript decoder that belongs to a TorchScript encoder, where pictures are
            wanted.

    Raises:
        UserError: it is none of them, damaged, or no tokenizer.
    """
    if Path(ref).suffix in SCRIPTS:
        scripted = TorchScriptTokenizer(Path(ref).expanduser(), decoder, device=device)
        return LoadedTokenizer(scripted, scripted.hash, None)
    if decoder is not None:
        raise UserError(
            f"A decoder's file belongs to an encoder's (.jit); {ref} is a checkpoint, "
            "which has its own."
        )
    checkpoint = load_checkpoint(resolve(ref))
    return _loaded(
        build(checkpoint, device), checkpoint.hash, f"{checkpoint.path}, a '{checkpoint.family}',"
    )


def tokenizer_of(
    checkpoint: Checkpoint,
    ref: str | Path | None = None,
    device: torch.device | str = "cpu",
    *,
    decoder: Path | None = None,
) -> LoadedTokenizer:
    """The tokenizer that a model was trained on.

    Args:
        checkpoint: the model's.
        ref: where it lies, see `open_tokenizer`; None: embedded in the checkpoint, or shipped.
        device: where it computes.
        decoder: see `open_tokenizer`.

    Raises:
        UserError: none is at hand, or it is not the one that the checkpoint names.
    """
    required = checkpoint.tokenizer
    if ref is None:
        if required is None:
            raise UserError(
                f"The checkpoint {checkpoint.path} names no tokenizer; give one with --tokenizer: "
                "a checkpoint folder or a TorchScript encoder."
            )
        return _loaded(
            load_tokenizer(checkpoint, None, device),
            required.hash,
            f"The tokenizer of {checkpoint.path}",
        )
    opened = open_tokenizer(ref, device, decoder=decoder)
    if required is not None and required.hash != opened.hash:
        raise UserError(
            f"The checkpoint {checkpoint.path} was trained on the {required.family} tokenizer "
            f"{required.hash}, {ref} has the hash {opened.hash}; give the one it was trained on."
        )
    return opened


def _loaded(module: nn.Module, digest: str, label: str) -> LoadedTokenizer:
    if not isinstance(module, Encoder):
        raise UserError(f"{label} is no tokenizer; give a kl_vae, a vq, a vqkd or a musik.")
    config: Any = module.config
    # Only some families have been trained on frames prepared in more than one way.
    return LoadedTokenizer(
        module, digest, config.image_size, getattr(config, "preprocessing", "symmetric")
    )
