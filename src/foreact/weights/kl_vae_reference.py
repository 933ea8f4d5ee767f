"""The KL autoencoder of the reference, alone (kl16.ckpt) or inside a UVA checkpoint: its tensors and its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from foreact.tokenizers.kl_vae import KLVAEConfig
from foreact.types import UserError
from foreact.weights.pickles import read_torch_file
from foreact.weights.reference_keys_kl_vae import to_native


@dataclass(frozen=True, kw_only=True)
class KLVAEReference:
    """A read autoencoder.

    Attributes:
        config: sizes, from the shapes of the tensors.
        state: name -> tensor, in our names.
        report: what was used and what was left, in lines.
    """

    config: KLVAEConfig
    state: dict[str, Tensor]
    report: str


def read_kl_vae(path: Path, payload: Any = None, *, image_size: tuple[int, int] = (256, 256)) -> KLVAEReference:
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
    return KLVAEReference(config=config_of(native, path, image_size=image_size), state=native, report=report)


def config_of(native: Mapping[str, Tensor], path: Path, *, image_size: tuple[int, int]) -> KLVAEConfig:
    """Sizes from shapes; what shapes do not tell (norm groups, attention resolution, scale) is as published."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in native:
            raise UserError(f"{path} holds no whole autoencoder: it lacks what we call {name}.")
        return tuple(native[name].shape)

    levels = len({k.split(".")[2] for k in native if k.startswith("decoder.levels.")})
    channels = shape("encoder.conv_in.weight")[0]
    widths = [shape(f"decoder.levels.{i}.blocks.0.conv2.weight")[0] for i in range(levels)]
    return KLVAEConfig(
        channels=channels,
        multipliers=tuple(w // channels for w in widths),
        # The encoder may have no residual block at all; the decoder has one more.
        blocks=len({k.split(".")[4] for k in native if k.startswith("decoder.levels.0.blocks.")}) - 1,
        latent_channels=shape("from_latents.weight")[0],
        image_size=image_size,
    )
