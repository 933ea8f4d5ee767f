"""A world that says what to do: bring the hand to the named side; two cameras, a state, a sentence.

The front camera shows the hand as a bright column, the wrist camera the time in its brightness. The
side cannot be seen: only the sentence tells it. Importable by workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from foreact.data.stores.writer import StoreWriter
from foreact.plugs import TextModel
from foreact.types import ActionSpec, StreamSpec
from foreact.worlds import StepOut, Task

SIZE, STEPS, DIM = 16, 16, 4
SIDES = {"go left": -1.0, "go right": 1.0}
SPEC = StreamSpec(
    cameras={"front": (SIZE, SIZE), "wrist": (SIZE, SIZE)},
    fps=10.0,
    action=ActionSpec(
        names=("x",),
        units=("unitless",),
        frame="world",
        mode="delta",
        rate_hz=10.0,
        low=(-1.0,),
        high=(1.0,),
    ),
    state={"hand": ("x",)},
    has_text=True,
)


class ToldWorld:
    spec = SPEC
    max_steps = STEPS

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self.instruction = list(SIDES)[seed % 2]
        self.x, self.steps = 0.0, 0
        return self._observe()

    def step(self, action: np.ndarray) -> StepOut:
        self.x = float(np.clip(self.x + 0.2 * float(action[0]), -1.0, 1.0))
        self.steps += 1
        reward = float(self.x * SIDES[self.instruction] > 0.5)
        return StepOut(self._observe(), reward, False)

    def _observe(self) -> dict[str, np.ndarray]:
        front = np.zeros((SIZE, SIZE, 3), np.uint8)
        front[:, int((self.x + 1.0) / 2.0 * (SIZE - 1))] = 255
        wrist = np.full((SIZE, SIZE, 3), 10 * self.steps, np.uint8)
        return {"front": front, "wrist": wrist, "hand": np.array([self.x], np.float32)}

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), 100, np.uint8)

    def close(self) -> None:
        pass


def make() -> ToldWorld:
    return ToldWorld()


TASK = Task(
    name="told",
    spec=SPEC,
    camera="front",
    wrist_camera="wrist",
    env="support.told_world:make",
    proprioception={"hand": 1},
)


def write_store(path: Path, episodes: int = 6) -> Path:
    """Episodes of an expert that does as it is told."""
    with StoreWriter(path, SPEC) as writer:
        for seed in range(episodes):
            world = ToldWorld()
            seen, actions = [world.reset(seed)], []
            for _ in range(STEPS):
                actions.append([SIDES[world.instruction]])
                seen.append(world.step(np.array(actions[-1])).obs)
            streams = {name: np.stack([obs[name] for obs in seen[:-1]]) for name in seen[0]}
            streams["action"] = np.array(actions, np.float32)
            writer.append(streams, seed=seed, text=world.instruction)
    return path


class Speller:
    """Features from the letters alone; the two sentences are far apart."""

    name, dim = "speller", DIM
    hash = "sha256:" + "5" * 64

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = [hashlib.sha256(text.encode()).digest()[:DIM] for text in texts]
        return np.array([[byte / 127.5 - 1.0 for byte in row] for row in rows], np.float32)


def open_speller(folder: Path | None, *, device: torch.device) -> Speller:
    return Speller()


ENCODER = TextModel(name="speller", open="support.told_world:open_speller")
