"""A chaotic one-dimensional world: the smallest difference in an
action shows in the score. Importable by workers.
"""

from __future__ import annotations

import os

import numpy as np

from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec
from foreact.worlds import StepOut

SIZE = 16
SPEC = StreamSpec(
    cameras={"img": (SIZE, SIZE)},
    fps=10.0,
    action=ActionSpec(
        names=("x",),
        units=("unitless",),
        frame="world",
        mode="absolute",
        rate_hz=10.0,
        low=(-2.0,),
        high=(2.0,),
    ),
    state={"state": ("agent_x", "step")},
)


class ToyWorld:
    """x' = 3.99 x (1 - x), nudged by the action; the reward is x
    - 0.1, and x > 0.98 ends the episode.
    """

    spec = SPEC
    max_steps = 40

    def __init__(self) -> None:
        self.x, self.steps = 0.5, 0

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self.x, self.steps = float(np.random.default_rng(seed).uniform(0.1, 0.9)), 0
        return self._observe()

    def step(self, action: np.ndarray) -> StepOut:
        if not np.isfinite(action).all():
            raise UserError("The toy world expects finite actions.")
        nudged = np.clip(self.x + 1e-3 * float(action[0]), 0.001, 0.999)
        self.x, self.steps = float(3.99 * nudged * (1 - nudged)), self.steps + 1
        return StepOut(self._observe(), self.x - 0.1, self.x > 0.98)

    def _observe(self) -> dict[str, np.ndarray]:
        ramp = np.arange(SIZE * SIZE * 3).reshape(SIZE, SIZE, 3) % 256
        return {
            "img": (ramp * self.x).astype(np.uint8),
            "state": np.array([self.x, self.steps], dtype=np.float32),
        }

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), round(255 * self.x), dtype=np.uint8)

    def close(self) -> None:
        pass


class DyingWorld(ToyWorld):
    """Takes its process down on the third step, as a simulator's crash would."""

    def step(self, action: np.ndarray) -> StepOut:
        if self.steps == 2:
            os._exit(7)
        return super().step(action)


class FaultyWorld(ToyWorld):
    """Has a bug."""

    def step(self, action: np.ndarray) -> StepOut:
        raise ZeroDivisionError("a bug in the toy world")


def make_toy() -> ToyWorld:
    return ToyWorld()


def make_dying() -> ToyWorld:
    return DyingWorld()


def make_faulty() -> ToyWorld:
    return FaultyWorld()
