"""Smoothing over time, by hand: means, rotations that stay rotations, grippers that stay sharp."""

from __future__ import annotations

import numpy as np
import pytest

from foreact.data.rotations import angle_between, convert
from foreact.errors import UserError
from foreact.policies.smoothing import smooth


def turning(angles: list[float]) -> np.ndarray:
    """Actions (K, 10) that turn about z, with the angle as x and an opening that shuts at once."""
    angle = np.array(angles)
    axis_angle = np.stack([0 * angle, 0 * angle, angle], axis=-1)
    actions = np.zeros((len(angles), 10))
    actions[:, 0] = angle
    actions[:, 3:9] = convert(axis_angle, "axis_angle", "rows_6d")
    actions[:, 9] = np.arange(len(angles)) < 2
    return actions


def test_mean_repeats_the_ends() -> None:
    values = np.array([[3.0, 0.0], [6.0, 9.0], [0.0, 0.0]])
    expected = [[4.0, 3.0], [3.0, 3.0], [2.0, 3.0]]
    np.testing.assert_allclose(smooth(values, "mean"), expected)
    batch = smooth(np.stack([values, 2 * values]).astype(np.float32), "mean")
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch[1], 2 * np.array(expected))


def test_poses_stay_poses() -> None:
    actions = turning([0.0, 0.6, 0.0, 0.3])
    smoothed = smooth(actions, "pose")
    np.testing.assert_allclose(smoothed[:, 0], [0.2, 0.2, 0.3, 0.2], atol=1e-12)
    np.testing.assert_array_equal(smoothed[:, 9], [1, 1, 0, 0])
    rows = smoothed[:, 3:9].reshape(4, 2, 3)
    np.testing.assert_allclose(rows @ np.swapaxes(rows, 1, 2), [np.eye(2)] * 4, atol=1e-12)
    # The mean rotation about one axis turns by the direction of the mean of unit vectors.
    for step, three in enumerate([(0, 0, 0.6), (0, 0.6, 0), (0.6, 0, 0.3), (0, 0.3, 0.3)]):
        angle = np.arctan2(np.sin(three).sum(), np.cos(three).sum())
        expected = convert(np.array([0, 0, angle]), "axis_angle", "matrix")
        got = convert(smoothed[step, 3:9], "rows_6d", "matrix")
        assert angle_between(got, expected) < 1e-7
    plain = smooth(actions, "mean")[0, 3:9].reshape(2, 3)
    assert np.linalg.norm(plain[0]) < 0.97  # what the reference sends


def test_half_a_turn_is_no_seam() -> None:
    """Axis-angles just below and above half a turn point in opposite directions."""
    smoothed = smooth(turning([np.pi - 0.1, np.pi + 0.1, np.pi - 0.1, np.pi + 0.1]), "pose")
    got = convert(smoothed[:, 3:9], "rows_6d", "matrix")
    half = convert(np.array([0, 0, np.pi]), "axis_angle", "matrix")
    assert (angle_between(got, half) < 0.11).all()


def test_two_hands_and_batches() -> None:
    one, two = turning([0.0, 0.6, 0.0]), turning([0.3, 0.0, 0.9])
    both = smooth(np.stack([np.concatenate([one, two], axis=-1)]).astype(np.float32), "pose")
    assert both.dtype == np.float32
    expected = np.concatenate([smooth(one, "pose"), smooth(two, "pose")], axis=-1)
    np.testing.assert_allclose(both[0], expected, atol=1e-6)


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"needs 10 numbers a hand .* found 7; use 'mean'"):
        smooth(np.zeros((4, 7)), "pose")
    with pytest.raises(UserError, match="not by 'median'"):
        smooth(np.zeros((4, 10)), "median")  # pyright: ignore[reportArgumentType]
