"""The reference's KL autoencoder, alone (kl16.ckpt) or inside a UVA checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from foreact.errors import UserError
from foreact.families.codes.released.kl_vae_names import to_native
from foreact.released.layouts import Converted, Layout, Read, Request, write_converted
from foreact.released.pickles import read_torch_file
from foreact.tokenizers.kl_vae import KLVAEConfig


def read_kl_vae(
    path: Path, payload: Any = None, *, image_size: tuple[int, int] = (256, 256)
) -> Read[KLVAEConfig]:
    """Read kl16.ckpt, a torch file whose entry `model` holds the autoencoder.

    Args:
        path: the file.
        payload: its content, where it has been read already.
        image_size: (height, width) of the pictures it is to be used on; the file does not say.

    Raises:
        UserError: the file is missing, unreadable, or holds something else.
    """
    payload = read_torch_file(path) if payload is None else payload
    state = payload.get("model") if isinstance(payload, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} should hold an autoencoder under the key 'model', found none.")
    native = to_native(dict(state))
    unread = [k for k in payload if k != "model"]
    report = f"autoencoder: {len(native)} of {len(state)} tensors used"
    if unread:
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
    """Whether a torch file holds the autoencoder: its names under `model`, and no codebook."""
    state = payload.get("model") if isinstance(payload, Mapping) else None
    if not isinstance(state, Mapping):
        return False
    names = [str(k) for k, v in state.items() if isinstance(v, Tensor)]
    present = [
        any(k.startswith(prefix) for k in names)
        for prefix in ("decoder.up.", "quant_conv.", "quantize.")
    ]
    return present == [True, True, False]


def _convert(request: Request, options: Any) -> Converted:
    read = read_kl_vae(request.src, request.payload)
    return write_converted(
        request, family="kl_vae", config=read.config, state=read.state, report=read.report
    )


LAYOUTS = (
    Layout(
        name="kl_vae",
        title="a KL autoencoder",
        files="kl16.ckpt",
        mark="entry model with decoder.up and quant_conv",
        recognise=is_kl_vae,
        convert=_convert,
    ),
)
