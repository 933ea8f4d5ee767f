"""The PushT expert: reaches the goal, depends on what it sees
alone, walks without touching, moves smoothly.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

pytest.importorskip("gym_pusht")

from foreact.envs.pusht import FIXED_GOAL, PushTEnv
from foreact.envs.pusht_expert import LEAD, PushTExpert
from foreact.envs.pusht_geometry import (
    OUTLINE,
    Walks,
    keypoint_error,
    point_ahead,
    to_block,
    to_world,
)

GOAL = np.array(FIXED_GOAL)


@pytest.fixture(scope="module")
def expert() -> PushTExpert:
    return PushTExpert()


def play(expert: PushTExpert, env: PushTEnv, seed: int) -> tuple[float, np.ndarray, np.ndarray]:
    expert.reset()
    state, states, actions, score = env.reset(seed)["state"], [], [], 0.0
    for _ in range(env.max_steps):
        states.append(state)
        actions.append(expert.act(state, env.goal))
        out = env.step(actions[-1])
        state, score = out.obs["state"], max(score, out.reward)
        if out.terminated:
            break
    return score, np.array(states), np.array(actions)


@pytest.mark.parametrize(
    ("kind", "seed"), [("fixed", 0), ("fixed", 261), ("random", 1), ("random", 2)]
)
def test_reaches_the_goal_smoothly(
    expert: PushTExpert, kind: Literal["fixed", "random"], seed: int
) -> None:
    score, states, actions = play(expert, PushTEnv(goal=kind, image=False), seed)
    assert score >= 0.95
    assert len(actions) <= 250
    assert actions.dtype == np.float32
    assert ((actions >= 0) & (actions <= 512)).all()
    assert (np.linalg.norm(actions - states[:, :2], axis=1) <= LEAD + 1e-3).all()


def test_plan_depends_on_what_it_sees_alone(expert: PushTExpert) -> None:
    env = PushTEnv(image=False)
    for seed in range(4):
        state = env.reset(seed)["state"]
        expert.reset()
        np.testing.assert_array_equal(expert.act(state, GOAL), PushTExpert().act(state, GOAL))


def test_walk_leaves_the_block_alone(expert: PushTExpert) -> None:
    env = PushTEnv(image=False)
    state = env.set_state(np.array([256.0, 130.0, 300.0, 330.0, 0.4]))["state"]
    start = state[2:].copy()
    expert.reset()
    walked = 0
    for _ in range(60):
        action = expert.act(state, GOAL)
        if expert._push is None or expert._push.pushing:
            break
        np.testing.assert_allclose(state[2:], start, atol=1e-3)
        state = env.step(action).obs["state"]
        walked += 1
    assert walked > 5


def test_shoved_off_its_way_it_plans_again(expert: PushTExpert) -> None:
    env = PushTEnv(image=False)
    state = env.reset(4)["state"]
    expert.reset()
    for _ in range(10):
        state = env.step(expert.act(state, GOAL)).obs["state"]
    moved = state.copy()
    moved[2:4] += 40
    expert.act(moved, GOAL)
    assert expert._push is not None
    np.testing.assert_array_equal(expert._push.pose, moved[2:].astype(np.float64))


@pytest.mark.parametrize(
    "state", [(26.7, 114.0, 59.3, 91.1, 0.8), (247.0, 508.0, 253.0, 483.0, 0.4)]
)
def test_without_a_push_in_reach_it_steps_away_from_the_block(
    expert: PushTExpert, state: tuple[float, ...]
) -> None:
    expert.reset()
    agent, block = np.array(state[:2]), np.array(state[2:4])
    target = expert.act(np.array(state), GOAL)
    assert np.linalg.norm(target - block) > np.linalg.norm(agent - block)


def test_every_way_keeps_its_distance_and_is_as_long_as_promised(expert: PushTExpert) -> None:
    shapely = pytest.importorskip("shapely")
    walks, pose = expert.walks, np.array([256.0, 220.0, 0.7])
    block = shapely.Polygon(OUTLINE)
    agent = np.array([-120.0, 60.0])
    lengths = walks.plan(agent, pose)[0]
    assert np.isfinite(lengths).sum() > 20
    for end in np.flatnonzero(np.isfinite(lengths)):
        way = walks.way(agent, int(end), pose)
        assert way is not None
        assert shapely.LineString(way).distance(block) >= 19.9
        assert np.linalg.norm(np.diff(way, axis=0), axis=1).sum() == pytest.approx(lengths[end])
        np.testing.assert_array_equal(way[-1], walks.ends[end])


def test_ways_avoid_the_walls() -> None:
    ends = np.array([[0.0, 170.0]])
    walks = Walks(ends)
    centre, corner = np.array([256.0, 200.0, 0.0]), np.array([70.0, 200.0, 0.0])
    agent = np.array([-20.0, -60.0])
    around, between = walks.way(agent, 0, centre), walks.way(agent, 0, corner)
    assert around is not None
    assert around[:, 0].min() < -70
    assert between is not None
    assert between[:, 0].min() >= -20


def test_frames_are_inverse_and_keypoint_error_is_a_distance() -> None:
    pose, points = np.array([100.0, 200.0, 1.1]), np.random.default_rng(0).normal(size=(5, 2)) * 50
    np.testing.assert_allclose(to_block(to_world(points, pose), pose), points, atol=1e-9)
    assert keypoint_error(GOAL, GOAL) == 0.0
    assert keypoint_error(GOAL + np.array([3, 4, 0]), GOAL) == pytest.approx(5.0)
    assert keypoint_error(GOAL + np.array([0, 0, 2 * np.pi]), GOAL) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("lead", "expected"), [(4, (4, 0)), (10, (10, 0)), (13, (10, 3)), (99, (10, 5))]
)
def test_point_ahead(lead: float, expected: tuple[float, float]) -> None:
    np.testing.assert_allclose(point_ahead(np.array([[0, 0], [10, 0], [10, 5]]), lead), expected)
