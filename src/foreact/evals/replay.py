"""Replay: recorded actions, played in the simulator from their recorded start.

Where actions, simulator and start are what the data set says, the states that were recorded come
back. How far they drift, and whether the pictures agree, tells which convention is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foreact.data.rotations import angle_between, convert
from foreact.data.stores.episodes import EpisodeStore
from foreact.errors import UserError
from foreact.evals.replay_recordings import Recording, Start, recordings
from foreact.evals.video import psnr
from foreact.progress import Progress
from foreact.types import StreamSpec
from foreact.worlds import Env

ORIENTATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "upright": lambda frames: frames,
    "upside down": lambda frames: frames[..., ::-1, :, :],
    "mirrored": lambda frames: frames[..., :, ::-1, :],
    "turned by 180 degrees": lambda frames: frames[..., ::-1, ::-1, :],
    "BGR": lambda frames: frames[..., ::-1],
}
"""What may have been done to recorded pictures (..., H, W, 3); doing it again undoes it."""
MOST_DB = 60.0
"""PSNR that stands for equal pictures, so that means stay finite."""

AXIS_ANGLE = ("rx", "ry", "rz")
"""Names of a state that is a rotation of 3 numbers."""

View = tuple[str, str, str]
"""A recorded camera, the simulator's camera that it is compared with, and an orientation."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """How the difference of one state stream is measured.

    Attributes:
        kind: "position" in cm, "rotation" in degrees, or the largest of its "numbers" in their own
            units.
    """

    name: str
    kind: Literal["position", "rotation", "numbers"]
    names: tuple[str, ...]

    @property
    def unit(self) -> str:
        return {"position": "cm", "rotation": "deg", "numbers": "own units"}[self.kind]

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(T,) float64, between states (T, S)."""
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if self.kind == "position":
            return 100.0 * np.linalg.norm(a - b, axis=-1)
        if self.kind == "rotation":
            quaternion = "quat_xyzw" if self.names[-1].endswith("w") else "quat_wxyz"
            form = "axis_angle" if len(self.names) == 3 else quaternion
            matrices = convert(a, form, "matrix"), convert(b, form, "matrix")
            return np.degrees(angle_between(*matrices))
        angles = np.array([name.endswith("angle") for name in self.names])
        turned = (a - b + np.pi) % (2 * np.pi) - np.pi
        return np.abs(np.where(angles, turned, a - b)).max(axis=-1)


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One episode, played again.

    Attributes:
        episode, name: in the store.
        start: what it began from.
        steps: how many frames were compared.
        recorded_steps: how many there are.
        score: by the task's rule, of the rewards that came.
        recorded_score: what the store says, or None.
        drift: state stream -> float64 (steps,), between the recorded and the replayed state, in the
            stream's unit.
        pictures: camera -> PSNR in dB of the replayed frames, float64 (steps,).
        first_picture: view -> PSNR in dB of the first frame.
    """

    episode: int
    name: str
    start: Start
    steps: int
    recorded_steps: int
    score: float
    recorded_score: float | None
    drift: Mapping[str, np.ndarray]
    pictures: Mapping[str, np.ndarray]
    first_picture: Mapping[View, float]


def measured_streams(recorded: StreamSpec, simulated: StreamSpec) -> list[Stream]:
    """State streams that both have, in the same form."""
    streams = []
    for name, names in simulated.state.items():
        if len(recorded.state.get(name, ())) != len(names):
            continue
        kind: Literal["position", "rotation", "numbers"] = "numbers"
        if name.endswith("pos") and len(names) == 3:
            kind = "position"
        elif (name.endswith("quat") and len(names) == 4) or tuple(names) == AXIS_ANGLE:
            kind = "rotation"
        streams.append(Stream(name=name, kind=kind, names=tuple(names)))
    return streams


def require_same_actions(store: EpisodeStore, spec: StreamSpec) -> None:
    """Refuse actions that the simulator would take for something else.

    Raises:
        UserError: there are none, or they have another size, mode or frame.
    """
    recorded, taken = store.spec.action, spec.action
    if recorded is None or taken is None:
        raise UserError(f"{store.label} has no actions to replay; name another --data.")
    for label in ("dim", "mode", "frame"):
        a, b = getattr(recorded, label), getattr(taken, label)
        if a != b:
            raise UserError(
                f"The actions of {store.label} have {label} {a}, the simulator takes {label} {b}; "
                "convert them, or name the task they belong to."
            )


def play_again(
    env: Env,
    store: EpisodeStore,
    episodes: Sequence[int],
    *,
    score: Literal["max", "sum"] = "max",
    progress: bool = True,
) -> list[Replayed]:
    """Play the recorded actions of some episodes.

    An episode begins at its recorded state where the store keeps one and the world is
    `Restorable`, else with its `seed`; files of demonstrations begin before their first action. In
    a world that is `Told`, the episode's instruction chooses the task. What an action led to is
    compared with the frame that was recorded then.

    Args:
        env: the simulator.
        store: with actions that it takes.
        episodes: numbers.
        score: how rewards make a score.
        progress: show a bar.

    Raises:
        UserError: actions of another kind, or nothing that says how episodes began.
    """
    require_same_actions(store, env.spec)
    recording_of = recordings(env, store)
    with Progress(total=len(episodes), desc="replay", unit="episode", disable=not progress) as bar:
        replayed = []
        for episode in episodes:
            recording = recording_of(episode)
            seen, rewards = _play(env, recording)
            length = int(store.lengths[episode])
            shown = seen[recording.lead :][:length]
            replayed.append(
                Replayed(
                    episode=episode,
                    name=store.names[episode],
                    start=recording.start,
                    steps=len(shown),
                    recorded_steps=length,
                    score=max(rewards) if score == "max" else sum(rewards),
                    recorded_score=recording.score,
                    **_compared(env.spec, store, episode, shown),
                )
            )
            bar.update()
    return replayed


def _play(env: Env, recording: Recording) -> tuple[list[dict[str, np.ndarray]], list[float]]:
    """What is seen at the start and after each action, and the reward that each brings."""
    seen, rewards = [recording.begin(env)], []
    for action in recording.actions:
        out = env.step(action)
        seen.append(out.obs)
        rewards.append(float(out.reward))
        if out.terminated:
            break
    return seen, rewards


def _compared(
    spec: StreamSpec, store: EpisodeStore, episode: int, seen: list[dict[str, np.ndarray]]
) -> dict[str, dict]:
    streams = measured_streams(store.spec, spec)
    cameras = [name for name, size in spec.cameras.items() if store.spec.cameras.get(name) == size]
    names = [*(stream.name for stream in streams), *store.spec.cameras]
    recorded = store.read(episode, 0, len(seen), names)
    again = {name: np.stack([s[name] for s in seen]) for name in seen[0]}
    return {
        "drift": {s.name: s.difference(recorded[s.name], again[s.name]) for s in streams},
        "pictures": {name: _db(recorded[name], again[name]) for name in cameras},
        "first_picture": {
            (camera, other, orientation): float(
                _db(turn(recorded[camera][:1]), again[other][:1])[0]
            )
            for camera, size in store.spec.cameras.items()
            for other, other_size in spec.cameras.items()
            for orientation, turn in ORIENTATIONS.items()
            if size == other_size
        },
    }


def _db(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.minimum(psnr(a, b), MOST_DB)
