"""What a UVA reference checkpoint says about itself: its config, checked against the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foreact.types import UserError

# Heads of (encoder, decoder) per named size: the one number that no tensor shape tells.
HEADS = {"mar_tiny": (6, 6), "mar_small": (6, 6), "mar_base": (12, 12), "mar_large": (16, 16), "mar_huge": (16, 16)}
# The reference hard-codes 16 actions, which no config entry repeats (D4).
HORIZON = 16


@dataclass(frozen=True, kw_only=True)
class UVASizes:
    """Sizes of the transformer and its heads, read off the tensors."""

    width: int
    decoder_width: int
    depth: int
    decoder_depth: int
    mlp_ratio: float
    latent_channels: int
    patch: int
    grid: tuple[int, int]
    frames: int
    action_dim: int
    text_dim: int | None
    text_tokens: int
    history_actions: bool
    wrist_camera: bool
    proprioception_dim: int | None
    proprioception_image: bool
    video_head: tuple[int, int] | None
    action_head: tuple[int, int] | None
    proprioception_head: tuple[int, int] | None
    proprioception_target: int | None


class Entries:
    """A nested config with errors that name the entry."""

    def __init__(self, raw: Mapping[str, Any], path: str) -> None:
        self.raw = raw
        self.path = path

    def __call__(self, name: str, *default: Any) -> Any:
        value: Any = self.raw
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                if default:
                    return default[0]
                raise UserError(f"{self.path} is no UVA checkpoint: its cfg lacks '{name}'.")
            value = value[part]
        return value


def sizes(state: Mapping[str, Tensor], cfg: Entries) -> UVASizes:
    """Sizes of the transformer.

    Args:
        state: the `model.*` tensors without that prefix.
        cfg: the checkpoint's config.

    Raises:
        UserError: a tensor is missing, or a size contradicts the config.
    """
    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise UserError(f"{cfg.path} is no UVA checkpoint: it lacks the tensor model.{name}.")
        return tuple(state[name].shape)

    def count(prefix: str) -> int:
        return len({k[len(prefix) :].split(".")[0] for k in state if k.startswith(prefix)})

    def head(name: str) -> tuple[int, int] | None:
        if f"{name}.net.cond_embed.weight" not in state:
            return None
        return count(f"{name}.net.res_blocks."), shape(f"{name}.net.cond_embed.weight")[0]

    transformer = "model.policy.autoregressive_model_params."
    width, token_dim = shape("z_proj.weight")
    patch = int(cfg(transformer + "patch_size"))
    tokens = shape("spatial_pos_embed")[1]
    side = round(tokens**0.5)
    found = UVASizes(
        width=width,
        decoder_width=shape("decoder_embed.weight")[0],
        depth=count("encoder_blocks."),
        decoder_depth=count("decoder_blocks."),
        mlp_ratio=shape("encoder_blocks.0.mlp.fc1.weight")[0] / width,
        latent_channels=token_dim // patch**2,
        patch=patch,
        grid=(side * patch, side * patch),
        frames=shape("temporal_pos_embed")[1],
        action_dim=shape("action_proj_cond.weight")[1],
        text_dim=shape("text_proj_cond.weight")[1] if "text_proj_cond.weight" in state else None,
        text_tokens=shape("text_pos_embed")[1] if "text_pos_embed" in state else 0,
        history_actions="history_action_proj_cond.weight" in state,
        wrist_camera="z_proj_wrist.weight" in state,
        proprioception_dim=(
            shape("proprioception_proj_cond.weight")[1] if "proprioception_proj_cond.weight" in state else None
        ),
        proprioception_image="proprioception_image_proj_cond.weight" in state,
        video_head=head("diffloss"),
        action_head=head("diffactloss"),
        proprioception_head=head("diffproploss"),
        proprioception_target=(
            shape("diffproploss.net.input_proj.weight")[1] if "diffproploss.net.input_proj.weight" in state else None
        ),
    )
    pixels, stride = int(cfg(transformer + "img_size")), int(cfg(transformer + "vae_stride"))
    expected: dict[str, tuple[Any, Any]] = {
        "autoregressive_model_params.vae_embed_dim": (cfg(transformer + "vae_embed_dim"), found.latent_channels),
        "autoregressive_model_params.img_size / vae_stride": (pixels // stride, found.grid[0]),
        "shape_meta.action.shape": (list(cfg("model.policy.shape_meta.action.shape")), [found.action_dim]),
    }
    if found.video_head is not None:
        pair = (cfg(transformer + "diffloss_d"), cfg(transformer + "diffloss_w"))
        expected["autoregressive_model_params.diffloss_d, diffloss_w"] = (pair, found.video_head)
    if found.action_head is not None:
        pair = (cfg(transformer + "diffloss_act_d"), cfg(transformer + "diffloss_act_w"))
        expected["autoregressive_model_params.diffloss_act_d, diffloss_act_w"] = (pair, found.action_head)
    require_equal(expected, cfg.path)
    return found


def require_equal(expected: Mapping[str, tuple[Any, Any]], path: str) -> None:
    """Raise a `UserError` for the first {entry: (config, tensors)} whose two sides differ."""
    for entry, (said, found) in expected.items():
        if said != found:
            raise UserError(f"{path} contradicts itself: its cfg has {entry} = {said}, its tensors have {found}.")


def heads_of(cfg: Entries, given: tuple[int, int] | None) -> tuple[int, int]:
    """Attention heads of encoder and decoder, which no tensor shape tells."""
    name = cfg("model.policy.autoregressive_model_params.model_size")
    if given is not None:
        return given
    if name not in HEADS:
        raise UserError(
            f"{cfg.path} has the model size '{name}', whose number of attention heads is not known; "
            f"give the heads of encoder and decoder (known sizes: {', '.join(HEADS)})."
        )
    return HEADS[name]
