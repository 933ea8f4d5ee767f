"""`foreact data collect`: each simulator brings its own collection function and its options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tyro

from foreact.data.stores.layout import require_store_name
from foreact.data.stores.store import open_store
from foreact.data.stores.writer import committed_episodes
from foreact.envs import collect as traces_of
from foreact.envs import collect_dmc
from foreact.envs.demonstrate import demonstrate
from foreact.envs.traces import load_traces
from foreact.errors import UserError
from foreact.plugs import SIMULATORS, Simulator, load_object
from foreact.runs.words import option_value
from foreact.seeds import require_seeds


def command(args: Sequence[str]) -> None:
    """`foreact data collect`."""
    env = option_value(args, "--env") or "pusht"
    simulator = find_simulator(env)
    if {"-h", "--help"} & set(args):
        others = ", ".join(name for name in SIMULATORS.names() if name != simulator.name)
        print(
            f"These are the options for {simulator.name}; for {others}: foreact data collect "
            "--env ENV --help\n"
        )
    tyro.cli(
        load_object(simulator.collect, "The collection"), prog="foreact data collect", args=args
    )


def find_simulator(env: str) -> Simulator:
    """The simulator of a name such as pusht or dmc/cheetah_run, or of an import path."""
    return SIMULATORS.find(env.partition("/")[0])


def pusht(
    env: str = "pusht",
    episodes: int = 300,
    out: Path | None = None,
    first_seed: int = 0,
    noise: tuple[float, ...] = (0.0, 15.0),
    workers: int | None = None,
) -> None:
    """Let an expert act in a simulator and keep what it shows in a store.

    A collection that was stopped goes on where it was. Ask for more episodes to extend it. Traces
    (.npz) lie beside the store.

    Args:
        env: where to act: pusht or pusht-m, dmc/TASK of DeepMind Control, lift, can or square of
            robosuite, or the import path of a module with an ENV.
        episodes: how many, one per seed.
        out: the store. Default: data/<env>.zarr.
        first_seed: of the first episode; seeds from 80000 on are for held-out episodes and
            evaluation.
        noise: px, disturbance of what is executed (not of what is recorded); several values take
            turns.
        workers: processes; default one per core.
    """
    require_seeds(first_seed, episodes)
    store = out or Path("data") / f"{env}.zarr"
    require_store_name(store)  # before anything is simulated
    traces = store.with_suffix(".npz")
    with _told_what_is_kept(traces, lambda path: len(load_traces(path))):
        demonstrated = traces_of.collect(
            env, episodes, traces, first_seed=first_seed, noise=noise, workers=workers
        )
        traces_of.render_traces(traces, store, workers=workers)
    print(
        f"{len(demonstrated)} episodes, mean score {demonstrated.score.mean():.3f}: {store} "
        f"(traces: {traces})"
    )


def deepmind_control(
    env: str,
    episodes: int = 300,
    out: Path | None = None,
    first_seed: int = 0,
    policy: collect_dmc.PolicyName = "mixed",
    shadows: bool = True,
    workers: int | None = None,
) -> None:
    """Let policies of three grades act in DeepMind Control and keep what they do in a store.

    A collection that was stopped goes on where it was. Ask for more episodes to extend it.

    Args:
        env: a task such as dmc/cheetah_run.
        episodes: how many, one per seed.
        out: the store. Default: data/<task>.zarr, such as data/cheetah-run.zarr.
        first_seed: of the first episode; seeds from 80000 on are for held-out episodes and
            evaluation.
        policy: who acts; mixed is random, medium and expert in turn.
        shadows: whether pictures have shadows, which cost most of the time of drawing.
        workers: processes; default one per core.
    """
    if "/" not in env:
        raise UserError(
            f"Expected a task of DeepMind Control, such as dmc/cheetah_run, found '{env}'."
        )
    require_seeds(first_seed, episodes)
    store = out or Path("data") / f"{env.removeprefix('dmc/').replace('_', '-')}.zarr"
    require_store_name(store)  # before anything is simulated
    with _told_what_is_kept(store, committed_episodes):
        collect_dmc.collect_store(
            env, policy, episodes, store, first_seed=first_seed, shadows=shadows, workers=workers
        )
    found = open_store(store)
    print(_by_grade(found.info("grade"), found.info("score")))
    print(f"{len(found)} episodes: {store}")


def by_expert(
    env: str,
    episodes: int = 100,
    out: Path | None = None,
    first_seed: int = 0,
    workers: int | None = None,
) -> None:
    """Let the expert of a simulator act in it and keep what it sees and does in a store.

    Where the simulator says what success is, episodes without it are left out. A collection that
    was stopped goes on where it was. Ask for more episodes to extend it.

    Args:
        env: the simulator: a name, or the import path of a module with an ENV.
        episodes: how many to keep.
        out: the store. Default: data/<name>.zarr.
        first_seed: of the first episode; seeds from 80000 on are for held-out episodes and
            evaluation.
        workers: processes; default one per core.
    """
    require_seeds(first_seed, episodes)
    simulator = find_simulator(env)
    store = out or Path("data") / f"{simulator.name}.zarr"
    require_store_name(store)  # before anything is simulated
    with _told_what_is_kept(store, committed_episodes):
        demonstrate(simulator, episodes, store, first_seed=first_seed, workers=workers)
    found = open_store(store)
    score, seeds = found.info("score"), found.info("seed")
    if failed := int(seeds[-1]) + 1 - first_seed - len(seeds):
        print(
            f"The expert failed in {failed} of {failed + len(seeds)} episodes; they are left out."
        )
    print(f"{len(score)} episodes, mean sum of rewards {score.mean():.3f}: {store}")


@contextmanager
def _told_what_is_kept(path: Path, count: Callable[[Path], int]) -> Iterator[None]:
    """On Ctrl-C, say how many episodes are kept, and where."""
    try:
        yield
    except KeyboardInterrupt:
        if path.exists() and (episodes := count(path)):
            print(
                f"Stopped; {episodes} episodes are kept in {path}, and the same command goes on.",
                file=sys.stderr,
            )
        raise


def _by_grade(grade: np.ndarray, score: np.ndarray) -> str:
    return "\n".join(
        f"{name}: {(grade == name).sum()} episodes, mean score {score[grade == name].mean():.1f}"
        for name in sorted(set(grade.tolist()))
    )
