"""Tensors on their way to and from a safetensors file."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foreact.errors import UserError, in_short

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in the stored dtypes, in memory of their own.

    Raises:
        UserError: it is missing, damaged or cut short.
    """
    if not file.is_file():
        raise UserError(f"The file {file} is missing; copy the whole checkpoint folder.")
    try:
        # Opening checks the header, also against the file's length.
        with safe_open(file, framework="pt", device="cpu") as checked:
            names = list(checked.keys())
        # Read, not mapped: replacing the file later cannot change or fault tensors in use, and no
        # page counts twice.
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
            return {name: _read_tensor(opened, 8 + length, header[name]) for name in names}
    except (SafetensorError, OSError, EOFError, KeyError) as error:
        raise UserError(
            f"The file {file} is damaged or cut short ({in_short(error)}); copy it again."
        ) from None


def _read_tensor(file: BufferedReader, start: int, entry: Mapping[str, Any]) -> Tensor:
    tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
    if tensor.numel():
        file.seek(start + entry["data_offsets"][0])
        target = tensor.reshape(-1).view(torch.uint8).numpy()
        if file.readinto(target.data) != target.nbytes:
            raise EOFError("the last tensors are missing")
    return tensor


def storable(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors as the safetensors library takes them: on the CPU, in pieces of their own.

    Args:
        state: name -> tensor, on any device.
        dtype: type of those of floating point; None keeps theirs.
    """
    stored: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name, tensor in state.items():
        t = tensor.detach().to("cpu")
        if dtype is not None and t.is_floating_point():
            t = t.to(dtype)
        t = t.contiguous()
        if t.untyped_storage().data_ptr() in owners or t.untyped_storage().nbytes() != t.nbytes:
            t = t.clone()  # safetensors refuses tensors that share memory
        owners.add(t.untyped_storage().data_ptr())
        stored[name] = t
    return stored
