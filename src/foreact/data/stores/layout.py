"""The zarr layout of a store on disk: groups, arrays, and when an episode counts as written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc

from foreact.errors import UserError, decoding, in_short
from foreact.types import StreamSpec

SPEC_ATTRIBUTE = "foreact_spec"
CHUNK_BYTES = 2**20
# So that a chunk file that is not there always means damage.
ARRAY_CONFIG: Any = {"write_empty_chunks": True}


def committed_ends(ends: np.ndarray) -> np.ndarray:
    """Episode ends without the zeros of an entry that was made room for and never written."""
    return ends[: len(ends) - int(np.argmax(ends[::-1] != 0))] if ends.any() else ends[:0]


def stream_shapes(spec: StreamSpec) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        name: ((*size, 3), np.dtype(np.uint8)) for name, size in spec.cameras.items()
    }
    shapes |= {name: ((len(names),), np.dtype(np.float32)) for name, names in spec.state.items()}
    if spec.action is not None:
        shapes["action"] = ((spec.action.dim,), np.dtype(np.float32))
    if spec.has_reward:
        shapes["reward"] = ((1,), np.dtype(np.float32))
    return shapes


def require_store_name(path: Path) -> None:
    """Raise a `UserError` where no store can be written to a path of this name."""
    if path.suffix == ".zip":
        raise UserError(
            "Stores are written as folders; give a path such as "
            f"{path.with_suffix('')}, not {path}."
        )


def create_store(path: Path, spec: StreamSpec, attrs: Mapping[str, Any]) -> None:
    require_store_name(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        # zarr v2: the layout's existing readers know no other.
        group = zarr.open_group(str(temporary), mode="w", zarr_format=2)
        group.attrs.update({**attrs, SPEC_ATTRIBUTE: spec.to_json()})
        group.create_group("data")  # also where the spec names no stream
        for name, (shape, dtype) in stream_shapes(spec).items():
            create_stream(group, name, shape, dtype)
        group.create_array(
            "meta/episode_ends", shape=(0,), chunks=(65536,), dtype="int64", config=ARRAY_CONFIG
        )
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"The store {path} could not be made ({in_short(error)}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def create_stream(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype
) -> zarr.Array:
    # Few frames per chunk, so that a window of pixels decodes little more than itself.
    most = 32 if len(shape) == 3 and dtype == np.uint8 else 4096
    rows = int(np.clip(CHUNK_BYTES // max(1, int(np.prod(shape)) * dtype.itemsize), 1, most))
    return group.create_array(
        f"data/{name}",
        shape=(0, *shape),
        chunks=(rows, *shape),
        dtype=dtype,
        compressors=Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE),
        config=ARRAY_CONFIG,
    )


def open_for_writing(path: Path, *, foreign_too: bool = False) -> zarr.Group:
    if not path.is_dir():
        raise UserError(f"Only a store that is a folder can be written to; {path} is none.")
    with decoding(f"{path} exists and is not an episode store", "choose another path"):
        group = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    if SPEC_ATTRIBUTE not in group.attrs and not foreign_too:
        raise UserError(
            f"{path} is a zarr store of another make; `foreact data import` copies it into ours."
        )
    return group


def get_array(group: zarr.Group, name: str) -> zarr.Array:
    # zarr does not keep it with the array: an array that is opened takes what is set then.
    with zarr.config.set({f"array.{key}": value for key, value in ARRAY_CONFIG.items()}):
        node = group[name]
    if not isinstance(node, zarr.Array):
        raise KeyError(name)
    return node


def extend(array: zarr.Array, start: int, rows: np.ndarray) -> None:
    array.resize((start + len(rows), *array.shape[1:]))
    array[start : start + len(rows)] = rows
