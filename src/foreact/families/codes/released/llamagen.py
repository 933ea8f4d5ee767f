"""LlamaGen's image tokenizer in its own files (`vq_ds16_c2i.pt`): read strictly, written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.families.codes.released.llamagen_names import USED_CODES, to_native, to_reference
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
from foreact.tokenizers.vq import VQConfig, VQTokenizer

ANCHORS = ("encoder.conv_blocks.0.res.0.conv1.weight",)


def is_llamagen(payload: Any) -> bool:
    """Whether a file holds a LlamaGen tokenizer, known by the names of its modules."""
    return find_entry(payload, ANCHORS) is not None


def read_llamagen(
    path: Path, payload: Any = None, *, image_size: tuple[int, int] = (256, 256)
) -> Read[VQConfig]:
    """Read a LlamaGen tokenizer, whatever wraps its names.

    Args:
        path: the file.
        payload: its content, where it has been read already.
        image_size: (height, width) of the pictures it is to be used on; the file does not say.

    Raises:
        UserError: the file is missing, unreadable, holds something else, or not all of the
            tokenizer.
    """
    payload = read_content(path) if payload is None else payload
    held = find_state(payload, ANCHORS, path)
    if held is None:
        raise UserError(
            f"{path} should hold a LlamaGen tokenizer under the key 'model', found none."
        )
    reference_state = held.tensors
    state = to_native(reference_state)
    # What shapes do not tell (norm groups, normalised codes, where attention is) is as published.
    config = VQConfig(**sizes_of(state, path, "LlamaGen tokenizer"), image_size=image_size)
    require_whole(VQTokenizer, config, state, f"{path} holds no whole LlamaGen tokenizer")
    report = "\n".join(
        [f"tokenizer: {len(state)} of {len(reference_state)} tensors used", *held.notes]
    )
    if USED_CODES in reference_state:
        report += f"\nleft out: {USED_CODES}, a log of the codes that training saw last"
    if unread := held.unread(payload):
        report += f"\nnot read: {', '.join(unread)}"
    return Read(config=config, state=state, report=report)


def sizes_of(state: Mapping[str, Tensor], path: Path, label: str) -> dict[str, Any]:
    """Those entries of a `VQConfig` that the shapes of its tensors tell.

    Args:
        state: in our names.
        path, label: where they come from and what they should be, for messages.

    Raises:
        UserError: a tensor that tells one is missing.
    """

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in state or state[name].ndim != dims:
            raise UserError(f"{path} holds no whole {label}: it lacks what we call {name}.")
        return tuple(state[name].shape)

    levels = len({k.split(".")[2] for k in state if k.startswith("encoder.levels.")})
    channels = shape("encoder.conv_in.weight", 4)[0]
    widths = [shape(f"encoder.levels.{i}.blocks.0.conv2.weight", 4)[0] for i in range(levels)]
    codes, code_dim = shape("quantizer.weight", 2)
    return {
        "channels": channels,
        "multipliers": tuple(w // channels for w in widths),
        "blocks": len({k.split(".")[4] for k in state if k.startswith("encoder.levels.0.blocks.")}),
        "features": shape("encoder.conv_out.weight", 4)[0],
        "codes": codes,
        "code_dim": code_dim,
    }


def write_llamagen(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a tokenizer, in our names, as a file that LlamaGen's own programs load.

    Raises:
        UserError: `path` is a folder, or the disk refuses. Nothing is left half-written.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file.")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": to_reference(dict(state))}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path} could not be written ({error}); free some space or check the rights."
        ) from None
    finally:
        if temporary.exists():  # unlink would not forgive a parent that is a file
            temporary.unlink()


@dataclass(frozen=True, kw_only=True)
class LlamaGenOptions:
    grid: tuple[int, int] | None = option(
        "rows and columns of tokens that it will be used with; else those of 256 px"
    )


def _convert(request: Request, options: LlamaGenOptions) -> Converted:
    read = read_llamagen(request.src, request.payload)
    config, stride = read.config, read.config.stride
    if options.grid is not None:
        config = replace(config, image_size=(options.grid[0] * stride, options.grid[1] * stride))
    return write_converted(
        request, family="vq", config=config, state=read.state, report=read.report
    )


LAYOUT = Layout(
    name="llamagen",
    title="LlamaGen's tokenizer",
    files="vq_ds16_c2i.pt, .safetensors",
    mark="encoder.conv_blocks",
    recognise=is_llamagen,
    convert=_convert,
    options=LlamaGenOptions,
)
