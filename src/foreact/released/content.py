"""Content of a foreign checkpoint, whatever it lies in: a torch file, safetensors, or a folder."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from foreact.checkpoints.configs import read_json
from foreact.errors import UserError, in_short
from foreact.files import listed
from foreact.released.pickles import read_torch_file
from foreact.released.zero import read_zero_directory

HUB_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")
"""What Hugging Face's libraries call the weights in a folder."""
HUB_ENDINGS = (".safetensors", ".bin")
INDEX = ".index.json"
LONGEST_HEADER = 100_000_000
"""Bytes of the table at the head of a safetensors file; the library's own limit."""


def read_content(path: Path) -> Any:
    """Content of a torch or safetensors file, or of a folder of Hugging Face's or of DeepSpeed.

    A folder of Hugging Face's has the tensors of all its weight files, a DeepSpeed directory what
    its fused file would have. The content of a file decides, not its name.

    Raises:
        UserError: it is missing, cut short, damaged, unsafe or none of these.
    """
    path = Path(path)
    if path.is_dir():
        return _read_hub_folder(path) if is_hub_folder(path) else read_zero_directory(path)
    return _read_safetensors(path) if _is_safetensors(path) else read_torch_file(path)


def is_ours(path: Path) -> bool:
    """Whether a path is a checkpoint folder of this project."""
    if not (path / "config.json").is_file():
        return False
    config = read_json(path / "config.json")
    return isinstance(config, Mapping) and "family" in config


def is_foreign(path: Path) -> bool:
    """Whether a path is a file, or a folder of weights that are none of ours."""
    return path.is_file() or (is_hub_folder(path) and not is_ours(path))


def is_hub_folder(path: Path) -> bool:
    """Whether a path is a folder with weights as Hugging Face's libraries write them."""
    return path.is_dir() and (
        (path / "config.json").is_file() or bool(listed(path, endings=[".safetensors"]))
    )


def hub_config(path: Path, kind: str) -> Mapping[str, Any]:
    """What config.json says in a folder of Hugging Face's, or beside one of its weight files.

    Empty where there is none.

    Args:
        path: folder or file, which may be missing.
        kind: of model that is expected, for the message.

    Raises:
        UserError: it is damaged.
    """
    file = hub_config_file(path)
    if not file.is_file() or not (
        path.is_dir() or (path.is_file() and path.name.endswith(HUB_ENDINGS))
    ):
        return {}
    config = read_json(file)
    if not isinstance(config, Mapping):
        raise UserError(
            f"{file} should describe a {kind} in named entries, found a {type(config).__name__}; "
            "restore it from its source."
        )
    return config


def hub_config_file(path: Path) -> Path:
    """Where config.json is, if anywhere: in a folder, or beside a file."""
    return (path if path.is_dir() else path.parent) / "config.json"


def _read_hub_folder(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for file in _hub_files(folder):
        if not file.is_file():
            raise UserError(f"{folder} lacks {file.name}; copy all of it.")
        part = read_content(file)
        if not isinstance(part, Mapping):
            raise UserError(f"{file} should hold tensors by name, found a {type(part).__name__}.")
        content |= part
    return content


def _hub_files(folder: Path) -> list[Path]:
    """The weight files: those that an index names, the one of the usual name, or the only one."""
    if indices := listed(folder, endings=[INDEX]):
        raw = read_json(indices[0])
        names = raw.get("weight_map") if isinstance(raw, Mapping) else None
        if not isinstance(names, Mapping) or not all(
            isinstance(name, str) and Path(name).name == name for name in names.values()
        ):
            raise UserError(
                f"{indices[0]} should name the file of every tensor; restore it from its source."
            )
        return [folder / name for name in sorted(set(names.values()))]
    if usual := [folder / name for name in HUB_FILES if (folder / name).is_file()]:
        return usual[:1]
    files = listed(folder, endings=HUB_ENDINGS)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(
            f"{folder} should hold the weights of one model ({', '.join(HUB_FILES)}), found "
            f"{found}; name a file."
        )
    return files


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a JSON table, and that table."""
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        return False
    if path.suffix.lower() == ".safetensors":
        return True
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < LONGEST_HEADER


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        raise UserError(
            f"{path} is cut short, damaged or no safetensors file ({in_short(error)}); copy it "
            "again."
        ) from None
