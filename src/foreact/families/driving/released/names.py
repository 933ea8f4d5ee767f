"""VaViM's and VaVAM's tensors in the reference and here: their names, and muP's base shapes.

The values are the same. Reference names are those of its modules, without the prefixes of a
training checkpoint ("network.", "vam.gpt.", ...).
"""

from __future__ import annotations

from foreact.families.driving.vavam import ExpertConfig
from foreact.families.driving.vavim import VaViMConfig

BaseShapes = dict[str, tuple[int | None, ...]]
"""Reference name -> sides of the tensor in muP's base model; None: a side that does not grow."""

_BLOCK = [
    ("attention.qkv", "attn.c_attn"),
    ("attention.out", "attn.c_proj"),
    ("mlp.up", "mlp.c_fc"),
    ("mlp.down", "mlp.c_proj"),
]
_VIDEO = [
    ("token_embedding", "transformer.wie"),
    ("position_embedding", "transformer.wse"),
    ("frame_embedding", "transformer.wte"),
]
_EXPERT = [
    ("encoder.action", "action_encoder.linear_1"),
    ("encoder.mix", "action_encoder.linear_2"),
    ("encoder.out", "action_encoder.linear_3"),
    ("encoder.command_embedding", "action_encoder.command_embedding"),
    ("encoder.position_embedding", "action_encoder.action_positional_embedding"),
    ("decoder", "action_decoder"),
]
HEAD = "lm_head.weight"


def vavim_names(layers: int, *, tied: bool) -> dict[str, str]:
    """Our name -> the reference's, for every tensor of a VaViM; a tied head has none of its own."""
    pairs = _VIDEO + _blocks(layers) + ([] if tied else [("head", "lm_head")])
    return _weights(pairs)


def expert_names(layers: int) -> dict[str, str]:
    """Our name -> the reference's, for every tensor of an action expert."""
    return _weights(_EXPERT + _blocks(layers))


def vavim_base_shapes(config: VaViMConfig) -> BaseShapes:
    """Base shapes of a VaViM; a tied head has none of its own."""
    base, mlp = config.base_width, config.mlp_ratio * config.base_width
    shapes: BaseShapes = {f"{theirs}.weight": (None, base) for _, theirs in _VIDEO}
    shapes |= _base_blocks(config.layers, width=base, attention=base, mlp=mlp)
    return shapes if config.tied else shapes | {HEAD: (None, base)}


def expert_base_shapes(config: ExpertConfig, layers: int) -> BaseShapes:
    """Base shapes of an action expert."""
    base, encoder = config.base_width, "action_encoder"
    return {
        f"{encoder}.linear_1.weight": (base, None),
        f"{encoder}.linear_2.weight": (base, 2 * base),
        f"{encoder}.linear_3.weight": (base, base),
        f"{encoder}.command_embedding.weight": (None, base),
        f"{encoder}.action_positional_embedding.weight": (None, base),
        "action_decoder.weight": (None, base),
        **_base_blocks(
            layers, width=base, attention=config.base_attention, mlp=config.mlp_ratio * base
        ),
    }


def _base_blocks(layers: int, *, width: int, attention: int, mlp: int) -> BaseShapes:
    sides = [(3 * attention, width), (width, attention), (mlp, width), (width, mlp)]
    return {
        f"transformer.h.{i}.{theirs}.weight": shape
        for i in range(layers)
        for (_, theirs), shape in zip(_BLOCK, sides, strict=True)
    }


def _blocks(layers: int) -> list[tuple[str, str]]:
    return [
        (f"blocks.{i}.{ours}", f"transformer.h.{i}.{theirs}")
        for i in range(layers)
        for ours, theirs in _BLOCK
    ]


def _weights(pairs: list[tuple[str, str]]) -> dict[str, str]:
    return {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in pairs}
