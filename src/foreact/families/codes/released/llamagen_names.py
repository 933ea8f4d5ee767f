"""Names of LlamaGen's tokenizer tensors (`vq_ds16_c2i.pt`) -> ours, and back."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from foreact.errors import UserError

# A log of the ids seen last in training, which the reference demands and nothing reads.
USED_CODES, USED_CODES_LENGTH = "quantize.codebook_used", 65536

_LAYERS = {
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
_MIDDLE = {"0": "block1", "1": "attention", "2": "block2"}
_LISTS = {"res": "blocks", "attn": "attentions"}
_RESIDUAL = "norm1|conv1|norm2|conv2|nin_shortcut"
_ATTENTION = "norm|q|k|v|proj_out"

_PLAIN = {"quantize.embedding.weight": "quantizer.weight"}
_PLAIN |= {f"quant_conv.{kind}": f"to_code.{kind}" for kind in ("weight", "bias")}
_PLAIN |= {f"post_quant_conv.{kind}": f"from_code.{kind}" for kind in ("weight", "bias")}
_KIND = r"\.(weight|bias)"
_EDGE = re.compile(rf"(?:encoder|decoder)\.(?:conv_in|norm_out|conv_out){_KIND}")
_IN_LEVEL = re.compile(
    rf"(encoder|decoder)\.conv_blocks\.(\d+)\.(?:(res)\.(\d+)\.({_RESIDUAL})|(attn)\.(\d+)\.({_ATTENTION})){_KIND}"
)
_IN_MIDDLE = re.compile(
    rf"(encoder|decoder)\.mid\.(?:([02])\.({_RESIDUAL})|(1)\.({_ATTENTION})){_KIND}"
)
_MOVE = re.compile(rf"(encoder|decoder)\.conv_blocks\.(\d+)\.(downsample|upsample)\.conv{_KIND}")


def native_key(key: str, levels: int) -> str | None:
    """Our name of LlamaGen's tensor `key`, or None where it is not part of the tokenizer.

    Args:
        key: LlamaGen's name.
        levels: of the network, which the decoder's numbers are counted from.
    """
    if key in _PLAIN:
        return _PLAIN[key]
    if _EDGE.fullmatch(key):
        return key
    if m := _IN_MIDDLE.fullmatch(key):
        part, leaf = (m[2], m[3]) if m[2] else (m[4], m[5])
        return f"{m[1]}.middle.{_MIDDLE[part]}.{_LAYERS[leaf]}.{m[6]}"
    if m := _IN_LEVEL.fullmatch(key):
        kind, number, leaf = (m[3], m[4], m[5]) if m[3] else (m[6], m[7], m[8])
        level = _level(m[1], m[2], levels)
        return f"{m[1]}.levels.{level}.{_LISTS[kind]}.{number}.{_LAYERS[leaf]}.{m[9]}"
    if (m := _MOVE.fullmatch(key)) and (m[1], m[3]) in (
        ("encoder", "downsample"),
        ("decoder", "upsample"),
    ):
        # We count an upsampling with the level that it leads to, which is one above the level it
        # leaves.
        index = int(m[2]) if m[1] == "encoder" else _level(m[1], m[2], levels) - 1
        return f"{m[1]}.{m[3]}s.{index}.conv.{m[4]}"
    return None


def _level(side: str, number: str, levels: int) -> int:
    """Our number of a level, 0 at full size; LlamaGen's decoder counts in computing order."""
    return int(number) if side == "encoder" else levels - 1 - int(number)


def to_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names, strictly: every key is used but the log of used codes.

    Raises:
        UserError: keys that the tokenizer does not have, by name. That tensors are missing is found
            where the result is loaded.
    """
    levels = 1 + max((int(m[2]) for key in state if (m := _IN_LEVEL.fullmatch(key))), default=0)
    names = {key: native_key(key, levels) for key in state if key != USED_CODES}
    if unknown := sorted(key for key, name in names.items() if name is None):
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise UserError(
            "These tensors do not belong to a LlamaGen tokenizer: "
            f"{', '.join(unknown[:8])}{more}; expected names such as "
            "'encoder.conv_blocks.0.res.0.conv1.weight' and 'quantize.embedding.weight'."
        )
    return {name: state[key] for key, name in names.items() if name is not None}


def to_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under LlamaGen's names, with the empty log of used codes that it demands."""
    levels = len({key.split(".")[2] for key in state if key.startswith("encoder.levels.")})
    return {_reference_key(key, levels): tensor for key, tensor in state.items()} | {
        USED_CODES: torch.zeros(USED_CODES_LENGTH)
    }


_THEIR_LAYERS = {ours: theirs for theirs, ours in _LAYERS.items()}
_THEIR_MIDDLE = {ours: theirs for theirs, ours in _MIDDLE.items()}
_THEIR_LISTS = {ours: theirs for theirs, ours in _LISTS.items()}
_THEIR_PLAIN = {ours: theirs for theirs, ours in _PLAIN.items()}


def _reference_key(key: str, levels: int) -> str:
    """LlamaGen's name of our tensor `key`."""
    if key in _THEIR_PLAIN:
        return _THEIR_PLAIN[key]
    side, *path = key.split(".")
    match path:
        case ["middle", part, layer, kind]:
            return f"{side}.mid.{_THEIR_MIDDLE[part]}.{_THEIR_LAYERS[layer]}.{kind}"
        case ["levels", number, items, j, layer, kind]:
            return (
                f"{side}.conv_blocks.{_level(side, number, levels)}.{_THEIR_LISTS[items]}.{j}."
                f"{_THEIR_LAYERS[layer]}.{kind}"
            )
        case ["downsamples", number, "conv", kind]:
            return f"{side}.conv_blocks.{number}.downsample.conv.{kind}"
        case ["upsamples", number, "conv", kind]:
            return f"{side}.conv_blocks.{levels - 2 - int(number)}.upsample.conv.{kind}"
    return key
