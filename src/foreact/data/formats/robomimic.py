"""robomimic's files of demonstrations, opened as they are; see `robomimic_file` for their layout.

Row t of a demonstration is what was seen, and the action that was done then. Pictures are stored
upright. Actions with a goal position and an axis-angle are offered as the task's spec has them: as
stored, or with a rotation of 6 numbers. Those do not jump near half a turn, where hands that point
down always are.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from foreact.data.formats.robomimic_file import ENDINGS, holds_demos, read_demo_file
from foreact.data.formats.robomimic_spec import Flip, resolve_flip
from foreact.data.formats.robomimic_store import RobomimicStore
from foreact.errors import UserError
from foreact.files import listed
from foreact.types import StreamSpec


def is_robomimic(path: str | Path) -> bool:
    """Whether the path is an HDF5 file with demonstrations, or a folder of such files."""
    path = Path(path)
    if path.is_dir():
        return any(holds_demos(file) for file in listed(path, endings=ENDINGS)[:1])
    return holds_demos(path)


def open_robomimic(
    path: str | Path,
    spec: StreamSpec | None = None,
    *,
    mask: str | None = None,
    flip: Flip = "auto",
) -> RobomimicStore:
    """Open a file lazily: names and shapes of all arrays are checked, no picture is read.

    Args:
        path: the .hdf5 file.
        spec: what the streams mean, such as a task's; by default every picture and every array of
            numbers that was observed, and actions as stored. An action of 10 numbers an arm takes
            absolute actions of 7 as poses.
        mask: take only the demonstrations that `mask/<mask>` of the file names; see
            `robomimic_file.read_masks`.
        flip: what is done to the pictures; "auto": nothing, or what the file's attribute
            `macros_image_convention` asks for.

    Raises:
        UserError: h5py is not installed; the file is damaged, or its demonstrations are without
            observations or have arrays of several lengths; the mask is missing or names what is not
            there; or the spec asks for something else, such as absolute actions of a file with
            deltas.
    """
    path = Path(path)
    if path.is_dir():
        names = [file.name for file in listed(path, endings=ENDINGS)]
        raise UserError(
            f"{path} is a folder; name one of its files with demonstrations: {', '.join(names)}."
        )
    file = read_demo_file(path)
    way = resolve_flip(flip, file, is_libero=False)
    return RobomimicStore(
        path,
        [file if mask is None else file.masked(mask)],
        spec=spec,
        flips=[way],
        lag=0,
        has_text=False,
        notes={"mask": mask},
        reopen=partial(open_robomimic, path, spec, mask=mask, flip=flip),
    )


def open_format(
    path: Path,
    spec: StreamSpec | None,
    *,
    memory_limit: int,
    mask: str | None = None,
    flip: Flip = "auto",
) -> RobomimicStore:
    """`open_robomimic` as a format's opener; no pixels are held in memory, whatever the limit."""
    return open_robomimic(path, spec, mask=mask, flip=flip)
