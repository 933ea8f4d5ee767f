"""Names of the tensors of taming's VQGAN, which VOC released too -> ours, and back.

Encoder and decoder are named as in the KL autoencoder, which descends from it.
"""

from __future__ import annotations

from torch import Tensor

from foreact.errors import UserError
from foreact.families.codes.released import kl_vae_names as kl_vae

LOSS = "loss."
"""Prefix of what only training needs: a perceptual distance and a discriminator."""

_PLAIN = {"quantize.embedding.weight": "quantizer.weight"}
_PLAIN |= {f"quant_conv.{kind}": f"to_code.{kind}" for kind in ("weight", "bias")}
_PLAIN |= {f"post_quant_conv.{kind}": f"from_code.{kind}" for kind in ("weight", "bias")}


def native_key(key: str) -> str | None:
    """Our name of taming's tensor `key`, or None where it is not part of the tokenizer."""
    return _PLAIN.get(key) or kl_vae.native_key(key)


def to_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names, strictly: every key is used but those of the loss.

    Raises:
        UserError: keys that the tokenizer does not have, by name. That tensors are missing is found
            where the result is loaded.
    """
    names = {key: native_key(key) for key in state if not key.startswith(LOSS)}
    if unknown := sorted(key for key, name in names.items() if name is None):
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise UserError(
            f"These tensors do not belong to a VQGAN of taming: {', '.join(unknown[:8])}{more}; "
            "expected names such as 'encoder.down.0.block.0.conv1.weight' and "
            "'quantize.embedding.weight'."
        )
    return {name: state[key] for key, name in names.items() if name is not None}


def to_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under taming's names, without a loss."""
    return {_reference_key(key): tensor for key, tensor in state.items()}


_THEIR_LAYERS = {ours: theirs for theirs, ours in kl_vae.LAYERS.items()}
_THEIR_MIDDLE = {ours: theirs for theirs, ours in kl_vae.MIDDLE.items()}
_THEIR_LISTS = {"blocks": "block", "attentions": "attn"}
_THEIR_SIDES = {"encoder": "down", "decoder": "up"}
_THEIR_PLAIN = {ours: theirs for theirs, ours in _PLAIN.items()}


def _reference_key(key: str) -> str:
    """taming's name of our tensor `key`."""
    if key in _THEIR_PLAIN:
        return _THEIR_PLAIN[key]
    side, *path = key.split(".")
    match path:
        case ["middle", part, layer, kind]:
            return f"{side}.mid.{_THEIR_MIDDLE[part]}.{_THEIR_LAYERS[layer]}.{kind}"
        case ["levels", number, items, j, layer, kind]:
            place = f"{side}.{_THEIR_SIDES[side]}.{number}.{_THEIR_LISTS[items]}.{j}"
            return f"{place}.{_THEIR_LAYERS[layer]}.{kind}"
        case ["downsamples", number, "conv", kind]:
            return f"{side}.down.{number}.downsample.conv.{kind}"
        case ["upsamples", number, "conv", kind]:
            # We count an upsampling with the level it leads to, taming with the level it leaves.
            return f"{side}.up.{int(number) + 1}.upsample.conv.{kind}"
    return key
