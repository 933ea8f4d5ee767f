"""Episodes of HDF5 files with one group per demonstration, read where they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreact.data.formats.robomimic_actions import ActionMode, mode_of, to_poses
from foreact.data.formats.robomimic_file import Demo, DemoFile
from foreact.data.formats.robomimic_findings import findings_of
from foreact.data.formats.robomimic_spec import (
    Flip,
    Wanted,
    choose_actions,
    require_streams,
    row_width,
    wanted_by_first,
)
from foreact.data.stores.chunks import BlockCache
from foreact.data.stores.episodes import EpisodeStore, Rows
from foreact.data.stores.findings import Finding
from foreact.data.stores.hdf5 import SharedFile, open_rows, read_whole
from foreact.data.stores.rows import HeldRows, JoinedRows
from foreact.errors import UserError, decoding
from foreact.types import StreamSpec

HAND_POSITIONS = ("obs/robot0_eef_pos", "obs/ee_pos")
"""Where the first arm's hand is, in robomimic's and in LIBERO's files."""
CACHE_LIMIT = 64 * 2**20
"""Bytes of decoded blocks of compressed pictures that are kept."""


@dataclass(frozen=True)
class Episode:
    """One demonstration, the file that holds it, and what is done to its pictures."""

    file: DemoFile
    demo: Demo
    shared: SharedFile
    flip: Flip

    def dataset(self, key: str) -> Any:
        """The data set of an array, open."""
        with decoding(f"{self.file.path} is damaged"):
            return self.shared.library[f"data/{self.demo.name}/{key}"]

    def chunk_rows(self, key: str) -> int:
        """Rows of an array that are decoded together; 1 where none is compressed."""
        dataset = self.dataset(key)
        with decoding(f"'{dataset.name}' of {self.file.path} cannot be read"):
            return dataset.chunks[0] if dataset.chunks else 1

    def read(self, key: str) -> np.ndarray:
        """The whole array."""
        return read_whole(self.file.path, self.dataset(key))


class RobomimicStore(EpisodeStore):
    """Demonstrations as episodes; see `robomimic.open_robomimic` and `libero.open_libero`.

    Streams: what is observed, by its key in the file, and "action" float32 (N, A). Numbers are held
    in memory from their first use on; pictures are read when they are asked for.

    Args:
        path: what was opened.
        files: what lies there.
        spec: what the streams mean, or None: as the files say.
        flips: what is done to the pictures of each file.
        lag: by how many steps what is observed lies behind the actions in the files: 0, or 1 where
            row t was seen after action t. The first `lag` actions and last `lag` observations of a
            demonstration have no partner, and are left out.
        has_text: whether such files come with instructions.
        notes: how they are read, for `attrs`.
        reopen: opens the same store in another process.

    Attributes:
        path: where it lies.
        spec: what the streams mean.
        native: whether the spec was read off the files.
        lengths, starts: int64 (E,) steps and first row of each episode.
        episodes: the demonstrations, in the order of their files and numbers.
        files: the files.
        modes: per file, array of actions -> "absolute" or "delta", by the first demonstration.
        action_keys: per file, the array that the stream "action" is made of.
    """

    def __init__(
        self,
        path: Path,
        files: Sequence[DemoFile],
        *,
        spec: StreamSpec | None,
        flips: Sequence[Flip],
        lag: int,
        has_text: bool,
        notes: Mapping[str, Any],
        reopen: Callable[[], RobomimicStore],
    ) -> None:
        self.path, self.files, self.lag, self._reopen = path, files, lag, reopen
        self.flips, self._notes = flips, notes
        self._cache = BlockCache(CACHE_LIMIT)
        self.episodes: list[Episode] = []
        for file, flip in zip(files, flips, strict=True):
            shared = SharedFile(file.path)
            self.episodes += [Episode(file, demo, shared, flip) for demo in file.demos]
        self.lengths = np.array([e.demo.length - lag for e in self.episodes], np.int64)
        at = int(self.lengths.argmin())
        if self.lengths[at] < 1:
            raise UserError(
                f"'{self.episodes[at].demo.name}' of {self.episodes[at].file.path} has 1 step, "
                "whose action was done before its picture; take it out of the file."
            )
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.modes = [self._stored_modes(file) for file in files]
        self.native = spec is None
        wanted = (
            wanted_by_first(files[0], self.modes[0]["actions"], has_text=has_text)
            if spec is None
            else Wanted(spec)
        )
        self.spec = wanted.spec
        require_streams(files, wanted, has_text=has_text)
        self.action_keys = [
            choose_actions(file, wanted, modes)
            for file, modes in zip(files, self.modes, strict=True)
            if self.spec.action is not None
        ]
        self._readers: dict[str, Rows] = {}

    def __reduce__(self) -> tuple[Callable[[], RobomimicStore], tuple[()]]:
        # Worker processes that are spawned, not forked, open the files anew.
        return self._reopen, ()

    @property
    def attrs(self) -> Mapping[str, Any]:
        """How the files are read, and "env_args": file -> settings of its environment."""
        env_args = {file.path.name: file.attrs.get("env_args") for file in self.files}
        return {**self._notes, "flip": sorted(set(self.flips)), "env_args": env_args}

    @property
    def stored_streams(self) -> list[str]:
        observed = {
            key.removeprefix("obs/")
            for key, array in self.episodes[0].demo.arrays.items()
            if key.startswith("obs/")
        }
        return sorted({*observed, "action"})

    @property
    def info_names(self) -> list[str]:
        return ["name", *(["initial_state"] if self._state_sizes() is not None else [])]

    def info(self, name: str) -> np.ndarray:
        """One value per episode.

        "name"; "initial_state" float64 (E, D), see `initial_state`, where all are equally long.
        """
        if name == "name":
            return np.array([self.name_of(episode) for episode in self.episodes], object)
        if name == "initial_state" and self._state_sizes() is not None:
            return np.stack([self.initial_state(episode) for episode in range(len(self))])
        return super().info(name)

    def name_of(self, episode: Episode) -> str:
        """What an episode is called; unique."""
        return episode.demo.name

    def initial_state(self, episode: int) -> np.ndarray:
        """State of the simulator before the episode's first action, float64 (D,).

        Raises:
            UserError: no such episode, or the file does not hold its states.
        """
        return self._state(episode, self.lag)

    def recording(self, episode: int) -> tuple[np.ndarray, np.ndarray]:
        """State before the first action of the file, and all actions, with those left out.

        Returns:
            float64 (D,), and float32 (T, A) as the stream "action" has them; the first `lag` of
            them lead to the episode's first row.

        Raises:
            UserError: no such episode, or the file does not hold its states.
        """
        keys = {f.path: k for f, k in zip(self.files, self.action_keys, strict=True)}
        state, found = self._state(episode, 0), self.episodes[episode]
        actions = found.read(keys[found.file.path]).reshape(found.demo.length, -1)
        return state, self._as_spec(actions).astype(np.float32)

    def reader(self, stream: str) -> Rows:
        if stream not in self._readers:
            self._readers[stream] = self._make_reader(stream)
        return self._readers[stream]

    def has(self, stream: str) -> bool:
        return stream in self.streams

    def findings(self) -> list[Finding]:
        return findings_of(self)

    # --- reading ----------------------------------------------------------------------------------

    def stored(self, key: str) -> list[np.ndarray]:
        """An array of numbers (T, D) of every demonstration, whole and as it is stored."""
        return [episode.read(key).reshape(episode.demo.length, -1) for episode in self.episodes]

    def stored_actions(self) -> list[np.ndarray]:
        """The array that the stream "action" is made of, of every demonstration."""
        keys = {f.path: k for f, k in zip(self.files, self.action_keys, strict=True)}
        return [e.read(keys[e.file.path]).reshape(e.demo.length, -1) for e in self.episodes]

    def _state(self, episode: int, row: int) -> np.ndarray:
        self._first_row(episode, 0, 0)
        found = self.episodes[episode]
        if "states" not in found.demo.arrays:
            raise UserError(
                f"'{found.demo.name}' of {found.file.path} holds no states; use a file with "
                "states to begin episodes where demonstrations did."
            )
        with decoding(f"The states of '{found.demo.name}' in {found.file.path} cannot be read"):
            return np.asarray(found.dataset("states")[row], np.float64).reshape(-1)

    def _make_reader(self, stream: str) -> Rows:
        if stream in self.spec.cameras:
            shape = (*self.spec.cameras[stream], 3)
            return JoinedRows(
                self.starts, shape, np.uint8, lambda episode: self._pictures(stream, episode)
            )
        if stream in self.spec.state:
            parts = self.stored(f"obs/{stream}")
            return _held([x[: len(x) - self.lag] for x in parts])
        if stream == "action" and self.spec.action is not None:
            return _held([self._as_spec(x[self.lag :]) for x in self.stored_actions()])
        raise UserError(f"{self.label} has no stream '{stream}'; it has {self.streams}.")

    def _as_spec(self, actions: np.ndarray) -> np.ndarray:
        """Stored actions (T, D) as the spec has them."""
        action = self.spec.action
        is_same = action is None or actions.shape[1] == action.dim
        return actions if is_same else to_poses(actions)

    def _pictures(self, camera: str, episode: int) -> Rows:
        found = self.episodes[episode]
        stored = open_rows(found.shared, found.dataset(f"obs/{camera}"), self._cache)
        return _Flipped(stored, found.flip)

    def _stored_modes(self, file: DemoFile) -> dict[str, ActionMode]:
        """Arrays of actions of a file -> what their values are, by its first demonstration."""
        first = next(episode for episode in self.episodes if episode.file is file)
        hand = next((key for key in HAND_POSITIONS if key in first.demo.arrays), None)
        positions = None if hand is None else first.read(hand)
        keys = [key for key in ("actions", "actions_abs") if key in first.demo.arrays]
        return {
            key: mode_of(first.read(key).reshape(first.demo.length, -1), positions) for key in keys
        }

    def _state_sizes(self) -> int | None:
        """Numbers of a state of the simulator, where all demonstrations have equally many."""
        sizes = {
            row_width(e.demo.arrays["states"].shape) if "states" in e.demo.arrays else None
            for e in self.episodes
        }
        return sizes.pop() if len(sizes) == 1 else None


def _held(parts: Sequence[np.ndarray]) -> HeldRows:
    return HeldRows(np.concatenate([part.astype(np.float32) for part in parts]))


class _Flipped:
    """Pictures as they are stored, shown upright."""

    def __init__(self, pictures: Rows, flip: Flip) -> None:
        self.pictures, self.flip = pictures, flip

    def rows(self, index: np.ndarray) -> np.ndarray:
        pictures = self.pictures.rows(index)
        if self.flip == "vertical":
            return pictures[..., ::-1, :, :]
        return pictures[..., ::-1, ::-1, :] if self.flip == "turn" else pictures
