"""Checkpoints as UVA's authors write them, of models of any size and kind."""

from __future__ import annotations

import copy
from typing import Any

import torch

from foreact.families.uva.model import UVA, UVAConfig
from foreact.families.uva.released.names import to_reference

MICRO: dict[str, Any] = {
    "camera": "cam",
    "latent_channels": 4,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "decoder_width": 8,
    "decoder_depth": 1,
    "decoder_heads": 1,
    "video_head_depth": 1,
    "video_head_width": 8,
    "action_head_depth": 2,
    "action_head_width": 12,
    "decay_embeddings": True,
}
MODE_NAMES = {
    "video_model": "video",
    "dynamic_model": "dynamics",
    "policy_model": "policy",
    "inverse_model": "inverse",
    "full_dynamic_model": "joint",
}


def reference_like(
    config: UVAConfig, payload: dict[str, Any], *, uneven: bool = False, size: int = 96
) -> dict[str, Any]:
    """What the reference would have saved of a model of `config`.

    Args:
        config: of the model, whose weights are drawn.
        payload: a file of the reference, for its other entries and its autoencoder.
        uneven: whether it was trained on past frames at random times.
        size: of the cameras' pictures.
    """
    torch.manual_seed(0)
    theirs = to_reference(UVA(config).state_dict(), config)
    cfg = copy.deepcopy(payload["cfg"])
    policy = cfg["model"]["policy"]
    params = policy["autoregressive_model_params"]
    params["diffloss_d"], params["diffloss_w"] = config.video_head_depth, config.video_head_width
    params["diffloss_act_d"], params["diffloss_act_w"] = (
        config.action_head_depth,
        config.action_head_width,
    )
    params |= {
        "num_sampling_steps": "100",
        "act_diff_testing_steps": "100",
        "attn_dropout": 0.1,
        "proj_dropout": 0.1,
    }
    policy["shape_meta"]["action"]["shape"] = [config.action_dim]
    policy["different_history_freq"] = uneven or None
    policy["shift_action"] = config.first_now
    cameras = [config.camera] + ([config.wrist_camera] if config.wrist_camera else [])
    policy["shape_meta"]["obs"] = {c: {"shape": [3, size, size], "type": "rgb"} for c in cameras}
    picked = [{v: k for k, v in MODE_NAMES.items()}[m] for m in config.modes]
    cfg["task"]["task_modes"] = picked
    vae = {k: v for k, v in payload["state_dicts"]["model"].items() if k.startswith("vae_model.")}
    return {
        "cfg": cfg,
        "state_dicts": {"model": {f"model.{k}": v for k, v in theirs.items()} | vae},
        "pickles": {},
    }
