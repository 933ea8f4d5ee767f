"""One HDF5 shard in V-D4RL's layout (see `data.formats.d4rl`), opened and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foreact.data.stores.chunks import BlockCache
from foreact.data.stores.episodes import Rows
from foreact.data.stores.hdf5 import SharedFile, open_hdf5, open_rows, read_whole
from foreact.errors import UserError, decoding

if TYPE_CHECKING:
    import h5py

KEYS = ("step_type", "observation", "action", "reward")
FIRST, MID, LAST = 0, 1, 2


@dataclass(frozen=True)
class Shard:
    """What is known of a shard once it is open.

    Attributes:
        file: where it lies.
        firsts: int64 (E,), first row of each episode.
        action: float32 (N, A), by our convention: done after the row's frame, zeros in an episode's
            last row.
        reward: float32 (N, 1), 0 in an episode's first row.
        frames: reader of uint8 (N, 3, H, W).
        size: height and width of the frames.
        codes: key of each array of codes -> shape of a frame's codes, (L,) or (h, w).
        unused: keys of the arrays that are none of these.
    """

    file: Path
    firsts: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    frames: Rows
    size: tuple[int, int]
    codes: Mapping[str, tuple[int, ...]]
    unused: Sequence[str]

    def __len__(self) -> int:
        return len(self.reward)


def open_shard(path: Path, cache: BlockCache) -> Shard:
    """Open a shard; its frames and codes stay on disk.

    Raises:
        UserError: it is cut short, lacks arrays, or holds something else than it should.
    """
    with open_hdf5(path) as file, decoding(f"{path} is damaged"):
        return _read(path, file, cache)


def _read(path: Path, file: h5py.File, cache: BlockCache) -> Shard:
    if missing := [key for key in KEYS if key not in file]:
        raise UserError(
            f"{path} lacks {missing}; expected V-D4RL's arrays {list(KEYS)}, found {sorted(file)}."
        )
    arrays: dict[str, Any] = {
        str(key): file[key] for key in file if getattr(file[key], "shape", ())
    }
    lengths = {key: array.shape[0] for key, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()) or not set(KEYS) <= set(arrays):
        raise UserError(
            f"The arrays of {path} should have one length of at least 1 row, found {lengths}."
        )
    frames = arrays["observation"]
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise UserError(
            f"'observation' of {path} should be uint8 (N, 3, H, W), found "
            f"{frames.dtype} {frames.shape}."
        )
    kinds = read_whole(path, arrays["step_type"])
    firsts = _first_rows(kinds, path)
    action, reward = (
        _finite(path, arrays[key], key, kinds == FIRST) for key in ("action", "reward")
    )
    codes = {key: array.shape[1:] for key, array in arrays.items() if _are_codes(key, array)}
    return Shard(
        file=path,
        firsts=firsts,
        # First rows hold zeros, which become those of the last rows.
        action=np.roll(action, -1, axis=0),
        reward=reward[:, :1],
        frames=open_rows(SharedFile(path), frames, cache),
        size=(int(frames.shape[2]), int(frames.shape[3])),
        codes=codes,
        unused=sorted(set(map(str, file)) - {*KEYS, *codes}),
    )


def require_alike(shards: Sequence[Shard]) -> None:
    """Raise a `UserError` where a folder's shards differ in frame size or action dims."""
    a = shards[0]
    for b in shards[1:]:
        for what, mine, theirs in (
            ("frame size", a.size, b.size),
            ("action dims", a.action.shape[1], b.action.shape[1]),
        ):
            if mine != theirs:
                raise UserError(
                    f"The {what} of {a.file} ({mine}) and of {b.file} ({theirs}) differ; keep one "
                    "task and size per folder."
                )


def _first_rows(kinds: np.ndarray, path: Path) -> np.ndarray:
    """First rows, int64, of the episodes that step types (N,) describe."""
    label = f"'step_type' of {path}"
    if (
        kinds.ndim != 1
        or kinds.dtype.kind not in "iuf"
        or not np.isin(kinds, (FIRST, MID, LAST)).all()
    ):
        step_types = np.unique(kinds)[:5].tolist()
        raise UserError(
            f"{label} should be (N,) of 0 (first), 1 (mid) and 2 (last), found "
            f"{kinds.shape} of {step_types}."
        )
    if kinds[0] != FIRST:
        raise UserError(
            f"{label} should begin with 0, the first step of an episode, found {kinds[0]:g}."
        )
    orphans = 1 + np.flatnonzero((kinds[:-1] == LAST) & (kinds[1:] != FIRST))
    if len(orphans):
        row = orphans[0]
        raise UserError(
            f"{label} should have a first step (0) after each last one (2), found {kinds[row]:g} "
            f"in row {row}."
        )
    return np.flatnonzero(kinds == FIRST)


def _finite(path: Path, array: Any, key: str, first: np.ndarray) -> np.ndarray:
    """Actions or rewards as finite float32 (N, D); meaningless first rows become zeros."""
    if (
        array.dtype.kind not in "iufb"
        or array.ndim > 2
        or (key == "reward" and array.size != len(first))
    ):
        expected = "(N,)" if key == "reward" else "(N, A)"
        raise UserError(
            f"'{key}' of {path} should be numbers {expected}, found {array.dtype} {array.shape}."
        )
    values = read_whole(path, array).astype(np.float32).reshape(len(first), -1)
    values[first] = 0.0
    if not (finite := np.isfinite(values).all(axis=1)).all():
        row = int(np.argmin(finite))
        raise UserError(
            f"'{key}' of {path} should be finite, found {values[row].tolist()} in row {row}; mend "
            "the file."
        )
    return values


def _are_codes(key: str, array: Any) -> bool:
    """Whether an array is (N, L) or (N, h, w) of whole numbers, as integers or, some rows, floats.

    One number a frame is something else, such as the discount.
    """
    if key in KEYS or array.ndim not in (2, 3) or array.dtype.kind not in "iuf":
        return False
    if np.prod(array.shape[1:]) < 2 or array.dtype.kind in "iu":
        return bool(np.prod(array.shape[1:]) > 1)
    rows = array[:64]
    return bool((np.isfinite(rows) & (rows >= 0) & (rows == np.rint(rows))).all())
