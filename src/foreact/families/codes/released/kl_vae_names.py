"""Names of the released KL autoencoder's tensors (`kl16.ckpt`, UVA checkpoints) -> ours."""

from __future__ import annotations

import re

from torch import Tensor

from foreact.errors import UserError

LAYERS = {
    "norm": "norm",
    "q": "query",
    "k": "key",
    "v": "value",
    "proj_out": "out",
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "shortcut",
}
MIDDLE = {"block_1": "block1", "attn_1": "attention", "block_2": "block2"}
_RESIDUAL = "norm1|conv1|norm2|conv2|nin_shortcut"
_ATTENTION = "norm|q|k|v|proj_out"

_PLAIN = {"quant_conv": "to_moments", "post_quant_conv": "from_latents"}
_EDGE = re.compile(r"(encoder|decoder)\.(conv_in|norm_out|conv_out)")
_BLOCK = re.compile(rf"(encoder\.down|decoder\.up)\.(\d+)\.block\.(\d+)\.({_RESIDUAL})")
_LEVEL_ATTENTION = re.compile(rf"(encoder\.down|decoder\.up)\.(\d+)\.attn\.(\d+)\.({_ATTENTION})")
_IN_MIDDLE = re.compile(
    rf"(encoder|decoder)\.mid\.(?:(block_[12])\.({_RESIDUAL})|(attn_1)\.({_ATTENTION}))"
)
_DOWN = re.compile(r"encoder\.down\.(\d+)\.downsample\.conv")
_UP = re.compile(r"decoder\.up\.([1-9]\d*)\.upsample\.conv")


def native_key(key: str) -> str | None:
    """Our name of the reference's tensor `key`, or None where it is not part of the autoencoder."""
    layer, _, kind = key.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if layer in _PLAIN:
        return f"{_PLAIN[layer]}.{kind}"
    if _EDGE.fullmatch(layer):
        return key
    if m := _BLOCK.fullmatch(layer):
        return f"{_side(m[1])}.levels.{m[2]}.blocks.{m[3]}.{LAYERS[m[4]]}.{kind}"
    if m := _LEVEL_ATTENTION.fullmatch(layer):
        return f"{_side(m[1])}.levels.{m[2]}.attentions.{m[3]}.{LAYERS[m[4]]}.{kind}"
    if m := _IN_MIDDLE.fullmatch(layer):
        part, leaf = (m[2], m[3]) if m[2] else (m[4], m[5])
        return f"{m[1]}.middle.{MIDDLE[part]}.{LAYERS[leaf]}.{kind}"
    if m := _DOWN.fullmatch(layer):
        return f"encoder.downsamples.{m[1]}.conv.{kind}"
    if m := _UP.fullmatch(layer):
        # The reference counts an upsampling with the level it leaves, we with the level it leads
        # to.
        return f"decoder.upsamples.{int(m[1]) - 1}.conv.{kind}"
    return None


def _side(prefix: str) -> str:
    return prefix.partition(".")[0]


def to_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names, strictly: every key is used.

    Args:
        state: the reference's autoencoder, without prefix (such as "vae_model.").

    Raises:
        UserError: keys that the autoencoder does not have, by name. That tensors are missing is
            found where the result is loaded.
    """
    names = {key: native_key(key) for key in state}
    if unknown := sorted(key for key, name in names.items() if name is None):
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise UserError(
            f"These tensors do not belong to a KL autoencoder: {', '.join(unknown[:8])}{more}; "
            "expected names such as 'encoder.conv_in.weight' and 'quant_conv.bias'."
        )
    return {name: state[key] for key, name in names.items() if name is not None}
