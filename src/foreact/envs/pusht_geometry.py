"""PushT geometry for the expert: the block's outline, its frame and paths around it."""

from __future__ import annotations

import itertools

import numpy as np

from foreact.envs.pusht import WORLD_SIZE

AGENT_RADIUS = 15.0
CLEARANCE = 5.0  # px kept free between agent and block on a walk
TURN_CLEARANCE = 14.0  # px at the corners of a walk, whose cut corners stay beyond CLEARANCE
WALK_MARGIN = 6.0  # px between a walk's corners and the walls

# T outline in the block's own frame (px); the block's origin is the middle of the bar's outer edge.
OUTLINE = np.array(
    [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float
)


def keypoint_error(poses: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """RMS distance in px of outline corners to their goals: (..., 3), (3,) -> (...)."""
    return np.sqrt(((_corners(poses) - _corners(goal)) ** 2).sum(-1).mean(-1))


def _corners(poses: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(poses[..., 2:3]), np.sin(poses[..., 2:3])
    x, y = OUTLINE[:, 0], OUTLINE[:, 1]
    return np.stack(
        [cos * x - sin * y + poses[..., 0:1], sin * x + cos * y + poses[..., 1:2]], axis=-1
    )


def to_world(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points (..., 2) in the block's frame -> world, for a block pose (3,)."""
    return turn(points, pose[2]) + pose[:2]


def to_block(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points (..., 2) in the world -> the frame of a block with pose (3,)."""
    return turn(points - pose[:2], -pose[2])


def turn(vectors: np.ndarray, angle: float) -> np.ndarray:
    """Rotate vectors (..., 2) by `angle`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack(
        [
            cos * vectors[..., 0] - sin * vectors[..., 1],
            sin * vectors[..., 0] + cos * vectors[..., 1],
        ],
        -1,
    )


def within(points: np.ndarray, margin: float) -> np.ndarray:
    """bool (...): whether world points (..., 2) lie at least `margin` px inside the walls."""
    return np.all((points > margin) & (points < WORLD_SIZE - margin), axis=-1)


class Walks:
    """Shortest paths around the block, in its frame, never closer than CLEARANCE."""

    def __init__(self, ends: np.ndarray) -> None:
        import shapely  # comes with the simulator

        self._shapely = shapely
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
        """Lengths of the straight paths a -> b (broadcast), infinite where the block blocks."""
        a, b = np.broadcast_arrays(a, b)
        lines = self._shapely.linestrings(np.stack([a, b], axis=-2))
        return np.where(
            self._shapely.intersects(self.obstacle, lines), np.inf, np.linalg.norm(a - b, axis=-1)
        )

    def plan(
        self, agent: np.ndarray, pose: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Shortest ways from `agent` (2,), in the block's frame, to every end.

        Returns:
            Lengths (P,), infinite where there is none; what `way` needs to trace them: the last
            node before each end (P,) and before each node, -1 for none, and the point (2,) from
            which the ways leave the block.
        """
        where = agent
        # Touching or nearly so: first step back.
        if self._shapely.intersects_xy(self.obstacle, agent[0], agent[1]):
            nearest = self.ring.interpolate(self.ring.project(self._shapely.Point(agent)))
            where = np.array([nearest.x, nearest.y])
        back = float(np.linalg.norm(where - agent))
        world = to_world(self.nodes, pose)
        usable = within(world, WALK_MARGIN)
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
        """Corners (n, 2) of the path from `agent` to endpoint `end`, inclusive; None if none."""
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


def point_ahead(route: np.ndarray, lead: float) -> np.ndarray:
    """The point `lead` px along the polyline `route` (n, 2), or its end."""
    for a, b in itertools.pairwise(route):
        length = float(np.linalg.norm(b - a))
        if length >= lead:
            return a + (b - a) * (lead / length)
        lead -= length
    return route[-1]
