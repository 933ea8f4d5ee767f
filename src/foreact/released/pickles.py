"""Read foreign torch.save files without running them: a fixed list of stand-in globals only.

`torch.load` of the released files needs dill, omegaconf and `weights_only=False`, which runs
whatever the file says. This reader knows tensors, containers, numpy values and omegaconf configs;
anything else is refused by name.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from foreact.errors import UserError, decoding
from foreact.released.standins import GLOBALS, plain

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a torch.save file before torch 1.6


def read_torch_file(path: Path) -> Any:
    """Content of a torch.save file, zip or legacy, as plain containers and CPU tensors.

    Tensors of the zip layout are memory-mapped copy-on-write: entries that are not used cost no
    memory. Configs of omegaconf come back as dict and list with their interpolations as they stand;
    see `resolve_references`.

    Raises:
        UserError: the file is missing, cut short, no torch.save file, or names a global that is not
            on the list.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}; give the path of a checkpoint file.")
    complaint = f"{path} is cut short, damaged or no torch.save file"
    with decoding(complaint, "copy it again"), open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        return plain(_read_zip(path) if is_zip else _read_legacy(file, path))


def read_pickle_bytes(data: bytes, where: str) -> Any:
    """A pickle without tensors, such as the dill bytes of a number in a reference checkpoint.

    Args:
        data: the pickle.
        where: what it is, for error messages.

    Raises:
        UserError: it is damaged or names a global that is not on the list.
    """
    with decoding(f"{where} is damaged", "copy the file again"):
        return plain(_Reader(io.BytesIO(data), where, _no_storage).load())


class _Reader(pickle.Unpickler):
    """An unpickler whose whole world is `GLOBALS`."""

    def __init__(self, file: BinaryIO, where: str, storage: Callable[[Any], Tensor]) -> None:
        super().__init__(file)
        self.where = where
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        # Never the inherited find_class: it imports the module it is asked for.
        try:
            return GLOBALS[module, name]
        except KeyError:
            raise UserError(
                f"{self.where} asks for '{module}.{name}', which is not on the list of things a "
                "checkpoint may hold; it was not read. Convert it where you trust it, or get the "
                "file from its authors."
            ) from None

    def persistent_load(self, pid: Any) -> Tensor:
        return self.storage(pid)


def _no_storage(pid: Any) -> Tensor:
    raise pickle.UnpicklingError("tensor data outside a torch.save file")


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("no data.pkl inside")
        # Before any is unpacked.
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise pickle.UnpicklingError("packed entries, which torch.save never writes")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("big-endian tensors")
        body = archive.read(pickles[0])
    loaded: dict[str, Tensor] = {}

    def storage(pid: Any) -> Tensor:
        dtype, key, count = _storage_id(pid)
        if key not in loaded:
            loaded[key] = _map_entry(path, entries[f"{root}data/{key}"], dtype, count)
        if loaded[key].dtype != dtype or loaded[key].numel() != count:
            raise pickle.UnpicklingError(f"storage {key} described in two ways")
        return loaded[key]

    return _Reader(io.BytesIO(body), str(path), storage).load()


def _map_entry(path: Path, info: zipfile.ZipInfo, dtype: torch.dtype, count: int) -> Tensor:
    nbytes = count * dtype.itemsize
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != nbytes:
        raise pickle.UnpicklingError(f"{info.filename} does not hold {nbytes} plain bytes")
    if nbytes == 0:
        return torch.empty(0, dtype=dtype)
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
        name_length, extra_length = struct.unpack("<26xHH", header)
        start = info.header_offset + 30 + name_length + extra_length
        if header[:4] != b"PK\x03\x04" or start + nbytes > file.seek(0, io.SEEK_END):
            raise zipfile.BadZipFile(f"{info.filename} is cut short")
    return torch.from_numpy(np.memmap(path, np.uint8, "c", start, (nbytes,))).view(dtype)


def _read_legacy(file: io.BufferedReader, path: Path) -> Any:
    """Read five pickles (magic, version, system, object, storage keys), then the storages.

    Each storage is its length and its bytes.
    """
    storages: dict[str, Tensor] = {}

    def storage(pid: Any) -> Tensor:
        dtype, key, count = _storage_id(pid)
        if count * dtype.itemsize > size:  # before the memory is asked for
            raise EOFError("a tensor longer than the file")
        if key not in storages:
            storages[key] = torch.empty(count, dtype=dtype)
        if storages[key].dtype != dtype or storages[key].numel() != count:
            raise pickle.UnpicklingError(f"storage {key} described in two ways")
        return storages[key]

    size = file.seek(0, io.SEEK_END)
    file.seek(0)

    def load() -> Any:
        return _Reader(file, str(path), storage).load()

    if load() != LEGACY_MAGIC or load() != 1001 or not load().get("little_endian", True):
        raise pickle.UnpicklingError("not written by torch.save")
    content = load()
    keys = load()
    if set(keys) != set(storages):
        raise pickle.UnpicklingError("tensors without data")
    for key in keys:
        target = storages[key].view(torch.uint8).numpy()
        (count,) = struct.unpack("<q", file.read(8))
        if count != storages[key].numel() or file.readinto(target.data) != target.nbytes:
            raise EOFError("the last tensors are missing")
    return content


def _storage_id(pid: Any) -> tuple[torch.dtype, str, int]:
    """("storage", type, key, device, count[, view]) -> dtype, key, count; device is ignored."""
    tag, dtype, key, _, count, *view = pid
    if (
        tag != "storage"
        or not isinstance(dtype, torch.dtype)
        or type(count) is not int
        or count < 0
        or any(view)
    ):
        raise pickle.UnpicklingError(f"a storage of the unknown form {str(pid)[:80]}")
    return dtype, str(key), count


REFERENCE = re.compile(r"\$\{\s*([A-Za-z_0-9]+(?:\.[A-Za-z_0-9]+)*)\s*\}")


def resolve_references(config: Any) -> Any:
    """Replace `${a.b}` in a config's strings by the value at a.b; keep other interpolations.

    The reference registers a resolver `eval` that runs config text as Python; here nothing is run.

    Args:
        config: nested dict and list of one config file.

    Raises:
        UserError: references form a ring.
    """
    return _resolve(config, config, ())


def _resolve(value: Any, root: Any, trail: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _resolve(v, root, trail) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, root, trail) for v in value]
    if not isinstance(value, str):
        return value
    if whole := REFERENCE.fullmatch(value):
        return _follow(whole, root, trail)
    return REFERENCE.sub(lambda match: str(_follow(match, root, trail)), value)


def _follow(match: re.Match[str], root: Any, trail: tuple[str, ...]) -> Any:
    name = match[1]
    if name in trail:
        raise UserError(
            f"The config refers to itself: {' -> '.join((*trail, name))}; it cannot be read."
        )
    target = root
    for part in name.split("."):
        if isinstance(target, dict) and part in target:
            target = target[part]
        elif isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
        else:
            return match[0]
    return _resolve(target, root, (*trail, name))
