"""A white dot on a dark floor shall get to a green square; seen from above."""

import numpy as np

from foreact.plugs import Simulator
from foreact.types import ActionSpec, StreamSpec
from foreact.worlds import StepOut

SIZE = 16
SPEC = StreamSpec(
    cameras={"top": (SIZE, SIZE)},
    fps=10.0,
    action=ActionSpec(
        names=("x", "y"),
        units=("px", "px"),
        frame="world",
        mode="delta",
        rate_hz=10.0,
        low=(-1.0, -1.0),
        high=(1.0, 1.0),
    ),
    state={"dot": ("x", "y")},
)


class ReachWorld:
    """An action moves the dot by so many pixels; the reward is 1 at the square."""

    spec = SPEC
    max_steps = 30

    def reset(self, seed):
        draw = np.random.default_rng(seed)
        self.dot, self.goal = draw.uniform(1, SIZE - 1, 2), draw.uniform(2, SIZE - 2, 2)
        return self._seen()

    def step(self, action):
        self.dot = np.clip(self.dot + np.clip(action, -1, 1), 0, SIZE - 1)
        distance = float(np.abs(self.dot - self.goal).max())
        return StepOut(self._seen(), reward=max(0.0, 1 - distance / SIZE), terminated=distance < 1)

    def render(self):
        picture = np.full((SIZE, SIZE, 3), 30, np.uint8)
        for place, colour in ((self.goal, (40, 200, 40)), (self.dot, (255, 255, 255))):
            x, y = np.round(place).astype(int)
            picture[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = colour
        return picture

    def close(self):
        pass

    def _seen(self):
        return {"top": self.render(), "dot": self.dot.astype(np.float32)}


class ReachExpert:
    """Knows where the square is, and goes there."""

    def reset(self, seed):
        pass

    def act(self, env, seen):
        return np.clip(env.goal - env.dot, -1, 1).astype(np.float32)


ENV = Simulator(name="reach", make="reach.world:ReachWorld", expert="reach.world:ReachExpert")
