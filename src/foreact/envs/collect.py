"""Demonstrations: experts run in parallel into state-action traces, later rendered into stores."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreact.data.stores.store import StoreWriter, open_store
from foreact.envs.pusht import PUSHT_SPEC, WORLD_SIZE, PushTEnv, build_simulator, render_state
from foreact.envs.pusht_expert import PushTExpert
from foreact.envs.traces import TracedEpisode, Traces, demonstrations, load_traces, save_traces
from foreact.envs.workers import keep_each, ordered_map
from foreact.errors import UserError
from foreact.progress import Progress

FIRST_TEST_SEED = 100_000
"""Seeds from here on are for evaluation; no collection may hold them."""

HELD_OUT_SEED = 80_000
"""Seeds from here to FIRST_TEST_SEED are for held-out episodes: for looking at, never for training.
"""

SAVE_EVERY = 10  # episodes between two writes of the trace file
NOISE_HOLD = 5  # steps that a draw of the noise lasts
NOISE_STREAM = 0x4015  # keeps the noise's draws apart from any other use of the episode's seed


@dataclass(frozen=True, kw_only=True)
class Demonstrator:
    """An environment that has an expert, both made anew in every worker process."""

    env: Callable[[], PushTEnv]
    expert: Callable[[], PushTExpert]


EXPERTS: dict[str, Demonstrator] = {
    "pusht": Demonstrator(
        env=functools.partial(PushTEnv, goal="fixed", image=False), expert=PushTExpert
    ),
    "pusht-m": Demonstrator(
        env=functools.partial(PushTEnv, goal="random", image=False), expert=PushTExpert
    ),
}


# --- collecting -----------------------------------------------------------------------------------


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
    """Run the expert of `env` on seeds first_seed, first_seed + 1, ...; write traces to `path`.

    The file is replaced every few episodes, and when the collection ends, however it does. A run
    that was stopped goes on after the episodes that are in the file, and the result is the same
    whatever the number of workers.

    Args:
        env: "pusht" or "pusht-m".
        episodes: how many there shall be in the file.
        path: trace file, new or begun with the same arguments (fewer episodes are extended, more
            are kept).
        first_seed: seed of the first episode.
        noise: px, standard deviation of the `disturbances` of the executed actions. The recorded
            ones are clean, so that episodes show how to recover. Several values take turns, such as
            (0, 15) for every other episode.
        workers: processes; None for one per CPU.
        progress: whether to show a bar.

    Raises:
        UserError: unknown environment, impossible number, a test seed, or a file of another
            collection.
    """
    if env not in EXPERTS:
        raise UserError(f"There is an expert for {sorted(EXPERTS)}, none for '{env}'.")
    levels = [float(n) for n in (noise if isinstance(noise, Sequence) else [noise])]
    if not levels or not all(0.0 <= n < np.inf for n in levels):
        raise UserError(f"Noise should be one or more numbers of pixels >= 0, found {noise}.")
    check_seeds(first_seed, episodes)
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"A trace file ends in .npz, found {path.name}; give such a name.")
    seeds = np.arange(first_seed, first_seed + episodes)
    noises = np.resize(np.array(levels, np.float32), episodes)
    done = _begun(path, env, seeds, noises)
    jobs = [(env, int(s), float(n)) for s, n in zip(seeds, noises, strict=True)][len(done) :]
    bar = Progress(
        total=episodes, initial=len(done), desc=f"collect {env}", unit="ep", disable=not progress
    )
    saved = len(done)

    def keep(episode: TracedEpisode) -> None:
        nonlocal saved
        done.append(episode)
        bar.update()
        if len(done) - saved >= SAVE_EVERY:
            save_traces(path, env, done)
            saved = len(done)

    try:
        with ordered_map(workers, len(jobs)) as run, bar:
            keep_each(run(_demonstrate, jobs), keep)
    finally:
        if len(done) > saved:
            save_traces(path, env, done)
    return load_traces(path)


def check_seeds(first_seed: int, episodes: int) -> None:
    """Refuse a collection without episodes, and one that holds test seeds.

    Raises:
        UserError: either is the case.
    """
    if episodes < 1 or first_seed < 0:
        raise UserError(
            f"Expected episodes >= 1 and first_seed >= 0, found {episodes} and {first_seed}."
        )
    if first_seed + episodes > FIRST_TEST_SEED:
        raise UserError(
            f"Seeds from {FIRST_TEST_SEED} on are test seeds and "
            f"{first_seed}..{first_seed + episodes - 1} reaches into them; choose a smaller "
            "first_seed or fewer episodes."
        )


def require_same_collection(
    writer: StoreWriter, notes: Mapping[str, Any], seeds: np.ndarray
) -> None:
    """Refuse to go on with a store that another collection began.

    Args:
        writer: of the store.
        notes: the attributes that this collection writes.
        seeds: of its episodes; those that are stored already must be the first of them.
    """
    shared = min(writer.episodes, len(seeds))
    stored = open_store(writer.path).info("seed")[:shared] if shared else seeds[:0]
    if writer.attrs != dict(notes) or not np.array_equal(stored, seeds[:shared]):
        raise UserError(
            f"The store {writer.path} holds another collection ({writer.attrs}, "
            f"{writer.episodes} episodes) than {notes} from seed {seeds[0]}; choose another path "
            "or the same arguments."
        )


def _demonstrate(job: tuple[str, int, float]) -> TracedEpisode:
    name, seed, noise = job
    env, expert = _players(name)
    state = env.reset(seed)["state"]
    expert.reset()
    goal = env.goal.astype(np.float32)
    states, actions, score = [], [], 0.0
    for disturbance in itertools.islice(disturbances(seed, noise), env.max_steps):
        action = expert.act(state, goal)
        states.append(state)
        actions.append(action)
        out = env.step(np.clip(action + disturbance, 0.0, WORLD_SIZE))
        state, score = out.obs["state"], max(score, out.reward)
        if out.terminated:
            break
    return TracedEpisode(
        seed=seed,
        noise=noise,
        score=score,
        goal=goal,
        state=np.array(states),
        action=np.array(actions),
    )


@functools.lru_cache(maxsize=2)
def _players(name: str) -> tuple[PushTEnv, PushTExpert]:
    return EXPERTS[name].env(), EXPERTS[name].expert()


def disturbances(seed: int, sigma: float) -> Iterator[np.ndarray]:
    """Endless noise (2,), px: Gaussian draws held for NOISE_HOLD steps each; half of them are zero.

    Without the quiet stretches a disturbed episode would hardly ever reach the goal's last pixels.
    """
    draw = np.random.default_rng([seed, NOISE_STREAM])
    while True:
        noise = draw.normal(0.0, sigma, 2) * (draw.random() < 0.5)
        yield from itertools.repeat(noise, NOISE_HOLD)


def _begun(path: Path, env: str, seeds: np.ndarray, noises: np.ndarray) -> list[TracedEpisode]:
    """Episodes that an earlier run left at `path`."""
    if not path.exists():
        return []
    old = load_traces(path)
    shared = min(len(old), len(seeds))
    same = np.array_equal(old.seeds[:shared], seeds[:shared]) and np.array_equal(
        old.noise[:shared], noises[:shared]
    )
    if old.env != env or not same:
        raise UserError(
            f"{path} holds another collection ({old.env}, {len(old)} episodes from seed "
            f"{old.seeds[0]}, noise {sorted({float(n) for n in old.noise})}); choose another path "
            "or the same arguments."
        )
    return old.episodes()


# --- rendering ------------------------------------------------------------------------------------


def render_traces(
    trace_path: str | Path,
    store_path: str | Path,
    *,
    episodes: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Render a trace file into a store, with `seed`, `goal`, `noise` and `score` per episode.

    A rendering that was stopped goes on after its last whole episode; a grown trace file extends
    its store.

    Args:
        trace_path: trace file from `collect`, or `demonstrations(env)`.
        store_path: folder of the store, new or begun from the same traces.
        episodes: how many, the first ones; None for all.
        workers: processes; None for one per core.
        progress: whether to show a bar.

    Returns:
        `store_path`.

    Raises:
        UserError: no trace file, or a store of other episodes.
    """
    traces, store_path = load_traces(trace_path), Path(store_path)
    build_simulator()  # a missing simulator shall leave no empty store behind
    with StoreWriter(
        store_path, PUSHT_SPEC, attrs={"env": traces.env, "source": "expert"}
    ) as writer:
        begun = writer.episodes
        if begun and not np.array_equal(open_store(store_path).info("seed"), traces.seeds[:begun]):
            raise UserError(
                f"The store {store_path} holds other episodes than {trace_path}; "
                "choose another path."
            )
        count = len(traces) if episodes is None else min(episodes, len(traces))
        jobs = [(traces.state[traces.rows(i)], traces.goal[i]) for i in range(begun, count)]
        bar = Progress(
            total=count,
            initial=begun,
            desc=f"render {store_path.name}",
            unit="ep",
            disable=not progress,
        )
        with ordered_map(workers, len(jobs)) as run, bar:

            def keep(images: np.ndarray) -> None:
                episode = writer.episodes
                rows = traces.rows(episode)
                writer.append(
                    {"img": images, "state": traces.state[rows], "action": traces.action[rows]},
                    seed=int(traces.seeds[episode]),
                    goal=traces.goal[episode],
                    noise=float(traces.noise[episode]),
                    score=float(traces.score[episode]),
                )
                bar.update()

            keep_each(run(_draw, jobs), keep)
    return store_path


def demonstrations_to_store(path: Path, episodes: int | None = None) -> None:
    """Render the shipped PushT demonstrations, or the first of them, into the store `path`.

    The store has its name only when it is whole; a rendering that was stopped goes on.
    """
    partial = path.with_name(f"{path.name}.partial")
    os.replace(render_traces(demonstrations("pusht"), partial, episodes=episodes), path)


def held_out_to_store(path: Path, env: str = "pusht", episodes: int = 16) -> None:
    """Let the expert show episodes from HELD_OUT_SEED on, and render them into the store `path`."""
    traces = path.with_suffix(".npz")
    collect(env, episodes, traces, first_seed=HELD_OUT_SEED)
    partial = path.with_name(f"{path.name}.partial")
    os.replace(render_traces(traces, partial), path)


def held_out_m_to_store(path: Path) -> None:
    """`held_out_to_store` for PushT-M."""
    held_out_to_store(path, "pusht-m")


def _draw(job: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    states, goal = job
    return np.stack([render_state(state, goal) for state in states])
