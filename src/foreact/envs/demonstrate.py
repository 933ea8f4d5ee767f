"""Episodes of any simulator that an expert plays, kept in an episode store."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreact.data.stores.store import open_store
from foreact.data.stores.writer import StoreWriter
from foreact.envs.collect import check_seeds, require_same_collection
from foreact.envs.workers import keep_each, ordered_map, process_count
from foreact.errors import UserError
from foreact.plugs import Simulator, load_object
from foreact.progress import Progress
from foreact.worlds import Env, Expert, Restorable

ENOUGH_TRIES = 20
HOPELESS = 0.1
"""Share of successes, among `ENOUGH_TRIES` or more episodes, below which a collection ends."""


@dataclass(frozen=True)
class Job:
    """One episode to play."""

    make: str
    expert: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Played:
    """One episode.

    Attributes:
        seed: of the episode.
        rows: stream -> what was seen before each action, and the actions.
        rewards: float32 (T,), of each action.
        start: `initial_state`, where the world can be restored to it.
    """

    seed: int
    rows: dict[str, np.ndarray]
    rewards: np.ndarray
    start: dict[str, np.ndarray]

    @property
    def score(self) -> float:
        return float(self.rewards.sum())

    def streams(self, has_reward: bool) -> dict[str, np.ndarray]:
        """As a store keeps them: the reward of a step came with its frame."""
        if not has_reward:
            return self.rows
        return {**self.rows, "reward": np.append(np.float32(0), self.rewards[:-1])[:, None]}


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

    Each episode has its `seed` and its `score`, the sum of its rewards, and where the world is
    `Restorable` its `initial_state`. Where the simulator says what success is, episodes without it
    are left out, and further seeds are played instead. A run that was stopped goes on after its
    last whole episode, a grown number of episodes extends the store, and the result is the same
    whatever the number of workers.

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
        UserError: there is no expert, a number is impossible, the store is of another
            collection, or the expert hardly ever succeeds.
    """
    if simulator.make is None or simulator.expert is None:
        raise UserError(
            f"Nobody can show how it is done in '{simulator.name}': its ENV names no expert."
        )
    check_seeds(first_seed, episodes)
    process_count(workers, episodes)  # a wrong number shall leave no empty store behind
    env, _ = _players(simulator.make, simulator.expert)
    selects = simulator.success_at is not None
    notes = {"env": simulator.name, "source": "expert"}
    notes |= {"first_seed": first_seed} if selects else {}
    with StoreWriter(path, env.spec, attrs=notes) as writer:
        seeds = _seeds_to_come(writer, notes, first_seed, gaps=selects)
        bar = Progress(
            total=max(episodes, writer.episodes),
            initial=writer.episodes,
            desc=f"collect {simulator.name}",
            unit="ep",
            disable=not progress,
        )

        def keep(played: Played) -> None:
            if simulator.success_at is not None and played.score < simulator.success_at:
                return
            writer.append(
                played.streams(env.spec.has_reward),
                seed=played.seed,
                score=played.score,
                **played.start,
            )
            bar.update()

        with bar:
            while (missing := episodes - writer.episodes) > 0:
                batch = list(itertools.islice(seeds, missing))
                _require_hope(simulator.name, writer.episodes, batch[0] - first_seed)
                check_seeds(batch[0], len(batch))
                jobs = [Job(simulator.make, simulator.expert, seed) for seed in batch]
                with ordered_map(workers, len(jobs)) as run:
                    keep_each(run(play, jobs), keep)
    return path


def play(job: Job) -> Played:
    """Play one job's episode."""
    env, expert = _players(job.make, job.expert)
    seen, rewards = env.reset(job.seed), []
    start = {"initial_state": env.state()} if isinstance(env, Restorable) else {}
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
    return Played(
        seed=job.seed,
        rows={name: np.stack(values) for name, values in rows.items()},
        rewards=np.array(rewards, np.float32),
        start=start,
    )


def _seeds_to_come(
    writer: StoreWriter, notes: Mapping[str, Any], first_seed: int, *, gaps: bool
) -> Iterator[int]:
    """Seeds that were not played yet, in order; with `gaps` the store lacks some that were."""
    if not writer.episodes:
        require_same_collection(writer, notes, np.array([first_seed]))
        return itertools.count(first_seed)
    stored = open_store(writer.path).info("seed")
    expected = stored if gaps else np.arange(first_seed, first_seed + len(stored))
    require_same_collection(writer, notes, expected)
    return itertools.count(int(stored[-1]) + 1)


def _require_hope(name: str, kept: int, tried: int) -> None:
    """Give up where the expert hardly ever succeeds, instead of playing for ever."""
    if tried >= ENOUGH_TRIES and kept < tried * HOPELESS:
        raise UserError(
            f"The expert of '{name}' succeeded in {kept} of {tried} episodes, too few to learn "
            "from; check the simulator's version, or the expert."
        )


@functools.lru_cache(maxsize=2)
def _players(make: str, expert: str) -> tuple[Env, Expert]:
    return load_object(make, "The environment")(), load_object(expert, "The expert")()
