"""Names of BEiT v2's VQ-KD tensors (`vqkd_encoder_base_decoder_*.pth`) -> ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from foreact.errors import UserError

TRAINING_ONLY = ("loss", "teacher", "scaling")
"""Beginnings of names that belong to training: the teacher and what it was shown."""

UNREAD = ("quantize.embedding.cluster_size", "quantize.embedding.embed_avg")
"""Buffers of the codebook that the reference carries along and never reads."""

_VIT = {"cls_token": "class_token", "pos_embed": "positions"}
_VIT |= {f"patch_embed.proj.{kind}": f"patches.{kind}" for kind in ("weight", "bias")}
_VIT |= {f"fc_norm.{kind}": f"norm.{kind}" for kind in ("weight", "bias")}
_BLOCK = {
    "attn.qkv.weight": "attention.qkv.weight",
    "attn.q_bias": "attention.query_bias",
    "attn.v_bias": "attention.value_bias",
}
_BLOCK |= {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attention.out",
        "mlp.fc1": "up",
        "mlp.fc2": "down",
    }.items()
    for kind in ("weight", "bias")
}
_PLAIN = {
    "quantize.embedding.weight": "quantizer.weight",
    "quantize.cluster_size": "quantizer.cluster_size",
    "quantize.embedding.initted": "quantizer.initialised",
}
_PLAIN |= {
    f"{theirs}.{layer}.{kind}": f"{ours}.{layer}.{kind}"
    for theirs, ours in {"encode_task_layer": "to_code", "decode_task_layer": "to_features"}.items()
    for layer in (0, 2)
    for kind in ("weight", "bias")
}


def native_key(key: str) -> str | None:
    """Our name of BEiT v2's tensor `key`, or None where it is not part of the tokenizer."""
    if key in _PLAIN:
        return _PLAIN[key]
    side, _, rest = key.partition(".")
    if side not in ("encoder", "decoder"):
        return None
    if rest in _VIT:
        return f"{side}.{_VIT[rest]}"
    if (m := re.fullmatch(r"blocks\.(\d+)\.(.+)", rest)) and m[2] in _BLOCK:
        return f"{side}.blocks.{m[1]}.{_BLOCK[m[2]]}"
    return None


def to_native(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names: every key but those of training and unread buffers.

    Raises:
        UserError: keys that the tokenizer does not have, by name. That tensors are missing is found
            where the result is loaded.
    """
    names = {
        key: native_key(key)
        for key in state
        if not key.startswith(TRAINING_ONLY) and key not in UNREAD
    }
    if unknown := sorted(key for key, name in names.items() if name is None):
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise UserError(
            f"These tensors do not belong to a VQ-KD tokenizer: {', '.join(unknown[:8])}{more}; "
            "expected names such as 'encoder.blocks.0.attn.q_bias' and 'quantize.embedding.weight'."
        )
    native = {name: state[key] for key, name in names.items() if name is not None}
    flag = native.get("quantizer.initialised")
    if flag is not None and flag.numel() == 1:
        native["quantizer.initialised"] = flag.bool().reshape(())
    return native
