"""Simulated worlds, and tasks: problems for a policy, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from foreact.types import StreamSpec


class Env(Protocol):
    """One simulated world, one episode at a time.

    A world whose spec says `has_text` has the attribute `instruction: str`, what is to be done in
    the present episode, from `reset` on.
    """

    spec: StreamSpec
    max_steps: int

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Start episode `seed`; {stream: uint8 (H, W, 3) or state float32 (S,)}."""
        ...

    def step(self, action: np.ndarray) -> StepOut: ...

    def render(self) -> np.ndarray:
        """A picture for people, uint8 (H, W, 3)."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Restorable(Protocol):
    """A world that can begin at a recorded state instead of a seed."""

    def state(self) -> np.ndarray:
        """The present state of the simulator, float64 (D,), as `restore` takes it."""
        ...

    def restore(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """Begin an episode at a state of the simulator, float64 (D,); the observation there."""
        ...


@runtime_checkable
class Told(Protocol):
    """A world of several tasks, which are told apart by their instructions."""

    def choose(self, instruction: str) -> None:
        """Go to the task of an instruction, where `Restorable.restore` then begins episodes."""
        ...


class Expert(Protocol):
    """Acts expertly, one episode at a time; may look at the simulator's state."""

    def reset(self, seed: int) -> None: ...

    def act(self, env: Any, seen: dict[str, np.ndarray]) -> np.ndarray:
        """The action (A,) of this step, after `seen`, in the units of the environment's spec."""
        ...


@dataclass(frozen=True)
class StepOut:
    """Outcome of one environment step; `obs` as in `Env.reset`."""

    obs: dict[str, np.ndarray]
    reward: float
    terminated: bool
    info: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One problem for a policy, as data: meaning of the numbers, demonstrations, simulator.

    A module that exports `TASK` is all it takes to add one: `--task my_package.my_task`.

    Attributes:
        name: short name; also the default name of the store, `data/<name>.zarr`.
        spec: meaning of every stream.
        camera: the camera the policy sees.
        env: import path "module:function" of a factory without arguments, or None where nothing
            simulates the task. A path, so that worker processes can build it.
        variants: name -> import path of another environment of the same problem, such as one that
            draws shadows.
        demonstrations: import path of a function `(store: Path) -> None` that makes the default
            store, or None.
        held_out: the same for a small store of episodes that no training sees, or None.
        wrist_camera: a second camera that a policy may see, or None.
        hands: import path of a `foreact.data.windows.hand_poses.HandPoses`, where actions and
            states are computed from recorded poses of hands; None: they are stored.
        proprioception: state stream -> how many of its first dimensions a policy may see; the rest,
            such as where the objects are, only the simulator knows.
        statistics: stream -> how its numbers are scaled, a `Mode` of `data.windows.normalize`;
            "limits" for those left out.
        data_options: name of a format -> options of its opener: how recordings in that format are
            to be read for this task (`foreact.plugs.Format.options`).
        score_note: what the score of an episode means, in one sentence, for reports.
        score: what the score of an episode is: the largest of its rewards, as in UVA's protocol, or
            their sum.
    """

    name: str
    spec: StreamSpec
    camera: str
    wrist_camera: str | None = None
    env: str | None = None
    variants: Mapping[str, str] = field(default_factory=dict)
    demonstrations: str | None = None
    held_out: str | None = None
    hands: str | None = None
    proprioception: Mapping[str, int] = field(default_factory=dict)
    statistics: Mapping[str, str] = field(default_factory=dict)
    data_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    score_note: str = ""
    score: Literal["max", "sum"] = "max"
