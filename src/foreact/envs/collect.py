"""Demonstrations: experts run in parallel into small state-action traces; traces rendered into episode stores."""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import multiprocessing
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from foreact.data.store import StoreWriter, open_store
from foreact.envs.pusht import PUSHT_SPEC, WORLD_SIZE, PushTEnv, render_state
from foreact.envs.pusht_expert import PushTExpert
from foreact.types import UserError

FIRST_TEST_SEED = 100_000
"""Seeds from here on are for evaluation; no collection may hold them."""

SAVE_EVERY = 10  # episodes between two writes of the trace file
NOISE_HOLD = 5  # steps from one draw of the noise to the next
NOISE_STREAM = 0x4015  # keeps the noise's draws apart from any other use of the episode's seed


@dataclass(frozen=True, kw_only=True)
class Task:
    """An environment that has an expert, both made anew in every worker process."""

    env: Callable[[], PushTEnv]
    expert: Callable[[], PushTExpert]


EXPERTS: dict[str, Task] = {
    "pusht": Task(env=functools.partial(PushTEnv, goal="fixed", image=False), expert=PushTExpert),
    "pusht-m": Task(env=functools.partial(PushTEnv, goal="random", image=False), expert=PushTExpert),
}


@dataclass(frozen=True, kw_only=True)
class Traces:
    """State-action traces of E episodes with N steps in all.

    Attributes:
        env: name in `EXPERTS`.
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
        return slice(int(self.episode_ends[episode - 1]) if episode else 0, int(self.episode_ends[episode]))


def demonstrations(env: str) -> Path:
    """Trace file that ships with the package.

    Raises:
        UserError: none ships for `env`.
    """
    folder = importlib.resources.files("foreact.envs") / "demonstrations"
    path = Path(str(folder / f"{env}.npz"))
    if not path.is_file():
        known = sorted(p.name.removesuffix(".npz") for p in folder.iterdir() if p.name.endswith(".npz"))
        raise UserError(f"No demonstrations ship for '{env}', only for {known}; make some with `foreact data collect`.")
    return path


# --- traces --------------------------------------------------------------------------------------------------------


def collect(
    env: str,
    episodes: int,
    path: str | Path,
    *,
    first_seed: int = 0,
    noise: float | Sequence[float] = 0.0,
    workers: int | None = None,
    progress: bool = True,
) -> Traces:
    """Run the expert of `env` on the seeds first_seed, first_seed + 1, ... and keep its traces at `path` (.npz).

    The file is replaced every few episodes. A run that was stopped goes on after the episodes that are in the file,
    and the result is the same whatever the number of workers.

    Args:
        env: "pusht" or "pusht-m".
        episodes: how many there shall be in the file.
        path: trace file, new or begun with the same arguments (fewer episodes are extended, more are kept).
        first_seed: seed of the first episode.
        noise: px, standard deviation of smooth noise on the executed actions; the recorded ones are clean, so that
            episodes show how to recover. Several values take turns, such as (0, 15) for every other episode.
        workers: processes; None for one per CPU.
        progress: whether to show a bar.

    Raises:
        UserError: unknown environment, impossible number, a test seed, or a file of another collection.
    """
    if env not in EXPERTS:
        raise UserError(f"There is an expert for {sorted(EXPERTS)}, none for '{env}'.")
    levels = [float(n) for n in (noise if isinstance(noise, Sequence) else [noise])]
    if not levels or not all(0.0 <= n < np.inf for n in levels):
        raise UserError(f"Noise should be one or more numbers of pixels >= 0, found {noise}.")
    if episodes < 1 or first_seed < 0:
        raise UserError(f"Expected episodes >= 1 and first_seed >= 0, found {episodes} and {first_seed}.")
    if first_seed + episodes > FIRST_TEST_SEED:
        raise UserError(
            f"Seeds from {FIRST_TEST_SEED} on are test seeds and {first_seed}..{first_seed + episodes - 1} reaches "
            "into them; choose a smaller first_seed or fewer episodes."
        )
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"A trace file ends in .npz, found {path.name}; give such a name.")
    seeds = np.arange(first_seed, first_seed + episodes)
    noises = np.resize(np.array(levels, np.float32), episodes)
    done = _begun(path, env, seeds, noises)
    jobs = [(env, int(s), float(n)) for s, n in zip(seeds, noises, strict=True)][len(done) :]
    with _pool(workers, len(jobs)) as run, tqdm(total=episodes, initial=len(done), desc=f"collect {env}", unit="ep",
                                                disable=not progress) as bar:  # fmt: skip
        for result in run(_demonstrate, jobs):
            done.append(result)
            bar.update()
            if len(done) % SAVE_EVERY == 0 or len(done) == episodes:
                _save(path, env, done)
    return load_traces(path)


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
        raise UserError(f"The trace file {path} cannot be read ({error}); delete it and collect again.") from error
    fields = list(Traces.__dataclass_fields__)
    if set(content) != set(fields):
        raise UserError(f"{path} should hold {fields}, found {sorted(content)}; it is no trace file.")
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
        raise UserError(f"The trace file {path} contradicts itself or holds NaN; delete it and collect again.")
    return traces


Episode = dict[str, Any]


def _demonstrate(job: tuple[str, int, float]) -> Episode:
    name, seed, noise = job
    env, expert = _players(name)
    state = env.reset(seed)["state"]
    expert.reset()
    goal = env.goal.astype(np.float32)
    states, actions, score = [], [], 0.0
    for disturbance in itertools.islice(smooth_noise(seed, noise), env.max_steps):
        action = expert.act(state, goal)
        states.append(state)
        actions.append(action)
        out = env.step(np.clip(action + disturbance, 0.0, WORLD_SIZE))
        state, score = out.obs["state"], max(score, out.reward)
        if out.terminated:
            break
    return {"seed": seed, "noise": noise, "score": score, "goal": goal, "state": states, "action": actions}


@functools.lru_cache(maxsize=2)
def _players(name: str) -> tuple[PushTEnv, PushTExpert]:
    return EXPERTS[name].env(), EXPERTS[name].expert()


def smooth_noise(seed: int, sigma: float) -> Iterator[np.ndarray]:
    """Endless noise (2,): straight lines between Gaussian draws that are NOISE_HOLD steps apart."""
    draw = np.random.default_rng([seed, NOISE_STREAM])
    last, following = draw.normal(0.0, sigma, (2, 2))
    while True:
        for step in range(NOISE_HOLD):
            yield last + (following - last) * (step / NOISE_HOLD)
        last, following = following, draw.normal(0.0, sigma, 2)


def _begun(path: Path, env: str, seeds: np.ndarray, noises: np.ndarray) -> list[Episode]:
    """Episodes that an earlier run left at `path`."""
    if not path.exists():
        return []
    old = load_traces(path)
    shared = min(len(old), len(seeds))
    same = np.array_equal(old.seeds[:shared], seeds[:shared]) and np.array_equal(old.noise[:shared], noises[:shared])
    if old.env != env or not same:
        raise UserError(
            f"{path} holds another collection ({old.env}, {len(old)} episodes from seed {old.seeds[0]}, noise "
            f"{sorted({float(n) for n in old.noise})}); choose another path or the same arguments."
        )
    return [
        {
            "seed": old.seeds[i],
            "noise": old.noise[i],
            "score": old.score[i],
            "goal": old.goal[i],
            "state": old.state[old.rows(i)],
            "action": old.action[old.rows(i)],
        }
        for i in range(len(old))
    ]


def _save(path: Path, env: str, episodes: list[Episode]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                env=np.array(env),
                seeds=np.array([e["seed"] for e in episodes], np.int64),
                noise=np.array([e["noise"] for e in episodes], np.float32),
                score=np.array([e["score"] for e in episodes], np.float32),
                goal=np.array([e["goal"] for e in episodes], np.float32),
                episode_ends=np.cumsum([len(e["action"]) for e in episodes], dtype=np.int64),
                state=np.concatenate([np.asarray(e["state"], np.float32) for e in episodes]),
                action=np.concatenate([np.asarray(e["action"], np.float32) for e in episodes]),
            )
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"The trace file {path} could not be written ({error}); an older one is untouched.") from error
    finally:
        temporary.unlink(missing_ok=True)


# --- rendering -----------------------------------------------------------------------------------------------------


def render_traces(
    trace_path: str | Path, store_path: str | Path, *, workers: int | None = None, progress: bool = True
) -> Path:
    """Draw every step of a trace file and write an episode store, with `seed`, `goal`, `noise` and `score` per episode.

    A rendering that was stopped goes on after its last whole episode; a grown trace file extends its store.

    Args:
        trace_path: trace file from `collect`, or `demonstrations(env)`.
        store_path: folder of the store, new or begun from the same traces.
        workers: processes; None for one per CPU.
        progress: whether to show a bar.

    Returns:
        `store_path`.

    Raises:
        UserError: no trace file, or a store of other episodes.
    """
    traces, store_path = load_traces(trace_path), Path(store_path)
    with StoreWriter(store_path, PUSHT_SPEC, attrs={"env": traces.env, "source": "expert"}) as writer:
        begun = writer.episodes
        if begun and not np.array_equal(open_store(store_path).info("seed"), traces.seeds[:begun]):
            raise UserError(f"The store {store_path} holds other episodes than {trace_path}; choose another path.")
        jobs = [(traces.state[traces.rows(i)], traces.goal[i]) for i in range(begun, len(traces))]
        with _pool(workers, len(jobs)) as run, tqdm(total=len(traces), initial=begun, desc=f"render {store_path.name}",
                                                    unit="ep", disable=not progress) as bar:  # fmt: skip
            for episode, images in enumerate(run(_draw, jobs), start=begun):
                rows = traces.rows(episode)
                writer.append(
                    {"img": images, "state": traces.state[rows], "action": traces.action[rows]},
                    seed=int(traces.seeds[episode]),
                    goal=traces.goal[episode],
                    noise=float(traces.noise[episode]),
                    score=float(traces.score[episode]),
                )
                bar.update()
    return store_path


def _draw(job: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    states, goal = job
    return np.stack([render_state(state, goal) for state in states])


# --- processes -----------------------------------------------------------------------------------------------------


@contextmanager
def _pool(workers: int | None, jobs: int) -> Iterator[Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]]:
    """An ordered, lazy parallel map; in this process where one worker is enough."""
    if workers is not None and workers < 1:
        raise UserError(f"Expected at least one worker, found {workers}.")
    count = min(workers or os.cpu_count() or 1, jobs)
    if count <= 1:
        yield map
        return
    # Spawned, since a forked child of a process that runs torch threads may hang.
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        yield lambda function, items: pool.imap(function, items, chunksize=1)
