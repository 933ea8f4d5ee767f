"""State-action traces: the small files of demonstrations; made and rendered in `collect`."""

from __future__ import annotations

import importlib.resources
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foreact.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TracedEpisode:
    """One episode of `Traces`: state float32 (T, 5), action float32 (T, 2), goal float32 (3,)."""

    seed: int
    noise: float
    score: float
    goal: np.ndarray
    state: np.ndarray
    action: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Traces:
    """State-action traces of E episodes with N steps in all.

    Attributes:
        env: name of the environment.
        seeds: int64 (E,).
        noise: float32 (E,) standard deviation, px, of what was added to the executed actions.
        score: float32 (E,) largest reward of each episode.
        goal: float32 (E, 3) x, y in px, angle in radians.
        episode_ends: int64 (E,) cumulative.
        state: float32 (N, 5), before each action.
        action: float32 (N, 2), what the expert asked for, without the noise.
    """

    env: str
    seeds: np.ndarray
    noise: np.ndarray
    score: np.ndarray
    goal: np.ndarray
    episode_ends: np.ndarray
    state: np.ndarray
    action: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, episode: int) -> slice:
        """Rows of `state` and `action` that belong to `episode`."""
        return slice(
            int(self.episode_ends[episode - 1]) if episode else 0, int(self.episode_ends[episode])
        )

    def episodes(self) -> list[TracedEpisode]:
        return [
            TracedEpisode(
                seed=int(self.seeds[i]),
                noise=float(self.noise[i]),
                score=float(self.score[i]),
                goal=self.goal[i],
                state=self.state[self.rows(i)],
                action=self.action[self.rows(i)],
            )
            for i in range(len(self))
        ]


def demonstrations(env: str) -> Path:
    """Trace file that ships with the package.

    Raises:
        UserError: none ships for `env`.
    """
    folder = importlib.resources.files("foreact.envs") / "demonstrations"
    path = Path(str(folder / f"{env}.npz"))
    if not path.is_file():
        shipped = sorted(
            p.name.removesuffix(".npz") for p in folder.iterdir() if p.name.endswith(".npz")
        )
        raise UserError(
            f"No demonstrations ship for '{env}', only for {shipped}; make some with "
            "`foreact data collect`."
        )
    return path


def load_traces(path: str | Path) -> Traces:
    """Read a trace file.

    Raises:
        UserError: missing, unreadable, of another kind, or inconsistent.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no trace file at {path}; make one with `foreact data collect`.")
    try:
        with np.load(path, allow_pickle=False) as raw:
            content = {name: raw[name] for name in raw.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"The trace file {path} cannot be read ({error}); delete it and collect again."
        ) from error
    fields = list(Traces.__dataclass_fields__)
    if set(content) != set(fields):
        raise UserError(
            f"{path} should hold {fields}, found {sorted(content)}; it is no trace file."
        )
    traces = Traces(**{**content, "env": str(content["env"])})
    count, ends = len(traces), traces.episode_ends
    consistent = (
        count > 0
        and traces.goal.shape == (count, 3)
        and ends.shape == traces.noise.shape == traces.score.shape == (count,)
        and bool((np.diff(ends, prepend=0) > 0).all())
        and traces.state.shape == (ends[-1], 5)
        and traces.action.shape == (ends[-1], 2)
        and all(np.isfinite(a).all() for a in (traces.goal, traces.state, traces.action))
    )
    if not consistent:
        raise UserError(
            f"The trace file {path} contradicts itself or holds NaN; delete it and collect again."
        )
    return traces


def save_traces(path: Path, env: str, episodes: Sequence[TracedEpisode]) -> None:
    """Write a trace file, all of it or none.

    Raises:
        UserError: the disk refuses; an older file is untouched then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                env=np.array(env),
                seeds=np.array([e.seed for e in episodes], np.int64),
                noise=np.array([e.noise for e in episodes], np.float32),
                score=np.array([e.score for e in episodes], np.float32),
                goal=np.array([e.goal for e in episodes], np.float32),
                episode_ends=np.cumsum([len(e.action) for e in episodes], dtype=np.int64),
                state=np.concatenate([e.state for e in episodes]),
                action=np.concatenate([e.action for e in episodes]),
            )
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"The trace file {path} could not be written ({error}); an older one is untouched."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
