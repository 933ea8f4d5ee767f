"""Baseline policies without a network: one stays where it is, one moves at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foreact.errors import UserError
from foreact.policies.memory import Episode, Memory
from foreact.types import ActionChunk, ActionSpec, Observation, StreamSpec


@dataclass
class _Seen(Episode):
    state: dict[str, np.ndarray] = field(default_factory=dict)


class _Baseline:
    """Remembers the newest state of every episode."""

    name = ""

    def __init__(self, spec: StreamSpec, *, execute: int = 8) -> None:
        if spec.action is None:
            raise UserError(
                "The spec has no actions, so nothing can act on it; choose a task "
                "with an action stream."
            )
        if execute < 1:
            raise UserError(
                f"execute is {execute}; at least one action is played before planning again."
            )
        self.spec = spec
        self.action: ActionSpec = spec.action
        self.execute = execute
        self._memory = Memory(_Seen)

    def reset(self, seeds: Sequence[int]) -> None:
        self._memory.reset(seeds)

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        for row, episode in enumerate(self._memory.episodes(ids)):
            episode.step += 1
            episode.state = {name: values[row].copy() for name, values in obs.state.items()}

    def act(self, ids: Sequence[int] | None = None) -> ActionChunk:
        episodes, step = self._memory.now(ids)
        targets = np.stack([self._target(episode) for episode in episodes]).astype(np.float32)
        actions = np.repeat(targets[:, None], self.execute, axis=1)
        return ActionChunk(actions, self.execute, step, 0.0)

    def describe(self) -> dict[str, Any]:
        return {"policy": self.name, "context": 1, "horizon": self.execute, "execute": self.execute}

    def _target(self, episode: _Seen) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} is not a policy by itself.")


class DoNothing(_Baseline):
    """Stays in place: the present position for absolute actions, else zeros.

    The position is read from the state entry that carries the action's name, bare or as
    "agent_<name>".

    Raises:
        UserError: absolute actions without such a state entry.
    """

    name = "do-nothing"

    def __init__(self, spec: StreamSpec, *, execute: int = 8) -> None:
        super().__init__(spec, execute=execute)
        self._entries: list[tuple[str, int]] = []
        if self.action.mode == "absolute":
            self._entries = [self._entry(name) for name in self.action.names]

    def _entry(self, action: str) -> tuple[str, int]:
        for stream, names in self.spec.state.items():
            for entry in (action, f"agent_{action}"):
                if entry in names:
                    return stream, names.index(entry)
        raise UserError(
            f"Doing nothing needs the present value of action '{action}', but no state entry is "
            f"called '{action}' or 'agent_{action}'; name it so in the spec, or leave this "
            "baseline out."
        )

    def _target(self, episode: _Seen) -> np.ndarray:
        if not self._entries:
            return np.zeros(self.action.dim)
        return np.array([episode.state[stream][index] for stream, index in self._entries])


class RandomPolicy(_Baseline):
    """Draws one action uniformly in the spec's bounds for every plan and holds it until the next.

    Held, since independent draws per step average out and hardly move anything.

    Raises:
        UserError: the spec gives no bounds.
    """

    name = "random"

    def __init__(self, spec: StreamSpec, *, execute: int = 8) -> None:
        super().__init__(spec, execute=execute)
        if self.action.low is None or self.action.high is None:
            raise UserError(
                "A random policy draws within the action bounds, but the spec has "
                "none; add low and high."
            )
        self._low, self._high = self.action.low, self.action.high

    def _target(self, episode: _Seen) -> np.ndarray:
        # The key makes a draw depend on the episode's seed and the step only.
        draw = np.random.default_rng([episode.seed % 2**64, episode.step])
        return draw.uniform(self._low, self._high)
