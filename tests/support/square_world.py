"""A task whose pictures tell all: a square moves over a dark
floor, and the reward is how far right it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foreact.data.stores.writer import StoreWriter
from foreact.types import ActionSpec, StreamSpec
from foreact.worlds import StepOut, Task

SIZE = 16
SPEC = StreamSpec(
    cameras={"pixels": (SIZE, SIZE)},
    fps=10.0,
    action=ActionSpec(
        names=("left", "right"),
        units=("unitless",) * 2,
        frame="world",
        mode="absolute",
        rate_hz=10.0,
        low=(-1.0, -1.0),
        high=(1.0, 1.0),
    ),
    has_reward=True,
)
TASK = Task(
    name="square",
    spec=SPEC,
    camera="pixels",
    env="support.square_world:SquareWorld",
    score="sum",
    score_note="An episode's score is the sum of its rewards.",
)


def picture(x: int) -> np.ndarray:
    frame = np.full((SIZE, SIZE, 3), 30, np.uint8)
    frame[5:11, x : x + 6] = (240, 90, 40)
    return frame


class SquareWorld:
    """The difference of the actions moves the square by a pixel."""

    spec = SPEC
    max_steps = 20

    def __init__(self) -> None:
        self.x = 0

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self.x = seed % 10
        return {"pixels": picture(self.x)}

    def step(self, action: np.ndarray) -> StepOut:
        self.x = int(np.clip(self.x + np.sign(action[1] - action[0]), 0, 10))
        return StepOut({"pixels": picture(self.x)}, self.x / 10, terminated=False)

    def render(self) -> np.ndarray:
        return picture(self.x).repeat(2, 0).repeat(2, 1)

    def close(self) -> None:
        pass


def write_squares(path: Path, episodes: int = 6, steps: int = 30) -> Path:
    """A store of episodes of two grades: in the odd ones the square goes twice as fast."""
    draw = np.random.default_rng(0)
    with StoreWriter(path, SPEC) as writer:
        for episode in range(episodes):
            speed = 1 + episode % 2
            x = np.abs((speed * np.arange(steps) + episode) % 20 - 10)
            frames = np.stack([picture(i) for i in x])
            actions = draw.uniform(-1, 1, (steps, 2)).astype(np.float32)
            actions[-1] = 0.0
            reward = (x / 10).astype(np.float32)[:, None]
            reward[0] = 0.0
            writer.append(
                {"pixels": frames, "action": actions, "reward": reward},
                grade="slow" if speed == 1 else "fast",
            )
    return path
