"""taming's VQGAN in its own files, such as those that VOC released: read, and written.

    {cheetah,walker}_vq_vae_model.pth   of VOC: a bare state dict, frames prepared the legacy way
    last.ckpt                           of taming: under the key `state_dict`, frames in [-1, 1]

Everything under `loss.` is what training compared pictures with; of it only the perceptual distance
can be asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.families.codes.released.llamagen import sizes_of
from foreact.families.codes.released.taming_names import LOSS, to_native, to_reference
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
from foreact.released.wrappers import State, find_entry, find_state
from foreact.tokenizers.images import Preprocessing
from foreact.tokenizers.lpips import lpips
from foreact.tokenizers.perceptual import FeatureDistance
from foreact.tokenizers.vq import TAMING, VQConfig, VQTokenizer

ANCHORS = ("encoder.down.0.block.0.conv1.weight", "quantize.embedding.weight")
LIGHTNING = "pytorch-lightning_version"
"""Entry of a checkpoint that Lightning wrote, as taming's training does."""
IMAGE_SIZES: dict[Preprocessing, tuple[int, int]] = {"legacy": (80, 80), "symmetric": (256, 256)}
"""(height, width) of the frames that VOC and taming trained on; the files do not say."""

_PERCEPTUAL = f"{LOSS}perceptual_loss."
_IN_ATTENTION = re.compile(r"(?:encoder|decoder)\.levels\.(\d+)\.attentions\.")
_CONVOLUTION = re.compile(r"net\.slice[1-5]\.(\d+\.(?:weight|bias))")


def is_taming(payload: Any) -> bool:
    """Whether a file holds taming's VQGAN: bare, or under `state_dict` or `model`."""
    return find_entry(payload, ANCHORS) is not None


def read_taming(
    path: Path,
    payload: Any = None,
    *,
    preprocessing: Preprocessing | None = None,
    grid: tuple[int, int] | None = None,
) -> Read[VQConfig]:
    """Read a VQGAN of taming, whatever wraps its state dict.

    Args:
        path: the file.
        payload: its content, where it has been read already.
        preprocessing: how the frames of its training were prepared, which no file says; by default
            "symmetric" for a checkpoint of Lightning, as taming writes them, and "legacy" for a
            bare state dict, as VOC released.
        grid: (h, w) of tokens in the frames it is to be used on; None: of frames of `IMAGE_SIZES`.

    Raises:
        UserError: the file is missing, unreadable, holds something else, or not all of the
            tokenizer.
    """
    held, unread = _open(path, payload)
    reference_state = held.tensors
    preprocessing = preprocessing or ("symmetric" if LIGHTNING in unread else "legacy")
    state = to_native(reference_state)
    sizes = sizes_of(state, path, "VQGAN of taming")
    levels = len(sizes["multipliers"])
    stride = 2 ** (levels - 1)
    image_size = IMAGE_SIZES[preprocessing]
    if grid is not None:
        image_size = (grid[0] * stride, grid[1] * stride)
    config = VQConfig(
        **sizes,
        attention=_attention(state, levels),
        normalized=TAMING.normalized,
        codebook_weight=TAMING.codebook_weight,
        commitment_weight=TAMING.commitment_weight,
        image_size=image_size,
        preprocessing=preprocessing,
    )
    require_whole(VQTokenizer, config, state, f"{path} holds no whole VQGAN of taming")
    used = f"tokenizer: {len(state)} of {len(reference_state)} tensors used"
    report = "\n".join([f"{used}, {preprocessing} preprocessing", *held.notes])
    if loss := len(reference_state) - len(state):
        report += f"\nleft out: {loss} tensors under '{LOSS}', which only training needs"
    if unread:
        report += f"\nnot read: {', '.join(unread)}"
    return Read(config=config, state=state, report=report)


def read_lpips(path: Path) -> FeatureDistance:
    """LPIPS over VGG16, the perceptual distance beside a VQGAN (`loss.perceptual_loss.`).

    Raises:
        UserError: the file is missing, unreadable, holds something else, or not all of the
            distance.
    """
    reference_state = {
        k.removeprefix(_PERCEPTUAL): v
        for k, v in _open(path, None)[0].tensors.items()
        if k.startswith(_PERCEPTUAL)
    }
    if not reference_state:
        raise UserError(
            f"{path} holds no tensors under '{_PERCEPTUAL}'; give a checkpoint file of taming or "
            "VOC with its loss."
        )
    network = {m[1]: v for k, v in reference_state.items() if (m := _CONVOLUTION.fullmatch(k))}
    try:
        return lpips(
            network,
            [reference_state[f"lin{k}.model.1.weight"].flatten() for k in range(5)],
            shift=reference_state["scaling_layer.shift"].flatten().tolist(),
            scale=reference_state["scaling_layer.scale"].flatten().tolist(),
        )
    except KeyError as error:
        raise UserError(
            f"{path} holds no whole LPIPS distance: it lacks {_PERCEPTUAL}{error.args[0]}; "
            "restore it from its source."
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path} holds no whole LPIPS distance: {error}; restore it from its source."
        ) from None


def write_taming(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a tokenizer, in our names, as a bare state dict.

    taming's network loads it with strict=False, since it has no loss.

    Raises:
        UserError: `path` is a folder, or the disk refuses. Nothing is left half-written.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file.")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(to_reference(dict(state)), temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path} could not be written ({error}); free some space or check the rights."
        ) from None
    finally:
        if temporary.exists():  # unlink would not forgive a parent that is a file
            temporary.unlink()


def _open(path: Path, payload: Any) -> tuple[State, list[str]]:
    """The state dict of a file, and the names of the entries beside it."""
    payload = read_content(path) if payload is None else payload
    state = find_state(payload, ANCHORS, path)
    if state is None:
        raise UserError(
            f"{path} should hold a VQGAN of taming, bare or under the key 'state_dict' or "
            "'model', found none."
        )
    return state, state.unread(payload)


def _attention(state: Mapping[str, Tensor], levels: int) -> tuple[int, ...]:
    """Levels with self-attention, counted from the last one."""
    with_attention = {int(m[1]) for key in state if (m := _IN_ATTENTION.match(key))}
    return tuple(i for i in range(levels) if levels - 1 - i in with_attention)


@dataclass(frozen=True, kw_only=True)
class TamingOptions:
    grid: tuple[int, int] | None = option(
        "rows and columns of tokens that it will be used with; else those of 80 px as VOC's, of "
        "256 px where symmetric"
    )
    preprocessing: Preprocessing | None = option(
        "how frames are prepared: legacy, as for VOC's files and codes (the default, but for "
        "checkpoints of taming's own training), or symmetric, as taming means it"
    )


def _convert(request: Request, options: TamingOptions) -> Converted:
    read = read_taming(
        request.src, request.payload, preprocessing=options.preprocessing, grid=options.grid
    )
    return write_converted(
        request, family="vq", config=read.config, state=read.state, report=read.report
    )


LAYOUT = Layout(
    name="taming",
    title="a VQGAN of taming",
    files="last.ckpt; cheetah_vq_vae_model.pth of VOC; .safetensors",
    mark="encoder.down and quantize",
    recognise=is_taming,
    convert=_convert,
    options=TamingOptions,
)
