"""Ego motion: waypoints, rotations, yaw rate and commands against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from foreact.errors import UserError
from foreact.families.driving.data.ego import (
    LEFT,
    RIGHT,
    STRAIGHT,
    check_poses,
    commands,
    relative_rotations,
    waypoints,
    yaw_rate,
)

TOWARDS = {"east": 0.0, "north": np.pi / 2, "west": np.pi, "south": -np.pi / 2}


def pose(x: float, y: float, yaw: float, z: float = 0.0) -> np.ndarray:
    return np.array([x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def pose_at(place: np.ndarray, yaw: float) -> np.ndarray:
    return pose(place[0], place[1], yaw)


def random_poses(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation = rng.normal(size=(*shape, 4))
    rotation /= np.linalg.norm(rotation, axis=-1, keepdims=True)
    return np.concatenate([rng.normal(0, 1e5, (*shape, 3)), rotation], axis=-1)


def scipy_rotation(poses: np.ndarray) -> Rotation:
    return Rotation.from_quat(poses[..., [4, 5, 6, 3]].reshape(-1, 4))


@pytest.mark.parametrize("yaw", TOWARDS.values(), ids=TOWARDS)
def test_waypoints_are_forward_and_left_whichever_way_the_car_looks(yaw: float) -> None:
    forward, left = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    here = np.array([664430.0, 3999650.0])
    targets = np.stack(
        [pose_at(here + 3 * forward + 1 * left, 0.3), pose_at(here - 2 * left, -1.0)]
    )
    assert waypoints(pose_at(here, yaw), targets) == pytest.approx(
        np.array([[3, 1], [0, -2]]), abs=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_waypoints_and_rotations_agree_with_rotation_matrices(seed: int) -> None:
    origin, targets = random_poses(seed, 4), random_poses(seed + 1, 4, 3)
    moved = targets[..., :3] - origin[:, None, :3]
    moved[..., 2] = 0.0
    inverse = scipy_rotation(origin).inv()
    expected = np.stack([inverse[i].apply(moved[i])[:, :2] for i in range(4)])
    np.testing.assert_allclose(waypoints(origin, targets), expected, atol=1e-8)
    turned = relative_rotations(origin, targets)
    for i in range(4):
        both = inverse[i] * scipy_rotation(targets[i])
        got = scipy_rotation(np.concatenate([np.zeros((3, 3)), turned[i]], axis=1))
        assert (both.inv() * got).magnitude().max() < 1e-6


@pytest.mark.parametrize("per_step", [0.3, -0.3, 0.0])
def test_yaw_rate_has_no_sign_and_no_jump_at_half_a_turn(per_step: float) -> None:
    headings = 2.9 + per_step * np.arange(6)
    rotations = np.stack([pose(0, 0, yaw)[3:] for yaw in headings])
    assert yaw_rate(rotations) == pytest.approx(abs(per_step))


def test_commands_look_at_the_side_and_honour_the_threshold() -> None:
    origin = np.stack([pose(5, 5, np.pi / 2)] * 4)
    targets = np.stack(
        [pose(5 - 2.5, 15, 0), pose(5 + 2.5, 15, 0), pose(5 - 1.5, 15, 0), pose(5 + 1.5, 15, 0)]
    )
    assert commands(origin, targets, 2.0).tolist() == [LEFT, RIGHT, STRAIGHT, STRAIGHT]
    assert commands(origin, targets, 1.0).tolist() == [LEFT, RIGHT, LEFT, RIGHT]
    assert commands(origin, targets, 3.0).tolist() == [STRAIGHT] * 4


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((3, 6)),
        np.full((2, 7), np.nan),
        np.concatenate([np.zeros((2, 3)), np.ones((2, 4))], axis=1),
    ],
)
def test_poses_that_are_none_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(UserError, match="The poses of the log"):
        check_poses(bad, "the log")
