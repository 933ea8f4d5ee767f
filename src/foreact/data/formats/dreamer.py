"""Episodes in Dreamer's layout, one .npz file each, as V-D4RL holds its 64-pixel recordings.

Arrays of one length T: `image` uint8 (T, H, W, 3), `action` (T, A) and `reward` (T,) that led to
    the row's frame.
Steps here follow our convention, see `foreact.data.formats.d4rl`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from foreact.data.formats.d4rl import is_d4rl
from foreact.data.formats.d4rl_spec import CAMERA, grade_of, resolve_spec
from foreact.errors import UserError, decoding
from foreact.files import listed
from foreact.types import StreamSpec

KEYS = ("image", "action", "reward")
ENDING = ".npz"


def is_dreamer(path: Path) -> bool:
    """Whether the path is an .npz file, or a folder that holds some and no shards."""
    return bool(_episode_files(path)) and not is_d4rl(path)


def refuse_to_open(path: Path, spec: StreamSpec | None, *, memory_limit: int) -> NoReturn:
    """As a format's opener: such episodes are not read in place, so name the verb that reads them.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{path} holds .npz episodes, which are not opened in place; copy them with `foreact data "
        f"import-d4rl --root {path} --out STORE.zarr` and give that store."
    )


class DreamerEpisodes:
    """The *.npz files of a folder, sorted by name, to copy from.

    Args:
        folder: where they lie, or one file.
        spec, fps: as in `foreact.data.formats.d4rl.open_d4rl`.

    Raises:
        UserError: a file is damaged, lacks arrays or contradicts the others or the spec.
    """

    def __init__(self, folder: Path, *, spec: StreamSpec | None, fps: float | None) -> None:
        self.files = _episode_files(folder)
        with _opened(self.files[0]) as archive:
            self.unused = sorted(set(archive.files) - set(KEYS))
        frames, action, _ = _episode(self.files[0])
        self.spec = resolve_spec(
            self.files[0], frames.shape[1:3], action.shape[1], given=spec, fps=fps
        )
        self.lengths = np.array(
            [len(_arrays(file, ("reward",))["reward"]) for file in self.files], np.int64
        )

    def __len__(self) -> int:
        return len(self.files)

    @property
    def streams(self) -> list[str]:
        return [CAMERA, "action", "reward"]

    @property
    def info_names(self) -> list[str]:
        return ["grade", "source"] if any(grade_of(file) for file in self.files) else ["source"]

    def info(self, name: str) -> np.ndarray:
        """One text per episode: "source", its file's name, or "grade" of the policy."""
        return np.array(
            [f.name if name == "source" else (grade_of(f) or "unknown") for f in self.files], object
        )

    def read(
        self, episode: int, start: int, stop: int, streams: Sequence[str]
    ) -> dict[str, np.ndarray]:
        frames, action, reward = _episode(self.files[episode])
        size, first = self.spec.cameras[CAMERA], self.spec.action
        if frames.shape[1:3] != size:
            raise UserError(
                f"{self.files[episode]} holds frames of {frames.shape[1:3]} pixels, not {size} as "
                "the others."
            )
        if first is not None and action.shape[1] != first.dim:
            raise UserError(
                f"{self.files[episode]} holds actions of {action.shape[1]} dims, not {first.dim} "
                "as the others."
            )
        steps = {CAMERA: frames, "action": action, "reward": reward}
        return {name: steps[name][start:stop] for name in streams}


def _episode_files(path: Path) -> list[Path]:
    if path.is_dir():
        return listed(path, endings=[ENDING])
    return [path] if path.suffix.lower() == ENDING and path.is_file() else []


def _episode(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames uint8 (T, H, W, 3), actions float32 (T, A), rewards (T, 1), by our convention."""
    frames, action, reward = (values := _arrays(file, KEYS)).values()
    whole = len({*map(len, values.values())}) == 1 and len(frames) > 0
    numbers = (
        action.dtype.kind in "iuf"
        and reward.dtype.kind in "iuf"
        and action.ndim == 2
        and reward.ndim == 1
    )
    if not whole or not numbers or frames.dtype != np.uint8 or frames.shape[3:] != (3,):
        shapes = {key: f"{array.dtype} {array.shape}" for key, array in values.items()}
        raise UserError(
            f"{file} should hold image uint8 (T, H, W, 3), action (T, A) and reward "
            f"(T,), found {shapes}."
        )
    if not (np.isfinite(action[1:]).all() and np.isfinite(reward[1:]).all()):
        raise UserError(
            f"{file} holds actions or rewards that are not finite; leave it out or mend it."
        )
    after = np.concatenate([action[1:], np.zeros_like(action[:1])])
    with_frame = np.concatenate([np.zeros_like(reward[:1]), reward[1:]])[:, None]
    return frames, after.astype(np.float32), with_frame.astype(np.float32)


def _arrays(file: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    with _opened(file) as archive:
        if missing := [key for key in keys if key not in archive.files]:
            raise UserError(
                f"{file} lacks an array ('{missing[0]}'); expected {list(KEYS)} of V-D4RL's "
                "episodes."
            )
        return {key: np.atleast_1d(archive[key]) for key in keys}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The archive of a file; whatever numpy raises over it, also while it is read, is told."""
    with decoding(f"{file} is no whole .npz file"), np.load(file, allow_pickle=False) as archive:
        yield archive
