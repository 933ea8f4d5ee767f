"""Files of published text encoders: weights, names of tensors, configs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from foreact.errors import UserError, decoding
from foreact.files import parse_json, read_text

N = TypeVar("N", bound=nn.Module)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the tensors of an encoder are called where it is published.

    Attributes:
        single: our name -> the published one, of tensors that are there once.
        blocks: what the published names of a block's tensors begin with, before its number.
        in_block: our layer of a block -> the published one; each has a weight and a bias.
        other: how the names begin of tensors that may be there and that the features do not need.
    """

    single: Mapping[str, str]
    blocks: str
    in_block: Mapping[str, str]
    other: tuple[str, ...]


def published(layout: Layout, state: Mapping[str, Any], where: str) -> dict[str, str]:
    """Our name -> the published one, of every tensor of the encoder in `state`.

    Raises:
        UserError: a tensor is missing, or there is one that the layout does not know.
    """
    number = re.compile(re.escape(layout.blocks) + r"(\d{1,4})\.")
    found = [int(match[1]) for match in map(number.match, state) if match]
    names = dict(layout.single)
    for i in range(max(found, default=0) + 1):
        for ours, theirs in layout.in_block.items():
            for part in ("weight", "bias"):
                names[f"blocks.{i}.{ours}.{part}"] = f"{layout.blocks}{i}.{theirs}.{part}"
    known = set(names.values())
    missing = sorted(known - state.keys())
    unknown = sorted(k for k in state.keys() - known if not k.startswith(layout.other))
    if missing or unknown:
        label, some = ("lacks", missing) if missing else ("has the unknown", unknown)
        more = f" and {len(some) - 3} more" if len(some) > 3 else ""
        raise UserError(
            f"{where} is no whole text encoder of this kind: it {label} {', '.join(some[:3])}"
            f"{more}; take the files as published."
        )
    return names


def build_network(make: Callable[[], N], tensors: Mapping[str, Tensor], where: str) -> N:
    """The network of these tensors, which are copied to float32.

    Args:
        make: builds the network, of the sizes that the tensors have.
        tensors: by our names, complete.
        where: what holds them, for the error.

    Raises:
        UserError: a tensor has another shape than the others imply.
    """
    with decoding(f"The tensors in {where} build no text encoder", "take the files as published"):
        with torch.device("meta"):
            network = make()
        shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"'{name}' should be {shape}, found {tuple(tensors[name].shape)}")
        copies = {name: tensors[name].to(torch.float32, copy=True) for name in shapes}
        network.load_state_dict(copies, assign=True)
    return network


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a published folder, mapped from its file.

    Raises:
        UserError: there is no file of weights, or it is damaged or holds anything but tensors.
    """
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} should hold {' or '.join(WEIGHTS)}; found neither.")
    with decoding(f"{file} is damaged or holds more than tensors"):
        if file.suffix == ".safetensors":
            return load_file(file)
        # Restricted to tensors and containers by torch itself.
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(t, Tensor) for name, t in state.items()
        ):
            raise ValueError("no tensors by name")
        return dict(state)


def read_config(file: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The entries of a JSON file; none where it may be missing and is.

    Raises:
        UserError: it is missing, or no JSON object.
    """
    if missing_ok and not file.is_file():
        return {}
    with decoding(f"{file} is missing or no JSON object"):
        entries = parse_json(read_text(file))
        if not isinstance(entries, dict):
            raise ValueError(f"found a {type(entries).__name__}")
        return entries
