"""Config of a UVA reference checkpoint, checked against the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foreact.errors import UserError
from foreact.families.uva.model import UVAConfig

# Heads of (encoder, decoder) per named size: the one number that no tensor shape tells.
HEADS = {
    "mar_tiny": (6, 6),
    "mar_small": (6, 6),
    "mar_base": (12, 12),
    "mar_large": (16, 16),
    "mar_huge": (16, 16),
}
MODES = {
    "video_model": "video",
    "dynamic_model": "dynamics",
    "policy_model": "policy",
    "inverse_model": "inverse",
    "full_dynamic_model": "joint",
}
# The reference hard-codes which robot states it joins, in this order; their total width tells
# which.
STATES = (
    {
        "robot0_eef_pos": 3,
        "robot0_eef_rot_axis_angle": 6,
        "robot0_gripper_width": 1,
        "robot0_eef_rot_axis_angle_wrt_start": 6,
    },
    {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2},
)
PREDICTED_STATES = ({"robot0_eef_rot_axis_angle_wrt_start": 6}, STATES[1])
# Hard-coded in the reference too.
HORIZON = 16
PAST_STEPS = 16

TRANSFORMER = "model.policy.autoregressive_model_params"


@dataclass(frozen=True, kw_only=True)
class UVAFacts:
    """How a task used its model, as far as the file says.

    Attributes:
        task: name of the task.
        cameras: name -> (height, width) in pixels of what the task delivers, before resizing for
            the tokenizer.
        states: low-dimensional observation -> dimensions, as declared.
        execute: actions played before planning again.
        first_action_now: whether the first action is the one due at the last observation, else the
            step after it.
        uneven_history: trained on past frames at random times.
        iterations, temperature, guidance: sampling defaults.
    """

    task: str
    cameras: Mapping[str, tuple[int, int]]
    states: Mapping[str, int]
    execute: int
    first_action_now: bool
    uneven_history: bool
    iterations: int
    temperature: float
    guidance: float


class Entries:
    """A nested config with errors that name the entry."""

    def __init__(self, raw: Any, path: str) -> None:
        self.raw = raw
        self.path = path

    def __call__(self, name: str) -> Any:
        """The entry `a.b.c`.

        Raises:
            UserError: it is not there.
        """
        value: Any = self.raw
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise UserError(f"{self.path} is no UVA checkpoint: its cfg lacks '{name}'.")
            value = value[part]
        return value


def facts_of(cfg: Entries) -> UVAFacts:
    """The facts of a checkpoint.

    Raises:
        UserError: an entry is missing.
    """
    observed = cfg("model.policy.shape_meta.obs")
    pictures = {k: v["shape"] for k, v in observed.items() if v.get("type", "low_dim") == "rgb"}
    return UVAFacts(
        task=cfg("task.name"),
        cameras={k: (shape[-2], shape[-1]) for k, shape in pictures.items()},
        states={k: math.prod(v["shape"]) for k, v in observed.items() if k not in pictures},
        execute=cfg("model.policy.n_action_steps"),
        first_action_now=bool(cfg("model.policy.shift_action")),
        uneven_history=bool(cfg("model.policy.different_history_freq")),
        iterations=cfg(f"{TRANSFORMER}.num_iter"),
        temperature=float(cfg(f"{TRANSFORMER}.temperature")),
        guidance=float(cfg(f"{TRANSFORMER}.cfg")),
    )


class Shapes:
    """Shapes of the `model.*` tensors, without that prefix."""

    def __init__(self, state: Mapping[str, Tensor], path: str) -> None:
        self.state = state
        self.path = path

    def __call__(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            UserError: it is not there.
        """
        if name not in self.state:
            raise UserError(f"{self.path} is no UVA checkpoint: it lacks the tensor model.{name}.")
        return tuple(self.state[name].shape)

    def has(self, module: str) -> bool:
        return any(name.startswith(f"{module}.") for name in self.state)

    def count(self, modules: str) -> int:
        """Entries of a list of modules."""
        start = len(modules) + 1
        return len(
            {name[start:].split(".")[0] for name in self.state if name.startswith(f"{modules}.")}
        )


def uva_config(
    state: Mapping[str, Tensor],
    cfg: Entries,
    *,
    heads: tuple[int, int] | None,
    cameras: Sequence[str],
) -> UVAConfig:
    """Config of the model whose weights are `state`.

    Args:
        state: the `model.*` tensors without that prefix.
        cfg: the checkpoint's config.
        heads: attention heads of encoder and decoder; None looks the size's name up.
        cameras: what to call the camera, and the wrist camera if there is one.

    Raises:
        UserError: a tensor or an entry is missing, both contradict each other, or the heads are not
            known.
    """
    shapes = Shapes(state, cfg.path)
    width, token_channels = shapes("z_proj.weight")
    patch = cfg(f"{TRANSFORMER}.patch_size")
    side = cfg(f"{TRANSFORMER}.img_size") // cfg(f"{TRANSFORMER}.vae_stride")  # of the latents
    action_dim = shapes("action_proj_cond.weight")[1]
    require_equal(
        {
            "vae_embed_dim * patch_size^2": (
                cfg(f"{TRANSFORMER}.vae_embed_dim") * patch**2,
                token_channels,
            ),
            "(img_size / vae_stride / patch_size)^2": (
                (side // patch) ** 2,
                shapes("spatial_pos_embed")[1],
            ),
            "shape_meta.action.shape": (
                list(cfg("model.policy.shape_meta.action.shape")),
                [action_dim],
            ),
        },
        cfg.path,
    )
    encoder_heads, decoder_heads = _attention_heads(cfg, heads)
    return UVAConfig(
        latent_channels=token_channels // patch**2,
        grid=(side, side),
        patch=patch,
        frames=shapes("temporal_pos_embed")[1],
        uneven_context=bool(cfg("model.policy.different_history_freq")),
        horizon=HORIZON,
        first_now=bool(cfg("model.policy.shift_action")),
        action_dim=action_dim,
        width=width,
        depth=shapes.count("encoder_blocks"),
        heads=encoder_heads,
        decoder_width=shapes("decoder_embed.weight")[0],
        decoder_depth=shapes.count("decoder_blocks"),
        decoder_heads=decoder_heads,
        mlp_ratio=shapes("encoder_blocks.0.mlp.fc1.weight")[0] / width,
        dropout=float(cfg(f"{TRANSFORMER}.proj_dropout")),
        attention_dropout=float(cfg(f"{TRANSFORMER}.attn_dropout")),
        mask_ratio_min=float(cfg(f"{TRANSFORMER}.mask_ratio_min")),
        text_drop=float(cfg(f"{TRANSFORMER}.label_drop_prob")),
        past_action_keep=float(cfg("model.policy.action_mask_ratio")),
        video_sampling_steps=str(cfg(f"{TRANSFORMER}.num_sampling_steps")),
        action_sampling_steps=str(cfg(f"{TRANSFORMER}.act_diff_testing_steps")),
        decay_embeddings=True,
        checkpointing=bool(cfg(f"{TRANSFORMER}.grad_checkpointing")),
        **_heads(shapes, cfg),
        **_conditions(shapes, cfg, cameras, width),
    )


def _heads(shapes: Shapes, cfg: Entries) -> dict[str, Any]:
    video, action = shapes.has("diffloss"), shapes.has("diffactloss")
    values: dict[str, Any] = {
        "predict_video": video,
        "predict_action": action,
        "modes": _modes(cfg, video, action),
    }
    for has_head, module, entry, head in (
        (video, "diffloss", "diffloss", "video"),
        (action, "diffactloss", "diffloss_act", "action"),
    ):
        if has_head:
            depth = shapes.count(f"{module}.net.res_blocks")
            width = shapes(f"{module}.net.cond_embed.weight")[0]
            in_cfg = (cfg(f"{TRANSFORMER}.{entry}_d"), cfg(f"{TRANSFORMER}.{entry}_w"))
            require_equal({f"{entry}_d, {entry}_w": (in_cfg, (depth, width))}, cfg.path)
            values |= {f"{head}_head_depth": depth, f"{head}_head_width": width}
    if action:
        values["readout"] = _readout(cfg)
        # The reference samples from 1000 steps whatever it trained on; here it is the trained
        # number for both.
        values["action_diffusion_steps"] = cfg(f"{TRANSFORMER}.act_diff_training_steps")
    return values


def _conditions(shapes: Shapes, cfg: Entries, cameras: Sequence[str], width: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if shapes.has("text_proj_cond"):
        values |= {
            "text_dim": shapes("text_proj_cond.weight")[1],
            "text_tokens": shapes("text_pos_embed")[1],
        }
    if shapes.has("proprioception_proj_cond"):
        width_in = shapes("proprioception_proj_cond.weight")[1]
        values["proprioception"] = _states(STATES, width_in, cfg)
        # With uneven times, only the states of the shown frames are read.
        uneven = cfg("model.policy.different_history_freq")
        values["proprioception_steps"] = shapes("temporal_pos_embed")[1] if uneven else PAST_STEPS
    if shapes.has("diffproploss"):
        target = shapes("diffproploss.net.input_proj.weight")[1]
        values["proprioception_prediction"] = _states(PREDICTED_STATES, target, cfg)
    values["past_actions"] = shapes.has("history_action_proj_cond")
    foreseen = shapes.has("z_proj_wrist")
    # Every model with proprioception has a projection of the wrist image; whether it is used, only
    # the number of streams that are joined tells.
    joined = shapes("proj_cond_x_layer.weight")[1] // width
    # Always joined: video, context and action.
    others = 3 + values["past_actions"] + foreseen + ("proprioception" in values)
    shown = joined - others == 1
    wrist = shown or foreseen
    if len(cameras) < 1 + wrist:
        raise UserError(
            f"{cfg.path} watches {1 + wrist} cameras, found names for {len(cameras)}; name each."
        )
    values["camera"] = cameras[0]
    if wrist:
        values |= {"wrist_camera": cameras[1], "wrist_context": shown, "wrist_prediction": foreseen}
    return values


def require_equal(expected: Mapping[str, tuple[Any, Any]], path: str) -> None:
    """Raise a `UserError` for the first {entry: (config, tensors)} whose two sides differ."""
    for entry, (in_cfg, in_tensors) in expected.items():
        if in_cfg != in_tensors:
            raise UserError(
                f"{path} contradicts itself: its cfg has {entry} = {in_cfg}, its "
                f"tensors have {in_tensors}."
            )


def _attention_heads(cfg: Entries, heads: tuple[int, int] | None) -> tuple[int, int]:
    name = cfg(f"{TRANSFORMER}.model_size")
    if heads is not None:
        return heads
    if name not in HEADS:
        raise UserError(
            f"{cfg.path} has the model size '{name}', whose attention heads are not known; give "
            f"those of encoder and decoder (sizes with known heads: {', '.join(HEADS)})."
        )
    return HEADS[name]


def _modes(cfg: Entries, video: bool, action: bool) -> dict[str, float]:
    chosen = cfg("model.policy.selected_training_mode")
    if chosen == "policy_model_full_dynamics_model":
        names = ["policy_model", "full_dynamic_model"]
    else:
        names = [chosen] if chosen is not None else list(cfg("task.task_modes")) or list(MODES)
    if unknown := [n for n in names if n not in MODES]:
        raise UserError(
            f"{cfg.path} trains the unknown mode '{unknown[0]}'; known ones are {', '.join(MODES)}."
        )
    # Without one of the heads, only the modes that do without it could have been trained.
    needs_video = {"video", "dynamics", "joint"}
    needs_action = {"policy", "inverse", "joint"}
    lacking = (set() if video else needs_video) | (set() if action else needs_action)
    possible = [MODES[n] for n in names if MODES[n] not in lacking]
    return dict.fromkeys(possible or ["video" if video else "policy"], 1.0)


def _readout(cfg: Entries) -> Any:
    kind = cfg("model.policy.action_model_params.act_model_type")
    readouts = {"conv_fc": "conv_fc", "conv_ori": "conv_ori", "conv2": "conv", "fc2": "fc"}
    if kind not in readouts:
        raise UserError(
            f"{cfg.path} has the unknown act_model_type '{kind}'; known ones are "
            f"{', '.join(readouts)}."
        )
    return readouts[kind]


def _states(candidates: Sequence[dict[str, int]], width: int, cfg: Entries) -> dict[str, int]:
    for streams in candidates:
        if sum(streams.values()) == width:
            return streams
    raise UserError(
        f"{cfg.path} takes robot states of {width} numbers, which belong to none of "
        "its published tasks."
    )
