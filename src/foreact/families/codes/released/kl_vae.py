"""The reference's KL autoencoder, alone (kl16.ckpt) or inside a UVA checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from foreact.errors import UserError
from foreact.families.codes.released.kl_vae_names import to_native
from foreact.released.content import read_content
from foreact.released.layouts import Converted, Layout, Read, Request, write_converted
from foreact.released.wrappers import find_entry, find_state
from foreact.tokenizers.kl_vae import KLVAEConfig

ANCHORS = ("quant_conv.weight", "decoder.conv_out.weight")
CODEBOOK = "quantize.embedding.weight"


def read_kl_vae(
    path: Path, payload: Any = None, *, image_size: tuple[int, int] = (256, 256)
) -> Read[KLVAEConfig]:
    """Read kl16.ckpt, or another file with the autoencoder, whatever wraps its names.

    Args:
        path: the file.
        payload: its content, where it has been read already.
        image_size: (height, width) of the pictures it is to be used on; the file does not say.

    Raises:
        UserError: the file is missing, unreadable, or holds something else.
    """
    payload = read_content(path) if payload is None else payload
    state = find_state(payload, ANCHORS, path)
    if state is None:
        raise UserError(f"{path} should hold an autoencoder under the key 'model', found none.")
    native = to_native(state.tensors)
    report = "\n".join(
        [f"autoencoder: {len(native)} of {len(state.tensors)} tensors used", *state.notes]
    )
    if unread := state.unread(payload):
        report += f"\nnot read: {', '.join(map(str, unread))}"
    return Read(config=config_of(native, path, image_size=image_size), state=native, report=report)


def config_of(
    native: Mapping[str, Tensor], path: Path, *, image_size: tuple[int, int]
) -> KLVAEConfig:
    """Sizes from shapes; norm groups, attention resolution and scale are as published."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in native:
            raise UserError(f"{path} holds no whole autoencoder: it lacks what we call {name}.")
        return tuple(native[name].shape)

    levels = len({k.split(".")[2] for k in native if k.startswith("decoder.levels.")})
    channels = shape("encoder.conv_in.weight")[0]
    widths = [shape(f"decoder.levels.{i}.blocks.0.conv2.weight")[0] for i in range(levels)]
    first_level = [k for k in native if k.startswith("decoder.levels.0.blocks.")]
    return KLVAEConfig(
        channels=channels,
        multipliers=tuple(w // channels for w in widths),
        # The encoder may have no residual block at all; the decoder has one more.
        blocks=len({k.split(".")[4] for k in first_level}) - 1,
        latent_channels=shape("from_latents.weight")[0],
        image_size=image_size,
    )


def is_kl_vae(payload: Any) -> bool:
    """Whether a file holds the autoencoder: it has moments of latents, and no codebook."""
    return find_entry(payload, ANCHORS) is not None and find_entry(payload, [CODEBOOK]) is None


def _convert(request: Request, options: Any) -> Converted:
    read = read_kl_vae(request.src, request.payload)
    return write_converted(
        request, family="kl_vae", config=read.config, state=read.state, report=read.report
    )


LAYOUTS = (
    Layout(
        name="kl_vae",
        title="a KL autoencoder",
        files="kl16.ckpt, .safetensors",
        mark="decoder.conv_out and quant_conv without quantize",
        recognise=is_kl_vae,
        convert=_convert,
    ),
)
