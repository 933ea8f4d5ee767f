"""What an HDF5 file of demonstrations holds, in the layout that robomimic and LIBERO share.

    data/demo_<i>/actions      (T, A)
    data/demo_<i>/states       (T, D)    the simulator's state before the action
    data/demo_<i>/obs/<key>    (T, ...)  pictures and numbers
    mask/<key>                 names of demonstrations: a choice of them, such as `train`

A demonstration may hold more, such as `next_obs`, a second copy of everything one step later; none
of that is read. Numbers of demonstrations may have holes, where some were taken out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foreact.data.stores.hdf5 import open_hdf5
from foreact.errors import UserError, decoding, did_you_mean

ENDINGS = (".hdf5", ".h5")
DEMO = re.compile(r"demo_(\d+)")
PER_STEP = ("actions", "actions_abs", "states", "rewards", "dones")
"""Arrays of a demonstration, beside its observations, with one row per step."""


@dataclass(frozen=True)
class Array:
    """Kind of one array: shape of a row, and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def is_picture(self) -> bool:
        return len(self.shape) == 3 and self.shape[-1] == 3 and self.dtype == np.uint8

    @property
    def is_numbers(self) -> bool:
        return len(self.shape) <= 1 and self.dtype.kind in "iufb"

    def __str__(self) -> str:
        return f"{self.dtype} (T{''.join(f', {n}' for n in self.shape)})"


@dataclass(frozen=True)
class Demo:
    """One demonstration.

    Attributes:
        name: such as "demo_7".
        length: steps, of every array.
        arrays: "actions", "obs/<key>" and so on -> its kind.
    """

    name: str
    length: int
    arrays: Mapping[str, Array]

    @property
    def number(self) -> int:
        return _number(self.name)


@dataclass(frozen=True)
class DemoFile:
    """One file.

    Attributes:
        path: where it lies.
        attrs: texts that its group `data` carries, those in JSON as what they say.
        demos: by their numbers.
        masks: key -> names of demonstrations.
    """

    path: Path
    attrs: Mapping[str, Any]
    demos: Sequence[Demo]
    masks: Mapping[str, Sequence[str]]

    def absent(self, key: str) -> list[str]:
        """Demonstrations that a mask names and the file does not hold, by their numbers."""
        return sorted({*self.masks[key]} - {demo.name for demo in self.demos}, key=_number)

    def masked(self, key: str) -> DemoFile:
        """The file as if it held the demonstrations of one mask only.

        Raises:
            UserError: there is no such mask, or it names demonstrations that are not there.
        """
        if key not in self.masks:
            raise UserError(f"{self.path} has no mask '{key}'{did_you_mean(key, self.masks)}")
        wanted = set(self.masks[key])
        if absent := self.absent(key):
            raise UserError(
                f"The mask '{key}' of {self.path} names {len(absent)} demonstrations that the file "
                f"does not hold, such as '{absent[0]}'; use the file that the mask was made for."
            )
        if not wanted:
            raise UserError(f"The mask '{key}' of {self.path} names no demonstration; use another.")
        demos = [demo for demo in self.demos if demo.name in wanted]
        return replace(self, demos=demos, masks={key: self.masks[key]})


def holds_demos(path: Path) -> bool:
    """Whether the path is an HDF5 file in this layout; one that cannot be opened is not."""
    return first_demo_keys(path) is not None


def first_demo_keys(path: Path) -> tuple[list[str], list[str]] | None:
    """Keys of the observations of some demonstration, and names of the attributes of `data`.

    None where the path is no such file, or h5py is not there to tell.
    """
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        return None
    try:
        with open_hdf5(path) as file, decoding(f"{path} is damaged"):
            data: Any = file.get("data")
            name = next(filter(DEMO.fullmatch, data if hasattr(data, "keys") else ()), None)
            if name is None:
                return None
            return list(data[name].get("obs", ())), list(data.attrs)
    except UserError:
        return None


def read_demo_file(path: Path) -> DemoFile:
    """Read names, shapes and attributes; no array.

    Raises:
        UserError: it is no such file, holds no demonstration, or one without actions or
            observations, without steps, or with arrays of different lengths.
    """
    with open_hdf5(path) as file, decoding(f"{path} is damaged"):
        data: Any = file.get("data")
        masks: Any = file.get("mask", {})
        names = [name for name in data or () if DEMO.fullmatch(name)]
        if not names:
            raise UserError(
                f"{path} should hold demonstrations as groups data/demo_0, data/demo_1 and so on, "
                f"found {sorted(data or file)[:5]}; name a file of robomimic or LIBERO."
            )
        return DemoFile(
            path,
            {name: _plain(value) for name, value in data.attrs.items()},
            [_read_demo(path, name, data[name]) for name in sorted(names, key=_number)],
            {key: _names(array) for key, array in masks.items() if hasattr(array, "shape")},
        )


def read_masks(path: str | Path) -> dict[str, list[str]]:
    """Masks of a robomimic file: key -> names of the demonstrations, by their numbers.

    Raises:
        UserError: as `read_demo_file`.
    """
    masks = read_demo_file(Path(path)).masks
    return {key: sorted(names, key=_number) for key, names in masks.items()}


def _read_demo(path: Path, name: str, group: Any) -> Demo:
    nodes = {key: group[key] for key in PER_STEP if key in group}
    if "actions" not in nodes or "obs" not in group:
        missing = "actions" if "actions" not in nodes else "obs"
        hint = (
            "; render its observations first (robomimic's dataset_states_to_obs.py)"
            if missing == "obs"
            else "; use a whole file"
        )
        raise UserError(f"'{name}' of {path} has no '{missing}'{hint}.")
    nodes |= {f"obs/{key}": node for key, node in group["obs"].items() if hasattr(node, "shape")}
    lengths = {key: (node.shape or (0,))[0] for key, node in nodes.items()}
    length = lengths["actions"]
    if length < 1:
        raise UserError(f"'{name}' of {path} holds no step; take it out of the file.")
    if other := [key for key, n in lengths.items() if n != length]:
        raise UserError(
            f"All arrays of '{name}' in {path} should be equally long, found 'actions' with "
            f"{length} steps and '{other[0]}' with {lengths[other[0]]}; record or convert that "
            "demonstration again."
        )
    arrays = {key: Array(tuple(node.shape[1:]), node.dtype) for key, node in nodes.items()}
    for key in ("actions", "actions_abs", "states"):
        if key in arrays and not arrays[key].is_numbers:
            raise UserError(
                f"'{key}' of '{name}' in {path} should be numbers (T, D), found {arrays[key]}; "
                "record or convert that demonstration again."
            )
    return Demo(name, int(length), arrays)


def _number(name: str) -> int:
    match = DEMO.fullmatch(name)
    return int(match[1]) if match else -1


def _names(array: Any) -> list[str]:
    return [text.decode() if isinstance(text, bytes) else str(text) for text in array[:]]


def _plain(value: Any) -> Any:
    """An attribute as JSON has it: texts that are JSON become what they say."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value if isinstance(value, str | int | float) else str(value)
