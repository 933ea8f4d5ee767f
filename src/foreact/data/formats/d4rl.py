"""Offline data of V-D4RL and of Video Occupancy Models: HDF5 shards, opened as they are.

A shard holds whole episodes one after another, in arrays of one length N:

    step_type    (N,)                0 first, 1 mid, 2 last step of an episode
    observation  uint8 (N, 3, H, W)
    action       float (N, A)        that led to the row's frame; meaningless in a first row
    reward       float (N,)          that came with it; likewise
    <codes>      (N, L) or (N, h, w)  optional: vae_latents (L = 25), dino_latents (L = 196)

As everywhere in Foreact, a step holds the action that was done after its frame was seen: actions
move up by one row, the last step of an episode gets zeros, and the reward of the first step is 0.

Actions and rewards are read when a shard is opened; codes are held in memory from their first use
on, as uint16; frames are read when they are asked for. The 300,600 rows of the VOC release take
some 20 MB in memory that way, and 15 MB for their codes (118 MB for those of DINO).

A compressed frame comes with the whole row of chunks around it, where h5py chose the chunks over a
thousand rows of pixels. To learn from such frames in random order, import them first
(`foreact.data.formats.replay_buffer`).
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from foreact.data.formats.d4rl_shard import open_shard, require_alike
from foreact.data.formats.d4rl_spec import CAMERA, grade_of, resolve_spec
from foreact.data.stores.chunks import BlockCache
from foreact.data.stores.episodes import EpisodeStore, Rows
from foreact.data.stores.hdf5 import open_hdf5, read_whole
from foreact.data.stores.rows import HeldRows, JoinedRows
from foreact.errors import UserError
from foreact.files import listed
from foreact.types import StreamSpec

TOKENS = f"tokens_{CAMERA}"
ENDINGS = (".hdf5", ".h5")
"""Of shards' names, in lower or upper case."""
CACHE_LIMIT = 64 * 2**20
"""Bytes of decoded blocks of compressed frames that are kept."""


def is_d4rl(path: str | Path) -> bool:
    """Whether the path is an HDF5 file or a folder that holds some."""
    path = Path(path)
    if path.is_dir():
        return bool(listed(path, endings=ENDINGS))
    return path.is_file() and path.suffix.lower() in ENDINGS


def open_d4rl(
    path: str | Path,
    *,
    spec: StreamSpec | None = None,
    fps: float | None = None,
    codes: str | None = None,
    grid: tuple[int, int] | None = None,
    vocab: int | None = None,
) -> D4RLStore:
    """Open shards lazily: episodes, actions and rewards are checked, frames and codes are not.

    Args:
        path: a folder, whose .hdf5 and .h5 files are taken in the natural order of their names, or
            one file.
        spec: what the streams mean, such as a task's; by default what the files and `fps` say.
        fps: steps per second; by default the spec's, or those of the domain in the path (cheetah,
            walker, ...).
        codes: key of the codes; by default the only such array that all files hold. Where they hold
            several, or not all of them one, none is taken, with a warning; "none": without one.
        grid: height and width of a frame's codes; by default as they lie, or a square.
        vocab: size of the codebook; codes outside are refused when they are read.

    Raises:
        UserError: h5py is not installed; there is no shard; one is cut short, lacks arrays, holds
            frames or numbers of another kind than the others, NaN, or steps in an impossible order;
            or the spec says otherwise.
    """
    return D4RLStore(Path(path), spec=spec, fps=fps, codes=codes, grid=grid, vocab=vocab)


def open_shards(path: Path, spec: StreamSpec | None, *, memory_limit: int) -> D4RLStore:
    """`open_d4rl` as a format's opener; `memory_limit` is unused: no pixels are held in memory."""
    return open_d4rl(path, spec=spec)


class D4RLStore(EpisodeStore):
    """See `open_d4rl`.

    Streams: "pixels" uint8 (N, H, W, 3), "action" float32 (N, A), "reward" float32 (N, 1), and,
    where there are codes, "tokens_pixels" uint16 (N, h, w).

    Attributes:
        path: where the shards lie.
        spec: what the streams mean.
        native: whether the spec was read off the shards.
        codes: key of the codes that are taken, or None.
        code_kinds: keys of all arrays of codes.
        unused: keys of the arrays that are neither a stream nor codes.
        lengths, starts: int64 (E,) steps and first row of each episode. An episode ends with its
            file.
    """

    def __init__(
        self,
        path: Path,
        *,
        spec: StreamSpec | None,
        fps: float | None,
        codes: str | None,
        grid: tuple[int, int] | None,
        vocab: int | None,
    ) -> None:
        self._options = {"spec": spec, "fps": fps, "codes": codes, "grid": grid, "vocab": vocab}
        self.path, self._grid, self._vocab = path, grid, vocab
        cache = BlockCache(CACHE_LIMIT)
        self._shards = [open_shard(file, cache) for file in _shard_files(path)]
        require_alike(self._shards)
        self.code_kinds = sorted({key for shard in self._shards for key in shard.codes})
        self.unused = sorted({key for shard in self._shards for key in shard.unused})
        self.codes = self._choose_codes(codes)
        self.native = spec is None
        first = self._shards[0]
        self.spec = resolve_spec(first.file, first.size, first.action.shape[1], given=spec, fps=fps)
        firsts = [shard.firsts for shard in self._shards]
        self.lengths = np.concatenate(
            [np.diff(f, append=len(s)) for f, s in zip(firsts, self._shards, strict=True)]
        )
        self.starts = np.cumsum(self.lengths) - self.lengths
        self._readers: dict[str, Rows] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes that are spawned, not forked, open the shards anew.
        return {"path": self.path, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], **state["options"])

    @property
    def files(self) -> list[Path]:
        return [shard.file for shard in self._shards]

    @property
    def info_names(self) -> list[str]:
        return ["grade", "source"] if any(grade_of(file) for file in self.files) else ["source"]

    def info(self, name: str) -> np.ndarray:
        """One text per episode, (E,): "source", its file name; "grade", of the policy, if known."""
        if name not in self.info_names:
            return super().info(name)
        texts = [
            file.name if name == "source" else (grade_of(file) or "unknown") for file in self.files
        ]
        episodes = [len(shard.firsts) for shard in self._shards]
        return np.repeat(np.array(texts, object), episodes)

    def reader(self, stream: str) -> Rows:
        """The reader of one stream; numbers and codes are held in memory from the first use on."""
        if stream not in self._readers:
            self._readers[stream] = self._make_reader(stream)
        return self._readers[stream]

    def has(self, stream: str) -> bool:
        """Whether there is such a stream."""
        return stream in self.streams or (stream == TOKENS and self.codes is not None)

    # --- opening ----------------------------------------------------------------------------------

    def _make_reader(self, stream: str) -> Rows:
        if stream == CAMERA:
            frames = [shard.frames for shard in self._shards]
            shape = (3, *self._shards[0].size)
            return _Frames(
                JoinedRows(self._shard_starts, shape, np.uint8, lambda number: frames[number])
            )
        if stream == "action":
            return HeldRows(np.concatenate([shard.action for shard in self._shards]))
        if stream == "reward":
            return HeldRows(np.concatenate([shard.reward for shard in self._shards]))
        if stream == TOKENS and self.codes is not None:
            return HeldRows(self._read_codes(self.codes))
        raise UserError(
            f"The shards in {self.path} have no stream '{stream}'; they have {self.streams} and "
            f"the codes {self.code_kinds}."
        )

    @property
    def _shard_starts(self) -> np.ndarray:
        return np.cumsum([0, *map(len, self._shards[:-1])])

    def _choose_codes(self, wanted: str | None) -> str | None:
        if wanted == "none" or (wanted is None and not self.code_kinds):
            return None
        if wanted is None:
            wanted = self.code_kinds[0]
            if len(self.code_kinds) == 1 and all(wanted in shard.codes for shard in self._shards):
                return wanted
            has = "; ".join(
                f"'{key}' in {sum(key in shard.codes for shard in self._shards)}"
                for key in self.code_kinds
            )
            warnings.warn(
                f"No codes are taken from the {len(self._shards)} shards in {self.path}, which "
                f"hold several kinds, or not all of them one ({has}): `foreact data import-d4rl "
                "--codes` chooses.",
                stacklevel=2,
            )
            return None
        for shard in self._shards:
            if wanted not in shard.codes:
                raise UserError(
                    f"{shard.file} holds no codes '{wanted}'; it holds the codes "
                    f"{sorted(shard.codes)}."
                )
        return wanted

    def _read_codes(self, key: str) -> np.ndarray:
        """All codes: uint16 (N, h, w)."""
        counts = {math.prod(shard.codes[key]): shard.file for shard in self._shards}
        if len(counts) > 1:
            (a, one), (b, other), *_ = counts.items()
            raise UserError(
                f"'{key}' has {a} codes a frame in {one} and {b} in {other}; keep one "
                "kind per folder."
            )
        count = next(iter(counts))
        shapes = {shape for shard in self._shards if len(shape := shard.codes[key]) == 2}
        side = math.isqrt(count)
        grid = self._grid or min(shapes, default=(side, side))
        if grid[0] * grid[1] != count or shapes - {grid}:
            lie = f", which lie as {min(shapes)[0]} x {min(shapes)[1]}," if shapes else ""
            raise UserError(
                f"The {count} codes a frame in '{key}' of {self.path}{lie} fill no grid of "
                f"{grid[0]} x {grid[1]}; give grid."
            )
        limit = min(self._vocab or 2**16, 2**16)
        whole = np.empty((sum(map(len, self._shards)), count), np.uint16)
        for start, shard in zip(self._shard_starts, self._shards, strict=True):
            with open_hdf5(shard.file) as file:
                codes = read_whole(shard.file, file[key]).reshape(len(shard), count)
            are_whole = codes.dtype.kind != "f" or bool((codes == np.rint(codes)).all())
            if not are_whole or codes.min() < 0 or codes.max() >= limit:
                wrong = (codes < 0) | (codes >= limit) | (codes != np.rint(codes))
                row, place = np.argwhere(wrong)[0]
                raise UserError(
                    f"'{key}' of {shard.file} should hold codes 0..{limit - 1}, found "
                    f"{codes[row, place]} in row {row}; use the tokenizer that made them."
                )
            whole[start : start + len(shard)] = codes
        return whole.reshape(-1, *grid)


class _Frames:
    """Frames of all shards, channels last."""

    def __init__(self, frames: Rows) -> None:
        self.frames = frames

    def rows(self, index: np.ndarray) -> np.ndarray:
        # A view: batches want the channels first again.
        return np.moveaxis(self.frames.rows(index), -3, -1)


def _shard_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = listed(path, endings=ENDINGS)
    if not files:
        if not path.is_dir():
            state = "does not exist"
        elif any(path.iterdir()):
            state = f"holds no {' or '.join(ENDINGS)} file"
        else:
            state = "is an empty folder"
        raise UserError(f"{path} {state}; name the folder of V-D4RL's shards.")
    return files
