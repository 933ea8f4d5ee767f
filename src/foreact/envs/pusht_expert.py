"""The PushT expert: simulates a fixed set of pushes, walks to the best one and makes it.

A plan is a function of the block's pose, the goal and the agent's position alone. There is no
chance in it and hardly any memory, since a policy that sees a second and a half of video must be
able to tell what the expert would do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreact.envs.pusht import WORLD_SIZE, build_simulator, place
from foreact.envs.pusht_geometry import (
    AGENT_RADIUS,
    Walks,
    keypoint_error,
    point_ahead,
    to_block,
    to_world,
    turn,
    within,
)

RUN_UP = 16.0  # px of straight approach before a push touches the block
PUSH_LENGTH = 180.0  # px, run-up included
LEAD = 32.0  # px between the agent and its target: some 16 px a step
STEP = 16.0  # px the agent then makes in a control step
SUBSTEP = 1.5  # px the agent advances per physics step of the planning copy
ARENA_MARGIN = 16.0  # px between the walls and places where a push may start

# start, stop, outward normal of every face, and where on it a push may touch: first and last px
# from start
FACES = (
    ((-60, 0), (60, 0), (0, -1), 6, 114),
    ((60, 0), (60, 30), (1, 0), 6, 24),
    ((60, 30), (15, 30), (0, 1), 3, 30),
    ((15, 30), (15, 120), (1, 0), 20, 84),
    ((15, 120), (-15, 120), (0, 1), 5, 25),
    ((-15, 120), (-15, 30), (-1, 0), 6, 70),
    ((-15, 30), (-60, 30), (0, 1), 15, 42),
    ((-60, 30), (-60, 0), (-1, 0), 6, 24),
)
# Few contact points and no slanted pushes: three times as many points and three angles end 12 %
# sooner, but make demonstrations ambiguous for an imitator.
SPACING = 18.0  # px between contact points, about
PARKED = np.array([50.0, 50.0, 256.0, 256.0, 0.0])

PUSH_OVERHEAD = 6.0  # steps that a push costs beside its way
ERROR_FLOOR = 1.5  # px of keypoint error below which less brings nothing
STOP_COST = 0.03  # px of keypoint error that a px of push must bring at least


def candidate_pushes() -> tuple[np.ndarray, np.ndarray]:
    """Start points (P, 2) of the agent and unit directions (P, 2), in the block's frame."""
    starts, directions = [], []
    for begin, end, normal, first, last in FACES:
        begin, normal = np.array(begin, float), np.array(normal, float)
        along = np.array(end, float) - begin
        along /= np.linalg.norm(along)
        for offset in np.linspace(first, last, round((last - first) / SPACING) + 1):
            starts.append(begin + along * offset + normal * (AGENT_RADIUS + RUN_UP))
            directions.append(-normal)
    return np.array(starts), np.array(directions)


@dataclass
class Push:
    """A chosen push: its number, the block pose it was chosen for, world direction (2,)."""

    number: int
    pose: np.ndarray
    start: np.ndarray
    direction: np.ndarray
    pushing: bool = False


class PushTExpert:
    """Plans in its own copy of the simulator; one instance per episode stream."""

    def __init__(self) -> None:
        # First, since it says what to install where the simulator is missing.
        self._world = build_simulator()
        self.starts, self.directions = candidate_pushes()
        self.walks = Walks(self.starts)
        self._push: Push | None = None

    def reset(self) -> None:
        """Forget the push under way."""
        self._push = None

    def act(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Target for the agent.

        Args:
            state: (5,) agent x, y, block x, y in pixels, block angle in radians.
            goal: (3,) goal pose of the block.

        Returns:
            float32 (2,) absolute target in pixels, within 0..512.
        """
        state, goal = np.asarray(state, np.float64), np.asarray(goal, np.float64)
        agent, pose = state[:2], state[2:]
        route = self._route(agent, pose, goal)
        if route is None:
            self._push = self._choose(agent, pose, goal)
            route = self._route(agent, pose, goal)
        if route is None:  # no push is within reach or helps: make room
            self._push = None
            away = agent - pose[:2]
            route = np.array([agent, agent + away / max(float(np.linalg.norm(away)), 1e-6) * LEAD])
        return np.clip(point_ahead(route, LEAD), 0.0, WORLD_SIZE).astype(np.float32)

    def _route(self, agent: np.ndarray, pose: np.ndarray, goal: np.ndarray) -> np.ndarray | None:
        """Points (n, 2) from the agent to the end of the push; None if it is over or failed."""
        push = self._push
        if push is None:
            return None
        if not push.pushing:
            moved = keypoint_error(pose, push.pose)
            if moved > 1.0:
                return None
            along = (agent - push.start) @ push.direction
            aside = np.linalg.norm(agent - push.start - along * push.direction)
            if -6.0 <= along <= RUN_UP + 4.0 and aside < 4.0:
                push.pushing = True
        if not push.pushing:
            way = self.walks.way(to_block(agent, pose), push.number, pose)
            if way is None:
                return None
            stop = push.start + push.direction * PUSH_LENGTH
            return np.concatenate([to_world(way, pose), stop[None]])
        along = (agent - push.start) @ push.direction
        on_line = push.start + along * push.direction
        if np.linalg.norm(agent - on_line) > 12.0:
            return None
        stop, _ = self._best_stop(agent, push.direction, pose, goal)
        if stop < 3.0:
            return None
        return np.array(
            [agent, on_line + push.direction * min(stop, 8.0), on_line + push.direction * stop]
        )

    def _choose(self, agent: np.ndarray, pose: np.ndarray, goal: np.ndarray) -> Push | None:
        """The push that shrinks the keypoint error most per step, including the walk to it."""
        walk = self.walks.plan(to_block(agent, pose), pose)[0]
        starts, directions = to_world(self.starts, pose), turn(self.directions, pose[2])
        usable = within(starts, ARENA_MARGIN) & np.isfinite(walk)
        now = np.log(keypoint_error(pose, goal) + ERROR_FLOOR)

        def rate(number: int) -> float:
            stop, error = self._best_stop(starts[number], directions[number], pose, goal)
            return (now - np.log(error + ERROR_FLOOR)) / (
                (walk[number] + stop) / STEP + PUSH_OVERHEAD
            )

        rates = {n: rate(n) for n in np.flatnonzero(usable).tolist()}
        if not rates:
            return None
        choice = max(rates, key=lambda n: rates[n])
        return Push(choice, pose.copy(), starts[choice], directions[choice])

    def _best_stop(
        self, start: np.ndarray, direction: np.ndarray, pose: np.ndarray, goal: np.ndarray
    ) -> tuple[float, float]:
        """Where to end a push (px from start), and the keypoint error there (px)."""
        # Targets end at the walls, and a push that aims beyond would never arrive.
        wall = np.where(direction > 0, WORLD_SIZE, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            room = float(np.nanmin(np.where(direction != 0.0, (wall - start) / direction, np.inf)))
        error = keypoint_error(
            self._simulate(start, direction, pose, min(PUSH_LENGTH, max(room, 0.0))), goal
        )
        travel = np.arange(len(error)) * SUBSTEP * 2
        best = int((error + STOP_COST * travel).argmin())
        return float(travel[best]), float(error[best])

    def _simulate(
        self, start: np.ndarray, direction: np.ndarray, pose: np.ndarray, length: float
    ) -> np.ndarray:
        """Block poses (n, 3), one per 2 SUBSTEP of a straight push, the first before it."""
        world = self._world
        # A step without any contact empties the solver's memory: the outcome depends on the
        # arguments alone.
        place(world, PARKED)
        world.space.step(world.dt)
        place(world, np.concatenate([start, pose]))
        dt = world.dt
        velocity = direction * (SUBSTEP / dt)
        world.agent.velocity = (float(velocity[0]), float(velocity[1]))
        block, advance = world.block, world.space.step
        poses = [(*block.position, block.angle)]
        for _ in range(int(length / SUBSTEP / 2)):
            advance(dt)
            advance(dt)
            poses.append((*block.position, block.angle))
        return np.array(poses)
