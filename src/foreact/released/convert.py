"""Foreign checkpoints -> our folders, by whichever family recognises them, and our folders back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from foreact.checkpoints.format import family_of
from foreact.errors import UserError
from foreact.plugs import FAMILIES, families_with
from foreact.released.content import is_ours, read_content
from foreact.released.layouts import Converted, Layout, Request
from foreact.types import StreamSpec


def layouts() -> list[Layout]:
    """All kinds of foreign checkpoints that some family reads."""
    return [
        layout for name in families_with("layouts") for layout in FAMILIES.find(name).get("layouts")
    ]


def recognise(payload: Any, path: Path) -> Layout:
    """Which kind of foreign checkpoint a file's content is.

    Raises:
        UserError: none that is known.
    """
    candidates = layouts()
    for layout in candidates:
        if layout.recognise(payload):
            return layout
    content = (
        ", ".join(map(str, payload)) if isinstance(payload, Mapping) else type(payload).__name__
    )
    marks = "; ".join(f"{layout.title}: {layout.mark}" for layout in candidates)
    raise UserError(
        f"{path} is none of the known checkpoints ({marks}); it holds: {content[:200]}."
    )


def convert(
    src: Path,
    dst: Path,
    *,
    spec: StreamSpec | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Converted:
    """Write a foreign checkpoint as our folder.

    Args:
        src: the foreign file, or a folder of Hugging Face's or of DeepSpeed.
        dst: the folder to write.
        spec: what the numbers mean; checked against the file's sizes.
        dtype: type to store floating-point tensors in; None keeps theirs.
        options: what the file does not tell, see the `options` of its layout; None counts as not
            said.

    Raises:
        UserError: the file is damaged, unsafe, unknown, contradicts itself, `spec` or the options;
            nothing is written then.
    """
    src, dst = Path(src), Path(dst)
    payload = _read(src)
    layout = recognise(payload, src)
    chosen = chosen_options(layout, src, options)
    if spec is not None and not layout.has_spec:
        raise UserError(
            f"{src} is {layout.title}, which belongs to no task; convert it without --task."
        )
    return layout.convert(
        Request(src=src, dst=dst, payload=payload, spec=spec, dtype=dtype), chosen
    )


def start_training(src: Path, dst: Path, **options: Any) -> Path:
    """Write a foreign training checkpoint as a run folder to resume; returns its checkpoint.

    Raises:
        UserError: the file is damaged, unsafe or unknown, or tells no state of a training.
    """
    payload = _read(src)
    layout = recognise(payload, src)
    if layout.start_training is None:
        raise UserError(
            f"{src} is {layout.title}, whose state of training is not read; convert "
            "its weights instead."
        )
    request = Request(src=src, dst=dst, payload=payload, spec=None, dtype=None)
    return layout.start_training(request, chosen_options(layout, src, options))


def write_back(weights: Path, out: Path) -> str:
    """Write our folder as the code of its authors reads it; returns what to tell.

    Raises:
        UserError: its family has no such layout, or the layout cannot express it.
    """
    return FAMILIES.find(family_of(weights)).get("write")(weights, out)


def chosen_options(layout: Layout, src: Path, options: Mapping[str, Any]) -> Any:
    """The layout's options with what was said.

    Raises:
        UserError: one that it does not know.
    """
    given_options = {name: value for name, value in options.items() if value is not None}
    option_names = [f.name for f in dataclasses.fields(layout.options)]
    if unknown := [name for name in given_options if name not in option_names]:
        knows = f"knows {', '.join(option_names)}" if option_names else "tells all itself"
        raise UserError(
            f"{src} is {layout.title}, which {knows}; convert it without --{unknown[0]}."
        )
    return layout.options(**given_options)


def _read(src: Path) -> Any:
    if is_ours(src):
        raise UserError(
            f"{src} is a checkpoint of this project already; nothing is to be converted."
        )
    return read_content(src)
