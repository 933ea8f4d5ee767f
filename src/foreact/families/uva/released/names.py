"""Names of UVA's tensors in the reference and here. Values and shapes are the same on both sides.

Reference names are those of its transformer module, without the "model." prefix of a policy file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.families.uva.model import UVA, UVAConfig

# (ours, the reference's): whole names or leading parts of names, up to a dot.
_TRANSFORMER = [
    ("video_in", "z_proj"),
    ("context_in", "z_proj_cond"),
    ("action_in", "action_proj_cond"),
    ("wrist_in", "z_proj_wrist"),
    ("wrist_context_in", "proprioception_image_proj_cond"),
    ("past_action_in", "history_action_proj_cond"),
    ("proprioception_in", "proprioception_proj_cond"),
    ("text_in", "text_proj_cond"),
    ("no_video", "fake_latent_x"),
    ("no_action", "fake_action_latent"),
    ("no_wrist", "fake_latent_wrist_x"),
    ("no_past_action", "fake_latent_history_action"),
    ("no_text", "fake_latent"),
    ("join", "proj_cond_x_layer"),
    ("time_position", "temporal_pos_embed"),
    ("space_position", "spatial_pos_embed"),
    ("text_position", "text_pos_embed"),
    ("decoder_time_position", "decoder_temporal_pos_embed"),
    ("decoder_space_position", "decoder_spatial_pos_embed"),
    ("decoder_text_position", "decoder_text_pos_embed"),
    ("head_time_position", "diffusion_temporal_embed"),
    ("head_space_position", "diffusion_spatial_embed"),
    ("input_norm", "z_proj_ln"),
    ("encoder_norm", "encoder_norm"),
    ("decoder_in", "decoder_embed"),
    ("decoder_norm", "decoder_norm"),
]
_BLOCK = [
    ("norm1", "norm1"),
    ("attention.qkv", "attn.qkv"),
    ("attention.out", "attn.proj"),
    ("norm2", "norm2"),
    ("mlp.up", "mlp.fc1"),
    ("mlp.down", "mlp.fc2"),
]
_HEADS = [
    ("video", "diffloss"),
    ("wrist", "diffloss_wrist"),
    ("action", "diffactloss"),
    ("proprioception", "diffproploss"),
]
_DENOISER = [
    ("input", "input_proj"),
    ("condition", "cond_embed"),
    ("time1", "time_embed.mlp.0"),
    ("time2", "time_embed.mlp.2"),
    ("out_modulation", "final_layer.adaLN_modulation.1"),
    ("out", "final_layer.linear"),
]
_DENOISER_BLOCK = [
    ("norm", "in_ln"),
    ("up", "mlp.0"),
    ("down", "mlp.2"),
    ("modulation", "adaLN_modulation.1"),
]
_READOUTS = {
    "conv_fc": [
        ("conv", "conv.0"),
        ("fc1", "fc.0"),
        ("fc2", "fc.2"),
        ("mix", "interpolate"),
        ("refine1", "refine.0"),
        ("refine2", "refine.2"),
    ],
    "conv_ori": [("expand", "conv_transpose3d")],
}


def reference_names(config: UVAConfig) -> dict[str, str]:
    """Our name -> the reference's, for every tensor of a model of this config.

    Raises:
        UserError: the reference has no such model.
    """
    if config.head != "diffusion":
        raise UserError(
            f"The reference of UVA has diffusion heads only; a {config.head} head has "
            "no name there."
        )
    if config.readout not in _READOUTS:
        raise UserError(
            f"The names of the readout '{config.readout}' in the reference are not known; convert "
            f"models with {' or '.join(_READOUTS)}."
        )
    parts = [(f"transformer.{ours}", theirs) for ours, theirs in _TRANSFORMER]
    for stack, depth in (("encoder", config.depth), ("decoder", config.decoder_depth)):
        for i in range(depth):
            parts += [
                (f"transformer.{stack}.{i}.{a}", f"{stack}_blocks.{i}.{b}") for a, b in _BLOCK
            ]
    for head, theirs in _HEADS:
        parts += [(f"heads.{head}.denoiser.{a}", f"{theirs}.net.{b}") for a, b in _DENOISER]
        for i in range(max(config.video_head_depth, config.action_head_depth)):
            ours_block = f"heads.{head}.denoiser.blocks.{i}"
            theirs_block = f"{theirs}.net.res_blocks.{i}"
            parts += [(f"{ours_block}.{a}", f"{theirs_block}.{b}") for a, b in _DENOISER_BLOCK]
        parts += [
            (f"heads.{head}.readout.{a}", f"{theirs}.{b}") for a, b in _READOUTS[config.readout]
        ]
    table = dict(parts)
    names = {}
    for name in _shapes(config):
        part = re.sub(r"\.(weight|bias)$", "", name)
        names[name] = table[part] + name[len(part) :]
    return names


def to_native(state: Mapping[str, Tensor], config: UVAConfig) -> dict[str, Tensor]:
    """Rename the reference's tensors.

    Args:
        state: the reference's tensors.
        config: what they are weights of.

    Returns:
        A state dict that loads strictly into `UVA(config)`.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape than the config says.
    """
    names = reference_names(config)
    unused = _unused(config)
    _require_same(state, [*names.values()], optional=unused)
    native = {ours: state[theirs] for ours, theirs in names.items()}
    for ours, shape in _shapes(config).items():
        if native[ours].shape != shape:
            raise UserError(
                f"The reference's tensor {names[ours]} has shape {tuple(native[ours].shape)}, the "
                f"config needs {tuple(shape)}; they are of different models."
            )
    return native


def to_reference(state: Mapping[str, Tensor], config: UVAConfig) -> dict[str, Tensor]:
    """The inverse of `to_native`; tensors that the reference holds without using them are zeros.

    Raises:
        UserError: a tensor is missing or unknown.
    """
    names = reference_names(config)
    _require_same(state, [*names])
    zeros = {name: torch.zeros(shape) for name, shape in _unused(config).items()}
    return {theirs: state[ours] for ours, theirs in names.items()} | zeros


def _unused(config: UVAConfig) -> dict[str, tuple[int, ...]]:
    """Tensors that the reference holds and never uses: name -> shape.

    It makes a projection of the wrist image for every robot with proprioception, camera or not.
    """
    if not config.proprioception or config.shows_wrist:
        return {}
    name = "proprioception_image_proj_cond"
    return {
        f"{name}.weight": (config.width, config.token_channels),
        f"{name}.bias": (config.width,),
    }


def _shapes(config: UVAConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model: nn.Module = UVA(config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _require_same(
    found: Iterable[str], expected: Iterable[str], optional: Iterable[str] = ()
) -> None:
    found, expected = set(found), set(expected)
    missing, unknown = sorted(expected - found), sorted(found - expected - set(optional))
    if missing or unknown:
        problem = f"lacks {_few(missing)}" if missing else f"has unknown {_few(unknown)}"
        raise UserError(
            f"This state {problem}; the config and the weights are of different models."
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
