"""The PushT expert: tries every push of a fixed set in a copy of the simulator, walks to the best one and makes it.

A plan is a function of the block's pose, the goal and the agent's position alone. There is no chance in it and hardly
any memory, since a policy that sees a second and a half of video must be able to tell what the expert would do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

from foreact.envs.pusht import WORLD_SIZE, build_simulator, place

AGENT_RADIUS = 15.0
CLEARANCE = 5.0  # px kept free between agent and block on a walk
TURN_CLEARANCE = 14.0  # px between agent and block at the corners of a walk; its cut corners stay beyond CLEARANCE
RUN_UP = 16.0  # px of straight approach before a push touches the block
PUSH_LENGTH = 180.0  # px, run-up included
LEAD = 32.0  # px between the agent and its target: some 16 px a step
STEP = 16.0  # px the agent then makes in a control step
SUBSTEP = 1.5  # px the agent advances per physics step of the planning copy
ARENA_MARGIN = 16.0  # px between the walls and places where a push may start

# T outline in the block's own frame (px); the block's origin is the middle of the bar's outer edge.
OUTLINE = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], dtype=np.float64)
FACES = (  # start, stop, outward normal of every face, and where on it a push may touch: first and last px from start
    ((-60, 0), (60, 0), (0, -1), 6, 114),
    ((60, 0), (60, 30), (1, 0), 6, 24),
    ((60, 30), (15, 30), (0, 1), 3, 30),
    ((15, 30), (15, 120), (1, 0), 20, 84),
    ((15, 120), (-15, 120), (0, 1), 5, 25),
    ((-15, 120), (-15, 30), (-1, 0), 6, 70),
    ((-15, 30), (-60, 30), (0, 1), 15, 42),
    ((-60, 30), (-60, 0), (-1, 0), 6, 24),
)
ANGLES = np.deg2rad([-20.0, 0.0, 20.0])  # push directions about the face normal
SPACING = 6.0  # px between contact points

PUSH_OVERHEAD = 6.0  # steps that a push costs beside its way
ERROR_FLOOR = 1.5  # px of keypoint error below which less brings nothing
STOP_COST = 0.03  # px of keypoint error that a px of push must bring at least


def keypoint_error(poses: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Root mean square distance of the outline's corners to their goals: poses (..., 3), goal (3,) -> (...), px."""
    return np.sqrt(((_corners(poses) - _corners(goal)) ** 2).sum(-1).mean(-1))


def _corners(poses: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(poses[..., 2:3]), np.sin(poses[..., 2:3])
    x, y = OUTLINE[:, 0], OUTLINE[:, 1]
    return np.stack([cos * x - sin * y + poses[..., 0:1], sin * x + cos * y + poses[..., 1:2]], axis=-1)


def to_world(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points (..., 2) in the block's frame -> world, for a block pose (3,)."""
    return turn(points, pose[2]) + pose[:2]


def to_block(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points (..., 2) in the world -> the frame of a block with pose (3,)."""
    return turn(points - pose[:2], -pose[2])


def turn(vectors: np.ndarray, angle: float) -> np.ndarray:
    """Rotate vectors (..., 2) by `angle`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * vectors[..., 0] - sin * vectors[..., 1], sin * vectors[..., 0] + cos * vectors[..., 1]], -1)


def candidate_pushes() -> tuple[np.ndarray, np.ndarray]:
    """Start points (P, 2) of the agent's centre and unit directions (P, 2), both in the block's frame."""
    starts, directions = [], []
    for begin, end, normal, first, last in FACES:
        begin, normal = np.array(begin, float), np.array(normal, float)
        along = np.array(end, float) - begin
        along /= np.linalg.norm(along)
        for offset in np.linspace(first, last, round((last - first) / SPACING) + 1):
            for angle in ANGLES:
                direction = turn(-normal, angle)
                starts.append(begin + along * offset + normal * AGENT_RADIUS - direction * RUN_UP)
                directions.append(direction)
    return np.array(starts), np.array(directions)


class Walks:
    """Shortest ways for the agent around the block, in the block's frame; a way never comes closer than CLEARANCE."""

    def __init__(self, ends: np.ndarray) -> None:
        block = shapely.Polygon(OUTLINE)
        self.obstacle = block.buffer(AGENT_RADIUS + CLEARANCE)
        self.ring = block.buffer(AGENT_RADIUS + TURN_CLEARANCE, join_style="bevel").exterior
        shapely.prepare(self.obstacle)
        self.ends = ends
        self.reachable = ~shapely.intersects_xy(self.obstacle, ends)
        self.nodes = np.array(self.ring.coords)[:-1]
        self.node_node = self._lengths(self.nodes[:, None], self.nodes[None])
        self.node_end = self._lengths(self.nodes[:, None], ends[None])

    def _lengths(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Lengths of the straight ways a -> b (broadcast), infinite where the block is in the way."""
        a, b = np.broadcast_arrays(a, b)
        lines = shapely.linestrings(np.stack([a, b], axis=-2))
        return np.where(shapely.intersects(self.obstacle, lines), np.inf, np.linalg.norm(a - b, axis=-1))

    def plan(self, agent: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Lengths (P,) of the ways from `agent` (2,) (block frame) to every end, and what `way` needs to trace them."""
        where = agent
        if shapely.intersects_xy(self.obstacle, *agent):  # touching or nearly so: first step back, straight away from it
            nearest = self.ring.interpolate(self.ring.project(shapely.Point(agent)))
            where = np.array([nearest.x, nearest.y])
        back = float(np.linalg.norm(where - agent))
        world = to_world(self.nodes, pose)
        usable = ((world > 6) & (world < WORLD_SIZE - 6)).all(1)
        hops = np.where(usable[:, None] & usable[None], self.node_node, np.inf)
        to_node = np.where(usable, self._lengths(where, self.nodes), np.inf)
        previous = np.full(len(self.nodes), -1)
        for _ in self.nodes:  # Bellman-Ford; a dozen nodes
            through = to_node[:, None] + hops
            best = through.argmin(0)
            shorter = through[best, np.arange(len(best))] < to_node - 1e-9
            to_node = np.where(shorter, through[best, np.arange(len(best))], to_node)
            previous = np.where(shorter, best, previous)
        direct = self._lengths(where, self.ends)
        through = to_node[:, None] + self.node_end
        lengths = np.minimum(direct, through.min(0))
        last = np.where(direct <= through.min(0), -1, through.argmin(0))
        return np.where(self.reachable, lengths + back, np.inf), last, previous, where

    def way(self, agent: np.ndarray, end: int, pose: np.ndarray) -> np.ndarray | None:
        """Corner points (n, 2) of the way from `agent` to end number `end`, both included; None if there is none."""
        lengths, last, previous, where = self.plan(agent, pose)
        if not np.isfinite(lengths[end]):
            return None
        points, node = [self.ends[end]], last[end]
        while node >= 0:
            points.append(self.nodes[node])
            node = previous[node]
        points.append(where)
        if not np.array_equal(where, agent):
            points.append(agent)
        return np.array(points[::-1])


@dataclass
class Push:
    """A chosen push: number in the fixed set, the block pose it was chosen for, direction (2,) in the world."""

    number: int
    pose: np.ndarray
    start: np.ndarray
    direction: np.ndarray
    pushing: bool = False


class PushTExpert:
    """Plans in its own copy of the simulator; one instance per episode stream."""

    def __init__(self) -> None:
        self.starts, self.directions = candidate_pushes()
        self.walks = Walks(self.starts)
        self._world = build_simulator()
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
        for _ in range(2):
            if self._push is None:
                self._push = self._choose(agent, pose, goal)
            route = self._route(agent, pose, goal)
            if route is not None:
                break
            self._push = None
        else:
            route = np.array([agent, agent + 1e-6])
        return np.clip(point_ahead(route, LEAD), 0.0, WORLD_SIZE).astype(np.float32)

    def _route(self, agent: np.ndarray, pose: np.ndarray, goal: np.ndarray) -> np.ndarray | None:
        push = self._push
        assert push is not None
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
        return np.array([agent, on_line + push.direction * min(stop, 8.0), on_line + push.direction * stop])

    def _choose(self, agent: np.ndarray, pose: np.ndarray, goal: np.ndarray) -> Push:
        walk = self.walks.plan(to_block(agent, pose), pose)[0]
        starts, directions = to_world(self.starts, pose), turn(self.directions, pose[2])
        inside = ((starts > ARENA_MARGIN) & (starts < WORLD_SIZE - ARENA_MARGIN)).all(1)
        usable = inside & np.isfinite(walk)
        now = np.log(keypoint_error(pose, goal) + ERROR_FLOOR)

        def rate(number: int) -> float:
            stop, error = self._best_stop(starts[number], directions[number], pose, goal)
            return (now - np.log(error + ERROR_FLOOR)) / ((walk[number] + stop) / STEP + PUSH_OVERHEAD)

        middle = [int(n) for n in np.flatnonzero(usable) if n % len(ANGLES) == 1]
        rates = {n: rate(n) for n in middle}
        for n in sorted(middle, key=lambda n: -rates[n])[:6]:
            rates |= {m: rate(m) for m in (n - 1, n + 1) if usable[m]}
        choice = max(rates, key=lambda n: rates[n])
        self.last_rate = rates[choice]
        return Push(choice, pose.copy(), starts[choice], directions[choice])

    def _best_stop(
        self, start: np.ndarray, direction: np.ndarray, pose: np.ndarray, goal: np.ndarray
    ) -> tuple[float, float]:
        """Where to end a push (px from start), and the keypoint error there (px)."""
        error = keypoint_error(self._simulate(start, direction, pose, PUSH_LENGTH), goal)
        travel = np.arange(len(error)) * SUBSTEP * 2
        best = int((error + STOP_COST * travel).argmin())
        return float(travel[best]), float(error[best])

    def _simulate(self, start: np.ndarray, direction: np.ndarray, pose: np.ndarray, length: float) -> np.ndarray:
        """Block poses (n, 3), one per 2 SUBSTEP of a straight push, the first before it."""
        world = self._world
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


def point_ahead(route: np.ndarray, lead: float) -> np.ndarray:
    """The point `lead` px along the polyline `route` (n, 2), or its end."""
    for a, b in zip(route[:-1], route[1:], strict=True):
        length = float(np.linalg.norm(b - a))
        if length >= lead:
            return a + (b - a) * (lead / length)
        lead -= length
    return route[-1]
