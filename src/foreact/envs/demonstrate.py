"""Episodes of any simulator that an expert plays, kept in an episode store."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foreact.data.stores.writer import StoreWriter
from foreact.envs.collect import check_seeds, require_same_collection
from foreact.envs.workers import keep_each, ordered_map, process_count
from foreact.errors import UserError
from foreact.plugs import Simulator, load_object
from foreact.progress import Progress
from foreact.worlds import Env, Expert


@dataclass(frozen=True)
class Job:
    """One episode to play."""

    make: str
    expert: str
    seed: int


def demonstrate(
    simulator: Simulator,
    episodes: int,
    path: Path,
    *,
    first_seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Let the expert play seeds first_seed, first_seed + 1, ...; store its episodes at `path`.

    Each episode has its `seed` and its `score`, the sum of its rewards. A run that was stopped goes
    on after its last whole episode, a grown number of episodes extends the store, and the result is
    the same whatever the number of workers.

    Args:
        simulator: where; it has an expert.
        episodes: how many there shall be in the store.
        path: folder of the store, new or begun with the same arguments.
        first_seed: seed of the first episode.
        workers: processes; None for one per core.
        progress: whether to show a bar.

    Returns:
        `path`.

    Raises:
        UserError: there is no expert, a number is impossible, or the store is of another
            collection.
    """
    if simulator.make is None or simulator.expert is None:
        raise UserError(
            f"Nobody can show how it is done in '{simulator.name}': its ENV names no expert."
        )
    check_seeds(first_seed, episodes)
    process_count(workers, episodes)  # a wrong number shall leave no empty store behind
    env, _ = _players(simulator.make, simulator.expert)
    notes = {"env": simulator.name, "source": "expert"}
    seeds = np.arange(first_seed, first_seed + episodes)
    with StoreWriter(path, env.spec, attrs=notes) as writer:
        begun = writer.episodes
        require_same_collection(writer, notes, seeds)
        jobs = [Job(simulator.make, simulator.expert, int(seed)) for seed in seeds[begun:]]
        bar = Progress(
            total=max(episodes, begun),
            initial=begun,
            desc=f"collect {simulator.name}",
            unit="ep",
            disable=not progress,
        )
        with ordered_map(workers, len(jobs)) as run, bar:

            def keep(streams: dict[str, np.ndarray]) -> None:
                rewards = streams.pop("rewards")
                if env.spec.has_reward:
                    streams["reward"] = np.append(np.float32(0), rewards[:-1])[:, None]
                seed = int(seeds[writer.episodes])
                writer.append(streams, seed=seed, score=float(rewards.sum()))
                bar.update()

            keep_each(run(play, jobs), keep)
    return path


def play(job: Job) -> dict[str, np.ndarray]:
    """Play one job's episode: observations before each action, actions and rewards."""
    env, expert = _players(job.make, job.expert)
    seen, rewards = env.reset(job.seed), []
    expert.reset(job.seed)
    rows: dict[str, list[np.ndarray]] = {}
    for _ in range(env.max_steps):
        action = np.asarray(expert.act(env, seen), np.float32)
        for name, value in {**seen, "action": action}.items():
            rows.setdefault(name, []).append(np.array(value))
        out = env.step(action)
        seen = out.obs
        rewards.append(out.reward)
        if out.terminated:
            break
    return {name: np.stack(values) for name, values in rows.items()} | {
        "rewards": np.array(rewards, np.float32)
    }


@functools.lru_cache(maxsize=2)
def _players(make: str, expert: str) -> tuple[Env, Expert]:
    return load_object(make, "The environment")(), load_object(expert, "The expert")()
