"""A VaViM or VaVAM checkpoint's config, checked against the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foreact.checkpoints.format import difference
from foreact.errors import UserError
from foreact.families.driving.released.names import (
    HEAD,
    BaseShapes,
    expert_base_shapes,
    expert_names,
    vavim_base_shapes,
    vavim_names,
)
from foreact.families.driving.vavam import ExpertConfig, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.released.wrappers import same_tensor

RELEASED_GRID = {576: (18, 32)}
"""Tokens per frame -> rows and columns, where it is known; the files only tell the product."""
FLOW_TIMES: dict[str, Literal["beta", "stratified"]] = {"beta": "beta", "uniform": "stratified"}
"""The reference's names for how training draws times, and ours."""


class Reading:
    """One file being read: its content, notes for the report, and errors that name the file."""

    def __init__(self, path: Path, payload: Mapping[str, Any]) -> None:
        self.path = path
        self.payload = payload
        self.notes: list[str] = []
        self.used: set[str] = set()

    def error(self, text: str) -> UserError:
        return UserError(f"{self.path} {text}")

    def conf(self, *names: str) -> Conf:
        """The config at hyper_parameters.a.b."""
        value: Any = self.payload.get("hyper_parameters")
        where = ".".join(("hyper_parameters", *names))
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping):
            raise self.error(
                f"lacks {where}, without which its tensors do not tell the size of a head."
            )
        return Conf(value, where, self)

    def base_shapes(self, keys: Sequence[str]) -> Mapping[str, Any] | None:
        """The shapes of muP's base model, where the file has them."""
        key = next((k for k in keys if isinstance(self.payload.get(k), Mapping)), None)
        if key is None:
            return None
        self.used.add(key)
        return self.payload[key]


class Conf:
    """A config whose entries are compared with what the tensors say."""

    def __init__(self, raw: Mapping[str, Any], where: str, reading: Reading) -> None:
        self.raw = raw
        self.where = where
        self.reading = reading

    def __call__(self, name: str, default: Any = None) -> Any:
        """An entry, or the default of the reference's constructor."""
        value = self.raw.get(name, default)
        if value is None:
            raise self.reading.error(f"lacks {self.where}.{name}.")
        return value

    def require(self, name: str, value: Any) -> None:
        """Raise a `UserError` where the config has another value than the tensors tell."""
        if self.raw.get(name, value) != value:
            raise self.reading.error(
                f"contradicts itself: {self.where}.{name} = {self.raw[name]}, its tensors have "
                f"{value}."
            )


def read_video(
    reading: Reading,
    conf: Conf,
    tensors: dict[str, Tensor],
    shape_keys: Sequence[str],
    grid: tuple[int, int] | None,
    camera: str,
) -> tuple[VaViMConfig, dict[str, Tensor]]:
    """Config of a video model and its tensors in our names.

    Args:
        reading: the file.
        conf: the constructor's arguments, as the file has them.
        tensors: in the reference's names, without prefix.
        shape_keys: entries of the file that may hold the shapes of muP's base model.
        grid, camera: as in `read_vavam_checkpoint`.
    """
    vocab, width = _shape(reading, tensors, "transformer.wie.weight")
    per_frame, _ = _shape(reading, tensors, "transformer.wse.weight")
    frames, _ = _shape(reading, tensors, "transformer.wte.weight")
    hidden, _ = _shape(reading, tensors, "transformer.h.0.mlp.c_fc.weight")
    layers = _layers(tensors)
    sizes = {
        "vocabulary_size": vocab,
        "embedding_dim": width,
        "nb_tokens_per_timestep": per_frame,
        "nb_timesteps": frames,
        "nb_layers": layers,
        "mlp_dim_mult": hidden // width,
    }
    for name, value in sizes.items():
        conf.require(name, value)
    tied = bool(conf("output_tied", True))
    if tied and HEAD in tensors:
        if not same_tensor(tensors.pop(HEAD), tensors["transformer.wie.weight"]):
            raise reading.error(
                f"contradicts itself: {conf.where}.output_tied is true, but {HEAD} is no wie."
            )
        reading.notes.append(f"left out: {HEAD} (tied, the same as transformer.wie.weight)")
    shapes = reading.base_shapes(shape_keys)
    config = VaViMConfig(
        width=width,
        heads=_heads(conf, width),
        layers=layers,
        mlp_ratio=hidden // width,
        vocab=vocab,
        frames=frames,
        grid=_grid(reading, per_frame, grid),
        base_width=_base(shapes, "transformer.wie.weight", VaViMConfig.base_width),
        init_std=float(conf("init_std", 0.02)),
        tied=tied,
        output_scale=float(conf("output_scale", 1.0)),
        attention_scale=float(conf("attn_scale", 1.0)),
        camera=camera,
    )
    base = f"width {config.base_width}"
    _check_base_shapes(reading, shapes, shape_keys, vavim_base_shapes(config), base)
    with torch.device("meta"):
        module = VaViM(config)
    return config, _renamed(reading, tensors, vavim_names(layers, tied=tied), module)


def read_video_action(
    reading: Reading, tensors: dict[str, Tensor], grid: tuple[int, int] | None, camera: str
) -> tuple[VaVAMConfig, dict[str, Tensor]]:
    """Config of a video-action model and its tensors in our names."""
    conf, action = reading.conf("vam_conf"), reading.conf("vam_conf", "action_config")
    parts = {
        prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix in ("gpt.", "action_expert.")
    }
    if unknown := [k for k in tensors if not k.startswith(tuple(parts))]:
        raise reading.error(
            f"holds {len(unknown)} entries of no known part: {', '.join(unknown[:5])}."
        )
    scale = float(action("attn_scale", 1.0))
    gpt = reading.conf("vam_conf", "gpt_config")
    if gpt("attn_scale", 1.0) != scale:
        reading.notes.append(
            f"attention_scale of the video: {scale:g}, the expert's, which the reference puts first"
        )
    # Inside its joint model the reference applies the expert's factor on the scores to the video
    # too.
    gpt = Conf({**gpt.raw, "attn_scale": scale}, gpt.where, reading)
    video, state = read_video(reading, gpt, parts["gpt."], ("gpt_mup_base_shapes",), grid, camera)

    weights = parts["action_expert."]
    width, action_dim = _shape(reading, weights, "action_encoder.linear_1.weight")
    horizon, _ = _shape(reading, weights, "action_encoder.action_positional_embedding.weight")
    commands, _ = _shape(reading, weights, "action_encoder.command_embedding.weight")
    _, attention = _shape(reading, weights, "transformer.h.0.attn.c_proj.weight")
    hidden, _ = _shape(reading, weights, "transformer.h.0.mlp.c_fc.weight")
    sizes = {
        "embedding_dim": width,
        "attention_dim": attention,
        "action_dim": action_dim,
        "action_horizon": horizon,
        "number_high_level_command": commands,
        "nb_layers": _layers(weights),
        "mlp_dim_mult": hidden // width,
        "dim_heads": video.width // video.heads,
    }
    for name, value in sizes.items():
        action.require(name, value)
    keys = ("action_mup_base_shapes", "action_mup_base_shapess")  # the reference writes the second
    shapes = reading.base_shapes(keys)
    expert = ExpertConfig(
        width=width,
        mlp_ratio=hidden // width,
        horizon=horizon,
        action_dim=action_dim,
        commands=commands,
        max_period=float(action("max_period", 1e4)),
        base_width=_base(shapes, "action_encoder.linear_1.weight", ExpertConfig.base_width, side=0),
        base_attention=_base(
            shapes, "transformer.h.0.attn.c_proj.weight", ExpertConfig.base_attention
        ),
        init_std=float(action("init_std", 0.02)),
        output_scale=float(action("output_scale", 1.0)),
        attention_scale=scale,
    )
    base = f"width {expert.base_width}, attention {expert.base_attention}"
    _check_base_shapes(reading, shapes, keys, expert_base_shapes(expert, video.layers), base)
    context = conf("finetuning_timesteps", video.frames)
    clip, scaling = conf.raw.get("final_action_clip_value"), float(conf("action_scaling"))
    config = VaVAMConfig(
        vavim=video,
        expert=expert,
        action_scale=scaling,
        sigma=float(conf("flow_sig_min")),
        time=_flow_time(reading),
        context=None if context == video.frames else context,
        steps=conf("num_inference_steps", 10),
        clip=None if clip is None else float(clip) * scaling,  # in metres, as everywhere here
    )
    with torch.device("meta"):
        module = VaVAM(config).expert
    names = expert_names(video.layers)
    state = {f"vavim.{k}": v for k, v in state.items()}
    state |= {f"expert.{k}": v for k, v in _renamed(reading, weights, names, module).items()}
    return config, state


def _shape(reading: Reading, tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in tensors or tensors[name].ndim != 2:
        raise reading.error(f"lacks the matrix {name}; copy it again.")
    rows, columns = tensors[name].shape
    return rows, columns


def _layers(tensors: Mapping[str, Tensor]) -> int:
    return len({m[1] for k in tensors if (m := re.match(r"transformer\.h\.(\d+)\.", k))})


def _heads(conf: Conf, width: int) -> int:
    size = conf("dim_heads")
    if type(size) is not int or size < 1 or width % size:
        raise conf.reading.error(
            f"contradicts itself: {conf.where}.dim_heads = {size}, its tensors have width {width}."
        )
    return width // size


def _grid(reading: Reading, per_frame: int, asked: tuple[int, int] | None) -> tuple[int, int]:
    grid = asked or RELEASED_GRID.get(per_frame)
    if grid is None:
        raise reading.error(
            f"has {per_frame} tokens per frame, whose rows and columns it does not tell; give the "
            "grid, such as 18 32."
        )
    if grid[0] * grid[1] != per_frame:
        raise reading.error(
            f"has {per_frame} tokens per frame, which is not the grid {grid[0]} x {grid[1]} given."
        )
    return grid


def _base(shapes: Mapping[str, Any] | None, name: str, default: int, *, side: int = 1) -> int:
    """A side of the tensor `name` in muP's base model; the default where no such shape is told."""
    shape = () if shapes is None else shapes.get(name, ())
    told = len(shape) == 2 and type(shape[side]) is int and shape[side] > 0
    return shape[side] if told else default


def _check_base_shapes(
    reading: Reading,
    shapes: Mapping[str, Any] | None,
    keys: Sequence[str],
    expected: BaseShapes,
    base: str,
) -> None:
    """Compare the file's base shapes with the `expected` ones of the `base` model, in words."""
    if shapes is None:
        reading.notes.append(f"no {keys[0]} in the file: muP base {base} taken, as published")
    elif problem := difference(expected, {k: tuple(v) for k, v in shapes.items()}):
        raise reading.error(
            f"contradicts itself: its {keys[0]} are not those of base {base}: {problem}."
        )
    else:
        reading.notes.append(f"muP base {base}")


def _flow_time(reading: Reading) -> Literal["beta", "stratified"]:
    conf = reading.conf()
    name = conf("flow_sampling", "beta")
    if name not in FLOW_TIMES:
        raise reading.error(
            f"draws times by the unknown flow_sampling '{name}'; known are {', '.join(FLOW_TIMES)}."
        )
    shape = (conf("flow_alpha", 1.5), conf("flow_beta", 1.0))
    if name == "beta" and shape != (1.5, 1.0):
        reading.notes.append(
            f"trained with times from Beta{shape}; training it further draws from Beta(1.5, 1)"
        )
    return FLOW_TIMES[name]


def _renamed(
    reading: Reading, tensors: Mapping[str, Tensor], names: Mapping[str, str], module: nn.Module
) -> dict[str, Tensor]:
    """Tensors under our names, complete and of the module's shapes."""
    expected = {names[k]: tuple(v.shape) for k, v in module.state_dict().items()}
    if problem := difference(expected, {k: tuple(v.shape) for k, v in tensors.items()}):
        raise reading.error(f"does not hold the tensors that its config asks for: {problem}.")
    return {name: tensors[reference_name] for name, reference_name in names.items()}
