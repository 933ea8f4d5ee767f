"""BEiT v2's VQ-KD tokenizer in its own files (`vqkd_encoder_base_decoder_*.pth`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from foreact.errors import UserError
from foreact.families.codes.released.vqkd_names import TRAINING_ONLY, UNREAD, to_native
from foreact.released.content import read_content
from foreact.released.layouts import (
    Converted,
    Layout,
    Read,
    Request,
    option,
    require_whole,
    write_converted,
)
from foreact.released.wrappers import find_entry, find_state
from foreact.tokenizers.images import Preprocessing
from foreact.tokenizers.vqkd import VQKD, VQKDConfig

ANCHORS = ("encode_task_layer.0.weight",)
HEAD = 64  # channels of an attention head in every published size


def is_vqkd(payload: Any) -> bool:
    """Whether a file holds a VQ-KD tokenizer: bare, or under `model` or `state_dict`."""
    return find_entry(payload, ANCHORS) is not None


def read_vqkd(
    path: Path,
    payload: Any = None,
    *,
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
    preprocessing: Preprocessing = "legacy",
) -> Read[VQKDConfig]:
    """Read a VQ-KD tokenizer.

    Args:
        path: the file.
        payload: its content, where it has been read already.
        grid: rows and columns of codes that it will be used with; None: of the pictures it was
            trained on.
        heads: attention heads, which the file does not tell; None: one per 64 channels, as in every
            published size.
        preprocessing: what the network is shown. Video Occupancy Models made their stored codes
            with "legacy" values; BEiT v2 trained it on "symmetric" ones.

    Raises:
        UserError: the file is missing, unreadable, holds something else, or not all of the
            tokenizer.
    """
    payload = read_content(path) if payload is None else payload
    held = find_state(payload, ANCHORS, path)
    if held is None:
        raise UserError(
            f"{path} should hold a VQ-KD tokenizer under the key 'model' or "
            "'state_dict', found none."
        )
    reference_state = held.tensors
    state = to_native(reference_state)
    config = config_of(state, path, grid=grid, heads=heads, preprocessing=preprocessing)
    require_whole(VQKD, config, state, f"{path} holds no whole VQ-KD tokenizer")
    used = f"tokenizer: {len(state)} of {len(reference_state)} tensors used"
    report = "\n".join([f"{used}; {preprocessing} preprocessing", *held.notes])
    if training := sum(key.startswith(TRAINING_ONLY) for key in reference_state):
        report += f"\nleft out: {training} tensors of training ({', '.join(TRAINING_ONLY)})"
    if unread := sum(key in UNREAD for key in reference_state):
        report += f"\nleft out: {unread} buffers that the reference never reads"
    if others := held.unread(payload):
        report += f"\nnot read: {', '.join(others)}"
    return Read(config=config, state=state, report=report)


def config_of(
    state: Mapping[str, Tensor],
    path: Path,
    *,
    grid: tuple[int, int] | None,
    heads: int | None,
    preprocessing: Preprocessing,
) -> VQKDConfig:
    """Sizes from shapes; training constants, which they do not tell, are as published."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in state or state[name].ndim != dims:
            raise UserError(f"{path} holds no whole VQ-KD tokenizer: it lacks what we call {name}.")
        return tuple(state[name].shape)

    def depth(side: str) -> int:
        return len({k.split(".")[2] for k in state if k.startswith(f"{side}.blocks.")})

    width, _, patch, _ = shape("encoder.patches.weight", 4)
    side = math.isqrt(shape("encoder.positions", 3)[1] - 1)
    codes, code_dim = shape("quantizer.weight", 2)
    if heads is None:
        if width % HEAD:
            raise UserError(
                f"{path} is {width} channels wide, which no published size is; give "
                "its attention heads."
            )
        heads = width // HEAD
    rows, columns = (side, side) if grid is None else grid
    return VQKDConfig(
        patch=patch,
        width=width,
        depth=depth("encoder"),
        decoder_depth=depth("decoder"),
        heads=heads,
        mlp_ratio=shape("encoder.blocks.0.up.weight", 2)[0] // width,
        codes=codes,
        code_dim=code_dim,
        features=shape("to_features.2.weight", 2)[0],
        position_grid=(side, side),
        image_size=(rows * patch, columns * patch),
        preprocessing=preprocessing,
    )


@dataclass(frozen=True, kw_only=True)
class VQKDOptions:
    grid: tuple[int, int] | None = option(
        "rows and columns of codes that it will be used with; else as trained"
    )
    preprocessing: Preprocessing | None = option(
        "what the network is shown: legacy, as for VOC's codes (the default), or symmetric, as "
        "BEiT v2 means it"
    )


def _convert(request: Request, options: VQKDOptions) -> Converted:
    read = read_vqkd(
        request.src,
        request.payload,
        grid=options.grid,
        preprocessing=options.preprocessing or "legacy",
    )
    return write_converted(
        request, family="vqkd", config=read.config, state=read.state, report=read.report
    )


LAYOUTS = (
    Layout(
        name="vqkd",
        title="BEiT v2's VQ-KD",
        files=".pth, .safetensors",
        mark="encode_task_layer",
        recognise=is_vqkd,
        convert=_convert,
        options=VQKDOptions,
    ),
)
