"""LIBERO's files of demonstrations, opened as they are: one file per instruction.

The layout is robomimic's (`robomimic_file`), with three differences:

    pictures are stored upside down, both cameras
    row t of pictures, hand and joints was seen after action t; `states[t]` is from before it
    the instruction is in the name of the file, behind the name of the scene

By default pictures are turned upright by one vertical flip, and each step has what was seen and the
action that came next: row t goes with action t + 1. UVA's released weights learned from row t with
action t, and from sentences that begin with the scene's name: `pairing="reference"`, `text="file"`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from foreact.data.formats.robomimic_file import (
    ENDINGS,
    DemoFile,
    first_demo_keys,
    read_demo_file,
)
from foreact.data.formats.robomimic_spec import Flip, resolve_flip
from foreact.data.formats.robomimic_store import Episode, RobomimicStore
from foreact.errors import UserError
from foreact.files import listed
from foreact.types import StreamSpec

TextSource = Literal["task", "file"]
"""Instructions as the benchmark words them, or as UVA reads them off the names of files."""
Pairing = Literal["seen", "reference"]
"""Pictures with the action done after them, or as they are stored."""

NAME_END = len("_demo.hdf5")
"""Letters that UVA takes off a file's name, whatever they are."""
SCENE = re.compile(r"[A-Z_]*SCENE\d+_")
OBSERVATIONS = ("agentview_rgb", "eye_in_hand_rgb")
ATTRIBUTES = ("problem_info", "bddl_file_name", "macros_image_convention")


def is_libero(path: str | Path) -> bool:
    """Whether the path is an HDF5 file of LIBERO, or a folder of them, by the first one's marks."""
    path = Path(path)
    first = path if path.is_file() else next(iter(listed(path, endings=ENDINGS)), path)
    keys = first_demo_keys(first)
    if keys is None:
        return False
    observations, attributes = keys
    return not {*OBSERVATIONS}.isdisjoint(observations) or not {*ATTRIBUTES}.isdisjoint(attributes)


def open_libero(
    path: str | Path,
    spec: StreamSpec | None = None,
    *,
    text: TextSource = "task",
    pairing: Pairing = "seen",
    flip: Flip = "auto",
) -> LiberoStore:
    """Open a folder lazily: names and shapes of all arrays are checked, no picture is read.

    Args:
        path: the folder, whose .hdf5 files are taken in the order of their names; or one file.
        spec: as in `open_robomimic`.
        text: "task": `language_instruction` of the file, or its name without the scene; "file": its
            name with the scene, less its last ten letters.
        pairing: "seen": what was seen, and the action done next, one step fewer than the file has;
            "reference": as stored, where the action is the one before.
        flip: what is done to the pictures; "auto": one vertical flip, unless the file's attribute
            `macros_image_convention` says that they are upright.

    Raises:
        UserError: as `open_robomimic`; or a file's name holds no instruction.
    """
    path = Path(path)
    for name, value, known in (("text", text, TextSource), ("pairing", pairing, Pairing)):
        if value not in get_args(known):
            raise UserError(f"'{name}' should be one of {get_args(known)}, found '{value}'.")
    paths = [path] if path.is_file() else listed(path, endings=ENDINGS)
    if not paths:
        raise UserError(f"{path} holds no .hdf5 file; name the folder of LIBERO's demonstrations.")
    return LiberoStore(
        path,
        [read_demo_file(file) for file in paths],
        spec=spec,
        text=text,
        pairing=pairing,
        flip=flip,
        reopen=partial(open_libero, path, spec, text=text, pairing=pairing, flip=flip),
    )


def open_format(
    path: Path,
    spec: StreamSpec | None,
    *,
    memory_limit: int,
    text: TextSource = "task",
    pairing: Pairing = "seen",
    flip: Flip = "auto",
) -> LiberoStore:
    """`open_libero` as a format's opener; no pixels are held in memory, whatever the limit."""
    return open_libero(path, spec, text=text, pairing=pairing, flip=flip)


class LiberoStore(RobomimicStore):
    """See `open_libero`; an episode has a "text", and is called <file>/<demonstration>."""

    def __init__(
        self,
        path: Path,
        files: Sequence[DemoFile],
        *,
        spec: StreamSpec | None,
        text: TextSource,
        pairing: Pairing,
        flip: Flip,
        reopen: Callable[[], LiberoStore],
    ) -> None:
        self._texts = {file.path: instruction_in(file, text) for file in files}
        super().__init__(
            path,
            files,
            spec=spec,
            flips=[resolve_flip(flip, file, is_libero=True) for file in files],
            lag=1 if pairing == "seen" else 0,
            has_text=True,
            notes={"text_source": text, "pairing": pairing},
            reopen=reopen,
        )

    @property
    def info_names(self) -> list[str]:
        return [*super().info_names, "text"]

    def info(self, name: str) -> np.ndarray:
        """As `RobomimicStore.info`, and "text", the instruction."""
        if name == "text":
            return np.array([self._texts[e.file.path] for e in self.episodes], object)
        return super().info(name)

    def name_of(self, episode: Episode) -> str:
        return f"{episode.file.path.stem}/{episode.demo.name}"


def instruction_in(file: DemoFile, source: TextSource) -> str:
    """The instruction of a file.

    Raises:
        UserError: neither its name nor, for "task", its attributes hold one.
    """
    name = file.path.name[:-NAME_END]
    if source == "task":
        problem = file.attrs.get("problem_info")
        given = problem.get("language_instruction") if isinstance(problem, dict) else None
        # Some files hold it letter by letter.
        if given and (text := "".join(map(str, given)).strip().strip('"')):
            return text
        name = SCENE.sub("", file.path.stem.removesuffix("_demo"), count=1)
    if not (text := name.replace("_", " ").strip()) or text == "demo":
        raise UserError(
            f"The name of {file.path} holds no instruction; call it as LIBERO does, such as "
            "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5."
        )
    return text
