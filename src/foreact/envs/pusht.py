"""PushT: push a T-shaped block onto its goal, fixed or per episode (PushT-M).

See also `pusht_expert`.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any, Literal

import numpy as np

from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec
from foreact.worlds import StepOut

FIXED_GOAL = (256.0, 256.0, float(np.pi / 4))
"""Goal pose of PushT: x and y in pixels of the 512 px world, angle in radians."""

SUCCESS_COVERAGE = 0.95
IMAGE_SIZE = 96
WORLD_SIZE = 512

PUSHT_SPEC = StreamSpec(
    cameras={"img": (IMAGE_SIZE, IMAGE_SIZE)},
    fps=10.0,
    action=ActionSpec(
        names=("x", "y"),
        units=("px", "px"),
        frame="world",
        mode="absolute",
        rate_hz=10.0,
        low=(0.0, 0.0),
        high=(float(WORLD_SIZE), float(WORLD_SIZE)),
    ),
    state={"state": ("agent_x", "agent_y", "block_x", "block_y", "block_angle")},
)

GOAL_STREAM = 0x60A1  # keeps the goal's draws apart from any other use of the episode's seed


def build_simulator() -> Any:
    """A fresh gym-pusht world with all bodies in place, goal fixed.

    Raises:
        UserError: gym-pusht is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from gym_pusht.envs.pusht import PushTEnv as Simulator
    except ImportError as error:
        raise UserError(
            f"PushT needs its simulator, which could not be imported ({error}); run `pip install "
            '"foreact[pusht]"`.'
        ) from error
    simulator = Simulator()
    rebuild(simulator)
    return simulator


def rebuild(simulator: Any) -> None:
    """New bodies in a new space, so that nothing of an earlier episode is left."""
    simulator._setup()
    for shape in simulator.space.shapes:
        # The simulator counts contacts in a Python callback on type 0. Nobody reads the count, and
        # without the callback, which does not touch the physics, a push costs a third.
        shape.collision_type = 1


def place(simulator: Any, state: np.ndarray) -> None:
    """Put agent and block of `simulator` exactly at `state` (5,), without stepping time."""
    agent, block = simulator.agent, simulator.block
    agent.position = (float(state[0]), float(state[1]))
    agent.velocity = (0.0, 0.0)
    # The angle goes first: turning a body rotates it about its centre of mass, which moves its
    # origin.
    block.angle = float(state[4])
    block.position = (float(state[2]), float(state[3]))
    block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
    simulator.space.reindex_shapes_for_body(agent)
    simulator.space.reindex_shapes_for_body(block)


def read_state(simulator: Any) -> np.ndarray:
    """(5,) float64: agent x, y, block x, y in pixels, block angle in [0, 2 pi)."""
    agent, block = simulator.agent.position, simulator.block.position
    return np.array([agent.x, agent.y, block.x, block.y, simulator.block.angle % (2 * np.pi)])


def initial_state(seed: int) -> np.ndarray:
    """Initial state (5,) of episode `seed`, drawn as in UVA's evaluation."""
    draw = np.random.RandomState(seed)
    agent = [draw.randint(50, 450), draw.randint(50, 450)]
    block = [draw.randint(100, 400), draw.randint(100, 400)]
    return np.array([*agent, *block, draw.randn() * 2 * np.pi - np.pi], dtype=np.float64)


def random_goal(seed: int) -> np.ndarray:
    """Goal (3,) of PushT-M episode `seed`: x, y uniform in 256 +- 100 px, angle in 0..2 pi.

    The reference draws it from numpy's global state, so that its goals depend on how many processes
    run; here the seed alone decides.
    """
    draw = np.random.default_rng([seed, GOAL_STREAM])
    return np.array([*draw.uniform(156.0, 356.0, 2), draw.uniform(0.0, 2 * np.pi)])


@functools.lru_cache(maxsize=1)
def _picture_world() -> Any:
    return build_simulator()


def render_state(
    state: np.ndarray, goal: np.ndarray | tuple[float, ...] = FIXED_GOAL, size: int = IMAGE_SIZE
) -> np.ndarray:
    """Picture of one instant, a function of `state` and `goal` alone.

    The world that is drawn is never stepped, so it shows no contact points. The simulator's own
    picture marks them with dots, which no 5-vector can bring back.

    Args:
        state: (5,) agent x, y, block x, y in pixels, block angle in radians.
        goal: (3,) goal x, y in pixels and angle in radians.
        size: side of the picture in pixels.

    Returns:
        uint8 (size, size, 3) RGB.
    """
    world = _picture_world()
    place(world, np.asarray(state, dtype=np.float64))
    world.goal_pose = np.asarray(goal, dtype=np.float64)
    return world._get_img(world._draw(), width=size, height=size)


class PushTEnv:
    """One PushT world; meets `foreact.worlds.Env`.

    The reward is coverage / 0.95 clipped to 0..1, and the episode ends when the coverage of the
    goal exceeds 0.95.

    Args:
        goal: "fixed" is PushT, "random" is PushT-M with one goal per seed.
        image: whether observations hold the picture "img"; without it a step costs a third.
    """

    spec = PUSHT_SPEC
    max_steps = 300

    def __init__(self, goal: Literal["fixed", "random"] = "fixed", image: bool = True) -> None:
        if goal not in ("fixed", "random"):
            raise UserError(f"The goal of PushT is 'fixed' or 'random', found {goal!r}.")
        self._goal_kind = goal
        self._image = image
        self._world = build_simulator()
        self._target: np.ndarray | None = None

    @property
    def goal(self) -> np.ndarray:
        """(3,) float64 goal pose of the running episode: x, y in pixels, angle in radians."""
        return np.array(self._world.goal_pose, dtype=np.float64)

    @property
    def state(self) -> np.ndarray:
        """(5,) float64 agent x, y, block x, y, block angle in [0, 2 pi)."""
        return read_state(self._world)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        rebuild(self._world)
        self._world.goal_pose = (
            random_goal(seed) if self._goal_kind == "random" else np.array(FIXED_GOAL)
        )
        # The simulator's own setter, odd order of position and angle included: seeds must mean the
        # reference's starts.
        self._world._set_state(initial_state(seed))
        self._target = None
        return self._observe()

    def set_state(self, state: np.ndarray, goal: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Put the bodies at rest exactly at `state` (5,), and the goal at `goal` (3,) if given.

        Raises:
            UserError: a shape is wrong or a value is not finite.
        """
        state = _finite("state", state, 5)
        rebuild(self._world)
        self._world.goal_pose = np.array(FIXED_GOAL) if goal is None else _finite("goal", goal, 3)
        place(self._world, state)
        self._target = None
        return self._observe()

    def step(self, action: np.ndarray) -> StepOut:
        """Hold the agent's target at `action` (2,), pixels, for a tenth of a second.

        Raises:
            UserError: the shape is wrong or a value is not finite.
        """
        self._target = _finite("action", action, 2)
        _, reward, terminated, _, info = self._world.step(self._target)
        return StepOut(
            self._observe(), float(reward), bool(terminated), {"coverage": float(info["coverage"])}
        )

    def render(self) -> np.ndarray:
        """uint8 (384, 384, 3), with a cross where the last action aimed."""
        size = 384
        picture = render_state(self.state, self.goal, size)
        if self._target is not None:
            column, row = np.clip(self._target * size / WORLD_SIZE, 8, size - 9).astype(int)
            for reach in range(-8, 9):
                picture[row + reach, column - 1 : column + 2] = (220, 30, 30)
                picture[row - 1 : row + 2, column + reach] = (220, 30, 30)
        return picture

    def close(self) -> None:
        """Nothing to release: the world lives in memory."""

    def _observe(self) -> dict[str, np.ndarray]:
        state = self.state.astype(np.float32)
        observation = {"state": state}
        if self._image:
            # Drawn from the rounded state, so that a stored trace gives back this very picture.
            observation["img"] = render_state(state, self.goal)
        return observation


def _finite(label: str, values: np.ndarray, size: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (size,):
        raise UserError(
            f"PushT expects a {label} of shape ({size},), found {array.shape}; give "
            f"one {label} at a time."
        )
    if not np.isfinite(array).all():
        raise UserError(
            f"PushT expects a finite {label}, found {array.tolist()}; check the policy for NaN."
        )
    return array


def make_pusht() -> PushTEnv:
    """PushT with the fixed goal."""
    return PushTEnv(goal="fixed")


def make_pusht_m() -> PushTEnv:
    """PushT-M: a goal per episode, given by the seed."""
    return PushTEnv(goal="random")
