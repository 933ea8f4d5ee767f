"""DeepMind Control episodes by policies of three grades, rendered as played, into stores."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from foreact.data.stores.store import StoreWriter
from foreact.envs.collect import HELD_OUT_SEED, check_seeds, require_same_collection
from foreact.envs.dmc import CAMERA, DMCEnv, split_name
from foreact.envs.mppi import MPPI, MPPIConfig
from foreact.envs.workers import keep_each, ordered_map, process_count
from foreact.errors import UserError
from foreact.machine import cores
from foreact.progress import Progress

Grade = Literal["random", "medium", "expert"]
PolicyName = Literal["random", "medium", "expert", "mixed"]

POLICY_STREAM = 0xD3C0  # keeps a policy's draws apart from any other use of the episode's seed
MIXED_EPISODES = 102
HELD_OUT_EPISODES = 12


@dataclass(frozen=True, kw_only=True)
class Demonstrator:
    """A planner, and the standard deviation of the noise that is added to its actions.

    The noise is part of what is done and recorded: a model of the world needs to see the actions
        that were taken.
    """

    plan: MPPIConfig
    noise: float


# Medium sees too short a way ahead, tries too little to move well, and has a shaky hand. Mean
# returns of random, medium and expert, 34 episodes each: 7, 337 and 601 in cheetah_run, 41, 496 and
# 906 in walker_walk.
DEMONSTRATORS: dict[tuple[str, Grade], Demonstrator] = {
    ("cheetah_run", "expert"): Demonstrator(plan=MPPIConfig(samples=64, horizon=30), noise=0.1),
    ("cheetah_run", "medium"): Demonstrator(plan=MPPIConfig(samples=16, horizon=16), noise=0.2),
    ("walker_walk", "expert"): Demonstrator(plan=MPPIConfig(samples=32, horizon=10), noise=0.1),
    ("walker_walk", "medium"): Demonstrator(plan=MPPIConfig(samples=8, horizon=9), noise=0.3),
}


@dataclass(frozen=True)
class Job:
    """One episode to play: `threads` decides how fast, nothing else."""

    name: str
    seed: int
    grade: Grade
    shadows: bool
    threads: int


@dataclass(frozen=True)
class Played:
    """One episode: pixels uint8 (T, H, W, 3), action float32 (T, A), reward float32 (T, 1)."""

    pixels: np.ndarray
    action: np.ndarray
    reward: np.ndarray


def grades(policy: PolicyName, episodes: int) -> list[Grade]:
    """Policy grade of each episode; a mixed set alternates, so that any part of it is mixed."""
    each = get_args(Grade) if policy == "mixed" else (policy,)
    return [each[i % len(each)] for i in range(episodes)]


def collect_store(
    env: str,
    policy: PolicyName,
    episodes: int,
    path: str | Path,
    *,
    first_seed: int = 0,
    shadows: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Play seeds first_seed, first_seed + 1, ...; store pixels, actions and rewards at `path`.

    Each episode has its `seed`, `grade`, `noise` and `score`, the sum of its rewards. The last
    action is zeros and the first reward 0. A run that was stopped goes on after its last whole
    episode, a grown number of episodes extends the store, and the result is the same whatever the
    number of workers.

    Args:
        env: name in dm_control's suite, such as "dmc/cheetah_run".
        policy: "random" (uniform actions), "medium" and "expert" (planners on the true simulator,
            see `DEMONSTRATORS`), or "mixed" (these three in turn). Planners exist for cheetah_run
            and walker_walk.
        episodes: how many there shall be in the store.
        path: folder of the store, new or begun with the same arguments.
        first_seed: seed of the first episode.
        shadows: whether pictures have shadows, as V-D4RL's have; without them drawing is some five
            times as fast.
        workers: processes; None for one per CPU.
        progress: whether to show a bar.

    Returns:
        `path`.

    Raises:
        UserError: unknown environment or policy, no planner, a test seed, or a store of another
            collection.
    """
    if policy not in get_args(PolicyName):
        raise UserError(
            f"The policy is one of {', '.join(get_args(PolicyName))}; found '{policy}'."
        )
    check_seeds(first_seed, episodes)
    process_count(workers, episodes)  # a wrong number shall leave no empty store behind
    name = "_".join(split_name(env))
    path, turns = Path(path), grades(policy, episodes)
    if missing := sorted({g for g in turns if g != "random" and (name, g) not in DEMONSTRATORS}):
        known = sorted({task for task, _ in DEMONSTRATORS})
        raise UserError(
            f"Only {' and '.join(known)} have planners ({', '.join(missing)}); play "
            f"{name} with random."
        )
    notes = {"env": f"dmc/{name}", "policy": policy, "shadows": shadows}
    with StoreWriter(path, _env(name, shadows).spec, attrs=notes) as writer:
        begun = writer.episodes
        seeds = np.arange(first_seed, first_seed + episodes)
        require_same_collection(writer, notes, seeds)
        threads = max(1, cores() // process_count(workers, episodes - begun))
        jobs = [
            Job(name, int(seeds[i]), turns[i], shadows, threads) for i in range(begun, episodes)
        ]
        bar = Progress(
            total=max(episodes, begun),
            initial=begun,
            desc=f"collect {env}",
            unit="ep",
            disable=not progress,
        )
        with ordered_map(workers, len(jobs)) as run, bar:

            def keep(played: Played) -> None:
                job = jobs[writer.episodes - begun]
                writer.append(
                    {CAMERA: played.pixels, "action": played.action, "reward": played.reward},
                    seed=job.seed,
                    grade=job.grade,
                    noise=0.0 if job.grade == "random" else DEMONSTRATORS[name, job.grade].noise,
                    score=float(played.reward.sum()),
                )
                bar.update()

            keep_each(run(play, jobs), keep)
    return path


def play(job: Job) -> Played:
    """Play one episode, a function of the job's name, seed, grade and shadows."""
    env = _env(job.name, job.shadows)
    low, high = env.bounds
    rng = np.random.default_rng([job.seed, POLICY_STREAM])
    pixels, actions, rewards, over = [env.reset(job.seed)[CAMERA]], [], [0.0], False
    with _chooser(job, env, rng) as choose:
        while not over and len(actions) < env.max_steps:
            actions.append(np.clip(choose(), low, high).astype(np.float32))
            out = env.step(actions[-1])
            over = out.terminated
            pixels.append(out.obs[CAMERA])
            rewards.append(out.reward)
    actions.append(np.zeros(len(low), np.float32))  # nothing is done after the last frame
    return Played(np.stack(pixels), np.stack(actions), np.array(rewards, np.float32)[:, None])


@contextmanager
def _chooser(job: Job, env: DMCEnv, rng: np.random.Generator) -> Iterator[Callable[[], np.ndarray]]:
    """What draws the next action (A,), before it is clipped to its bounds."""
    if job.grade == "random":
        yield lambda: rng.uniform(*env.bounds)
        return
    demonstrator = DEMONSTRATORS[job.name, job.grade]
    planner = MPPI(env, demonstrator.plan, rng, threads=job.threads)
    try:
        yield lambda: planner.act() + rng.normal(0.0, demonstrator.noise, len(env.bounds[0]))
    finally:
        planner.close()


@functools.lru_cache(maxsize=2)
def _env(name: str, shadows: bool) -> DMCEnv:
    return DMCEnv(*split_name(name), shadows=shadows)


# --- stores of the tasks --------------------------------------------------------------------------


def _whole(env: str, path: Path, episodes: int, first_seed: int = 0) -> None:
    """A mixed set without shadows, renamed into place when whole; an interrupted one resumes."""
    partial = path.with_name(f"{path.name}.partial")
    collect_store(env, "mixed", episodes, partial, first_seed=first_seed, shadows=False)
    os.replace(partial, path)


def cheetah_run_to_store(path: Path) -> None:
    """The mixed set of cheetah-run."""
    _whole("dmc/cheetah_run", path, MIXED_EPISODES)


def cheetah_run_held_out_to_store(path: Path) -> None:
    """Mixed episodes of cheetah-run that no training sees."""
    _whole("dmc/cheetah_run", path, HELD_OUT_EPISODES, HELD_OUT_SEED)


def walker_walk_to_store(path: Path) -> None:
    """The mixed set of walker-walk."""
    _whole("dmc/walker_walk", path, MIXED_EPISODES)


def walker_walk_held_out_to_store(path: Path) -> None:
    """Mixed episodes of walker-walk that no training sees."""
    _whole("dmc/walker_walk", path, HELD_OUT_EPISODES, HELD_OUT_SEED)
