"""LIBERO's official initial states, read without running what a pickle asks for.

A `.pruned_init` file is a zip of torch.save whose one pickle holds a numpy array (N, D) of float64.
Here the five names that such a pickle uses stand for harmless pieces, and any other is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from foreact.errors import UserError, decoding


def read_initial_states(path: Path) -> np.ndarray:
    """States of a simulator to begin from, float64 (N, D): time, positions, velocities.

    Args:
        path: a `.pruned_init` file of LIBERO, or the same array as `.npy`.

    Raises:
        UserError: it is missing, damaged, asks for something else than an array, or its array is
            no table of finite numbers.
    """
    if not path.is_file():
        raise UserError(
            f"There are no initial states at {path}; install hf-libero whole, or name another "
            "folder."
        )
    with decoding(f"The initial states {path} are damaged", "install hf-libero again"):
        if path.suffix == ".npy":
            states = np.load(path, allow_pickle=False)
        else:
            with zipfile.ZipFile(path) as archive:
                (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
                states = _Reader(io.BytesIO(archive.read(name))).load().numpy()
    if states.ndim != 2 or not len(states) or states.dtype != np.float64:
        raise UserError(
            f"{path} should hold states float64 (N, D), found {states.dtype} {states.shape}; "
            "install hf-libero again."
        )
    if not np.isfinite(states).all():
        raise UserError(f"{path} holds NaN or infinite states; install hf-libero again.")
    return states


class _Array:
    """What pickle calls an array: filled by its state, of which only plain float64 is taken."""

    __slots__ = ("_values",)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _Float64) or not isinstance(content, bytes):
            raise ValueError("no array of float64")
        if len(content) != 8 * math.prod(shape):
            raise ValueError(f"{len(content)} bytes for an array of shape {shape}")
        order = "F" if is_fortran else "C"
        self._values = np.frombuffer(content, "<f8").reshape(shape, order=order)

    def numpy(self) -> np.ndarray:
        return self._values.copy()


class _Float64:
    """The only dtype; its state says the byte order."""

    __slots__ = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise ValueError(f"numbers in byte order {state[1]}")


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _dtype(code: str, *_: Any) -> _Float64:
    if code != "f8":
        raise ValueError(f"numbers of type {code}")
    return _Float64()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


class _Mark:
    """The class `numpy.ndarray`, which such a pickle only passes on."""


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _Mark,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Never the inherited find_class: it imports the module it is asked for.
        if (module, name) not in _KNOWN:
            raise ValueError(f"it asks for '{module}.{name}', which no table of states needs")
        return _KNOWN[module, name]
