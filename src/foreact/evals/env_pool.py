"""Many environments in worker processes, which play given actions; `closed_loop` scores."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from foreact.data.formats.video import write_mp4
from foreact.errors import UserError
from foreact.types import StreamSpec
from foreact.worlds import Env


@dataclass(frozen=True)
class Start:
    """An episode to begin: its seed, and where its film goes, if it is filmed."""

    seed: int
    film: Path | None = None


@dataclass(frozen=True)
class Played:
    """Result of some steps of an episode: observation and reward per step; `done` ends it."""

    observations: list[dict[str, np.ndarray]]
    rewards: list[float]
    done: bool


@dataclass(frozen=True)
class EnvFacts:
    """What the pool's environments have in common."""

    spec: StreamSpec
    max_steps: int


def make_env(path: str) -> Env:
    """Call the factory at the import path "module:function".

    Raises:
        UserError: the path leads to no function.
    """
    module, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"The environment '{path}' cannot be found ({error}); give an import path "
            "'module:function' whose function takes no argument."
        ) from error
    return factory()


class Stage:
    """Environments in one process, by episode number; worlds are reused for later episodes."""

    def __init__(self, path: str, max_steps: int | None) -> None:
        self._path = path
        self._idle: list[Env] = [make_env(path)]
        self.facts = EnvFacts(self._idle[0].spec, max_steps or self._idle[0].max_steps)
        self._running: dict[int, Env] = {}
        self._taken: dict[int, int] = {}
        self._films: dict[int, tuple[Path, list[np.ndarray]]] = {}

    def start(self, starts: Mapping[int, Start]) -> dict[int, dict[str, np.ndarray]]:
        """Begin episodes; returns the first observation of each."""
        observations = {}
        for i, begin in starts.items():
            env = self._idle.pop() if self._idle else make_env(self._path)
            self._running[i], self._taken[i] = env, 0
            observations[i] = env.reset(begin.seed)
            if begin.film is not None:
                self._films[i] = (begin.film, [env.render()])
        return observations

    def instructions(self, starts: Mapping[int, Start]) -> dict[int, str]:
        """What is to be done in each running episode, of worlds that say so."""
        return {i: cast(Any, self._running[i]).instruction for i in starts}

    def play(self, actions: Mapping[int, np.ndarray]) -> dict[int, Played]:
        """Play actions (e, A) in each named episode, up to its end or step limit."""
        return {i: self._play(i, chunk) for i, chunk in actions.items()}

    def _play(self, i: int, actions: np.ndarray) -> Played:
        env = self._running[i]
        observations, rewards, done = [], [], False
        for action in actions:
            out = env.step(action)
            self._taken[i] += 1
            observations.append(out.obs)
            rewards.append(float(out.reward))
            if i in self._films:
                self._films[i][1].append(env.render())
            done = bool(out.terminated) or self._taken[i] >= self.facts.max_steps
            if done:
                self._finish(i)
                break
        return Played(observations, rewards, done)

    def _finish(self, i: int) -> None:
        self._idle.append(self._running.pop(i))
        if i in self._films:
            path, frames = self._films.pop(i)
            write_mp4(path, np.stack(frames), self.facts.spec.fps)

    def close(self) -> None:
        for env in [*self._idle, *self._running.values()]:
            env.close()


class EnvPool:
    """Stages in `workers` spawned processes, or here for 0; episode i is on stage i % workers.

    Args:
        path: import path "module:function" of an environment factory without arguments.
        workers: processes.
        max_steps: steps of an episode, or None for the environment's own limit.

    Raises:
        UserError: the environment cannot be built, or a worker process died.
    """

    def __init__(self, path: str, *, workers: int, max_steps: int | None = None) -> None:
        self._stage: Stage | None = None
        self._workers: list[tuple[Any, Connection]] = []
        if workers == 0:
            self._stage = Stage(path, max_steps)
            self.facts = self._stage.facts
            return
        # Spawned, since forking a process with torch's or a simulator's threads can deadlock.
        context = multiprocessing.get_context("spawn")
        try:
            for number in range(workers):
                parent_end, worker_end = context.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(worker_end, path, max_steps),
                    daemon=True,
                    name=f"environments-{number}",
                )
                process.start()
                worker_end.close()
                self._workers.append((process, parent_end))
            answers = [self._receive(number) for number in range(workers)]
            self.facts: EnvFacts = answers[0]
        except BaseException:
            self.close()
            raise

    def start(self, starts: Mapping[int, Start]) -> dict[int, dict[str, np.ndarray]]:
        """As `Stage.start`, on every stage at once."""
        return self._everywhere("start", starts)

    def instructions(self, starts: Mapping[int, Start]) -> dict[int, str]:
        """As `Stage.instructions`, on every stage at once."""
        return self._everywhere("instructions", starts)

    def play(self, actions: Mapping[int, np.ndarray]) -> dict[int, Played]:
        """As `Stage.play`, on every stage at once."""
        return self._everywhere("play", actions)

    def close(self) -> None:
        if self._stage is not None:
            self._stage.close()
        for _, connection in self._workers:
            connection.close()
        for process, _ in self._workers:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()
        self._workers = []

    def _everywhere(self, verb: str, load: Mapping[int, Any]) -> dict[int, Any]:
        if self._stage is not None:
            return getattr(self._stage, verb)(load)
        shares: dict[int, dict[int, Any]] = {}
        for i, value in load.items():
            shares.setdefault(i % len(self._workers), {})[i] = value
        for number, part in shares.items():
            try:
                self._workers[number][1].send((verb, part))
            except OSError:
                raise self._death(number) from None
        answers: dict[int, Any] = {}
        for number in shares:
            answers |= self._receive(number)
        return answers

    def _receive(self, number: int) -> Any:
        try:
            kind, value = self._workers[number][1].recv()
        except (EOFError, OSError):
            raise self._death(number) from None
        if kind == "mistake":
            raise UserError(value)
        if kind == "crash":
            raise RuntimeError(f"An environment crashed in a worker process:\n{value}")
        return value

    def _death(self, number: int) -> UserError:
        process = self._workers[number][0]
        process.join(timeout=5)
        return UserError(
            f"Worker process {number + 1} of {len(self._workers)} died with exit code "
            f"{process.exitcode} while its "
            "environments ran; use fewer workers if memory ran out, and call from under "
            '`if __name__ == "__main__":` if you wrote a script.'
        )


def _serve(connection: Connection, path: str, max_steps: int | None) -> None:
    """Life of a worker: answer until the parent hangs up."""
    # Ctrl-C is the parent's to handle; it hangs up on us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    stage: Stage | None = None
    try:
        stage = Stage(path, max_steps)
        connection.send(("facts", stage.facts))
        while True:
            verb, load = connection.recv()
            connection.send((verb, getattr(stage, verb)(load)))
    except (EOFError, OSError):
        pass
    except UserError as error:
        connection.send(("mistake", str(error)))
    except Exception:
        connection.send(("crash", traceback.format_exc()))
    finally:
        if stage is not None:
            stage.close()
