"""Our VaViM and VaVAM checkpoints -> one file in the layout that the reference's own loaders read.

Such a file is a pickle that names classes of omegaconf and mup. Neither package is needed here:
classes of the same name and attributes stand for them, and the pickler writes their names without
looking for them.
"""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreact.checkpoints.configs import config_from_json
from foreact.checkpoints.format import Checkpoint, load_checkpoint
from foreact.errors import UserError
from foreact.families.driving.released.config import FLOW_TIMES
from foreact.families.driving.released.names import (
    HEAD,
    BaseShapes,
    expert_base_shapes,
    expert_names,
    vavim_base_shapes,
    vavim_names,
)
from foreact.families.driving.vavam import VaVAMConfig, frame_mask
from foreact.families.driving.vavim import VaViMConfig

LIGHTNING = "2.4.0"
"""The version that the reference pins; Lightning asks for one when it opens a file."""


def write_vavam_checkpoint(src: Path, dst: Path) -> str:
    """Write a VaViM or VaVAM checkpoint folder as a weights-only Lightning checkpoint.

    Args:
        src: our folder.
        dst: the file to write, such as x.ckpt or x.pt.

    Returns:
        What was written, in lines.

    Raises:
        UserError: the folder is broken or of another family, it holds something the reference
            cannot express, or the file cannot be written; nothing half-written is left.
    """
    checkpoint = load_checkpoint(src, of=("vavim", "vavam"))
    if checkpoint.family == "vavim":
        content = _vavim(checkpoint, config_from_json(VaViMConfig, checkpoint.config))
    else:
        content = _vavam(checkpoint, config_from_json(VaVAMConfig, checkpoint.config))
    dst = Path(dst)
    if dst.is_dir():
        raise UserError(f"{dst} is a folder; name the file to write, such as {dst / 'model.ckpt'}.")
    temporary = dst.with_name(f".{dst.name}.tmp")
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(content, file, pickle_module=_PICKLE, pickle_protocol=2)
        os.replace(temporary, dst)
    except OSError as error:
        raise UserError(
            f"{dst} could not be written ({error}); free some space or check the rights."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return (
        f"{dst}: {checkpoint.family}, {len(content['state_dict'])} tensors in the reference's names"
    )


def _vavim(checkpoint: Checkpoint, config: VaViMConfig) -> dict[str, Any]:
    hyper_parameters = {
        "network": _dict_config(_network(config), "network"),
        "optimizer_conf": None,
        "scheduler_conf": None,
        "compile": False,
        "log_norm": False,
        "mup_base_shapes": _video_shape_file(config),
        "statedict_ckpt_path": None,
        "is_finetuning": False,
    }
    state = {f"network.{k}": v for k, v in _video_state(checkpoint.state, config, "").items()}
    return _content(
        checkpoint,
        state,
        hyper_parameters,
        "vam.video_pretraining.next_token_predictor.NextTokenPredictor",
        mup_base_shapes=_base_shapes(vavim_base_shapes(config)),
    )


def _vavam(checkpoint: Checkpoint, config: VaVAMConfig) -> dict[str, Any]:
    video, expert = config.vavim, config.expert
    if video.attention_scale != expert.attention_scale:
        raise UserError(
            f"{checkpoint.path} scales attention by {video.attention_scale:g} in the video and by "
            f"{expert.attention_scale:g} in the expert; the reference knows one factor for both."
        )
    sampling = next((theirs for theirs, ours in FLOW_TIMES.items() if ours == config.time), None)
    if sampling is None:
        raise UserError(
            f"{checkpoint.path} draws times '{config.time}', which the reference does not know."
        )
    context = config.context or video.frames
    clip = None if config.clip is None else config.clip / config.action_scale
    expert_shapes = (
        f"actionexpert_{video.layers}layers_baseattentiondim{expert.base_attention}"
        f"_baseembeddingdim{expert.base_width}.bsh"
    )
    vam_conf = {
        "_target_": "vam.action_expert.VideoActionModel",
        "_recursive_": False,
        "finetuning_timesteps": context,
        "num_inference_steps": config.steps,
        "flow_sig_min": config.sigma,
        "final_action_clip_value": clip,
        "action_scaling": config.action_scale,
        "gpt_mup_base_shapes": _video_shape_file(video),
        "gpt_checkpoint_path": None,
        "gpt_config": _network(video),
        "action_mup_base_shapes": f"./mup_shapes/{expert_shapes}",
        "action_checkpoint_path": None,
        "action_config": {
            "_target_": "vam.action_expert.MupActionExpert",
            "embedding_dim": expert.width,
            "attention_dim": video.width,
            "action_dim": expert.action_dim,
            "action_horizon": expert.horizon,
            "number_high_level_command": expert.commands,
            "max_period": expert.max_period,
            "dim_heads": video.width // video.heads,
            "nb_layers": video.layers,
            "mlp_dim_mult": expert.mlp_ratio,
            "init_std": expert.init_std,
            "output_scale": expert.output_scale,
            "attn_scale": expert.attention_scale,
        },
    }
    hyper_parameters = {
        "vam_conf": _dict_config(vam_conf, "vam_conf"),
        "optimizer_conf": None,
        "scheduler_conf": None,
        "flow_sampling": sampling,
        "flow_alpha": 1.5,
        "flow_beta": 1.0,
        "compile": False,
        "log_norm": False,
        "grad_logging": 0,
    }
    parts = {f"gpt.{k}": v for k, v in _video_state(checkpoint.state, video, "vavim.").items()}
    parts |= {
        f"action_expert.{theirs}": checkpoint.state[f"expert.{ours}"]
        for ours, theirs in expert_names(video.layers).items()
    }
    # The reference holds both parts itself, and once more in its joint model.
    state = {"vam.attn_mask": _mask(context, video.tokens_per_frame, expert.horizon)}
    state |= {f"vam.{name}": tensor for name, tensor in parts.items()}
    state |= {f"vam.joint_model.{name}": tensor for name, tensor in parts.items()}
    return _content(
        checkpoint,
        state,
        hyper_parameters,
        "vam.action_expert.action_learning.ActionLearning",
        gpt_mup_base_shapes=_base_shapes(vavim_base_shapes(video)),
        # The reference's spelling.
        action_mup_base_shapess=_base_shapes(expert_base_shapes(expert, video.layers)),
    )


def _content(
    checkpoint: Checkpoint,
    state: Mapping[str, Tensor],
    hyper_parameters: dict[str, Any],
    model: str,
    **shapes: Any,
) -> dict[str, Any]:
    facts = checkpoint.card.get("facts") or {}
    return {
        "epoch": int(facts.get("epoch", 0)),
        "global_step": int(facts.get("global_step", 0)),
        "pytorch-lightning_version": LIGHTNING,
        "state_dict": collections.OrderedDict(state),
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
        "git_sha": None,
        "model_class_path": model,
        **shapes,
    }


def _network(config: VaViMConfig) -> dict[str, Any]:
    return {
        "_target_": "vam.video_pretraining.mup_gpt2.MupGPT2",
        "embedding_dim": config.width,
        "dim_heads": config.width // config.heads,
        "nb_layers": config.layers,
        "mlp_dim_mult": config.mlp_ratio,
        "vocabulary_size": config.vocab,
        "nb_timesteps": config.frames,
        "nb_tokens_per_timestep": config.tokens_per_frame,
        "init_std": config.init_std,
        "output_tied": config.tied,
        "output_scale": config.output_scale,
        "attn_scale": config.attention_scale,
    }


def _video_shape_file(config: VaViMConfig) -> str:
    # The reference opens it in its own repository, which has those of the published base models.
    return f"./mup_shapes/gpt2_{config.layers}layers_basewidth{config.base_width}.bsh"


def _video_state(
    state: Mapping[str, Tensor], config: VaViMConfig, prefix: str
) -> dict[str, Tensor]:
    """Tensors in the reference's names, of which a tied head and the token embedding are one."""
    names = vavim_names(config.layers, tied=config.tied)
    tensors = {theirs: state[f"{prefix}{ours}"] for ours, theirs in names.items()}
    return tensors | ({HEAD: tensors["transformer.wie.weight"]} if config.tied else {})


def _mask(frames: int, tokens: int, horizon: int) -> Tensor:
    """What may attend to what in training, video then actions, a buffer of the reference."""
    actions = frame_mask(frames, tokens, horizon)
    mask = torch.zeros(actions.shape[1], actions.shape[1], dtype=torch.bool)
    video = frames * tokens
    mask[:video, :video] = torch.ones(video, video, dtype=torch.bool).tril()
    mask[video:] = actions
    return mask


# --- objects of classes that are not here ---------------------------------------------------------


def _foreign(module: str, name: str, base: type = object) -> Any:
    return type(name, (base,), {"__module__": module})


_DictConfig = _foreign("omegaconf.dictconfig", "DictConfig")
_AnyNode = _foreign("omegaconf.nodes", "AnyNode")
_Metadata = _foreign("omegaconf.base", "Metadata")
_ContainerMetadata = _foreign("omegaconf.base", "ContainerMetadata")
_InfDim = _foreign("mup.infshape", "InfDim")
_InfShape = _foreign("mup.infshape", "InfShape", tuple)
_FOREIGN = (_DictConfig, _AnyNode, _Metadata, _ContainerMetadata, _InfDim, _InfShape)


_PythonPickler: Any = vars(pickle)["_Pickler"]  # the one in C cannot be told names


class _Pickler(_PythonPickler):
    """Writes the classes above by name, though no such module can be imported."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj in _FOREIGN:
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)


_PICKLE = types.SimpleNamespace(__name__="pickle", Pickler=_Pickler)


def _instance(kind: Any, **attributes: Any) -> Any:
    instance = kind()
    vars(instance).update(attributes)
    return instance


def _metadata(kind: Any, object_type: Any, key: str | None, **more: Any) -> Any:
    return _instance(
        kind,
        ref_type=typing.Any,
        object_type=object_type,
        optional=True,
        key=key,
        flags={},
        flags_root=False,
        resolver_cache=collections.defaultdict(dict),
        **more,
    )


def _dict_config(raw: Mapping[str, Any], key: str | None = None, parent: Any = None) -> Any:
    """A nested dict of plain values as an omegaconf DictConfig."""
    metadata = _metadata(
        _ContainerMetadata, dict, key, key_type=typing.Any, element_type=typing.Any
    )
    config = _instance(_DictConfig, _metadata=metadata, _parent=parent)
    vars(config)["_content"] = {
        name: _dict_config(value, name, config)
        if isinstance(value, Mapping)
        else _any_node(value, name, config)
        for name, value in raw.items()
    }
    return config


def _any_node(value: Any, key: str, parent: Any) -> Any:
    metadata = _metadata(_Metadata, None, key)
    return _instance(_AnyNode, _metadata=metadata, _parent=parent, _val=value)


def _base_shapes(shapes: BaseShapes) -> dict[str, Any]:
    """mup's form of base shapes; each also names its last growing side."""
    inf_shapes: dict[str, Any] = {}
    for name in sorted(shapes):
        dims = [_instance(_InfDim, base_dim=side, dim=None) for side in shapes[name]]
        main = max((i for i, side in enumerate(shapes[name]) if side is not None), default=None)
        inf_shapes[name] = _InfShape(dims)
        vars(inf_shapes[name]).update(main_idx=main, main=None if main is None else dims[main])
    return inf_shapes
