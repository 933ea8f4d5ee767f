"""Rotations and poses in every form, there and back."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreact.data.poses import (
    Reference,
    from_vector,
    inverse,
    pose_matrix,
    pose_vector,
    refer,
    restore,
)
from foreact.data.rotations import SHAPES, Form, angle_between, convert
from foreact.errors import UserError

FORMS: tuple[Form, ...] = get_args(Form)
QUARTER_ABOUT_Z = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
angles = st.floats(-np.pi, np.pi, allow_nan=False)


def test_a_quarter_turn_in_every_form() -> None:
    half = np.sqrt(0.5)
    expected: dict[Form, list[float]] = {
        "axis_angle": [0.0, 0.0, np.pi / 2],
        "quat_xyzw": [0.0, 0.0, half, half],
        "quat_wxyz": [half, 0.0, 0.0, half],
        "rows_6d": [0.0, -1.0, 0.0, 1.0, 0.0, 0.0],
        "columns_6d": [0.0, 1.0, 0.0, -1.0, 0.0, 0.0],
    }
    for form, values in expected.items():
        np.testing.assert_allclose(convert(QUARTER_ABOUT_Z, "matrix", form), values, atol=1e-12)
        np.testing.assert_allclose(
            convert(np.array(values), form, "matrix"), QUARTER_ABOUT_Z, atol=1e-12
        )


@settings(deadline=None, max_examples=50)
@given(st.tuples(angles, angles, angles))
def test_every_form_comes_back_as_the_same_rotation(axis_angle: tuple[float, ...]) -> None:
    matrix = convert(np.array(axis_angle), "axis_angle", "matrix")
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    for source in FORMS:
        written = convert(matrix, "matrix", source)
        assert written.shape == SHAPES[source]
        for target in FORMS:
            again = convert(convert(written, source, target), target, "matrix")
            np.testing.assert_allclose(again, matrix, atol=1e-7)


def test_half_turns_and_no_turn_have_no_nan() -> None:
    for axis in np.eye(3):
        matrix = convert(np.pi * axis, "axis_angle", "matrix")
        back = convert(matrix, "matrix", "axis_angle")
        assert np.linalg.norm(back) == pytest.approx(np.pi)
        np.testing.assert_allclose(np.abs(back), np.pi * axis, atol=1e-6)
    for form in FORMS:
        still = convert(np.zeros(3), "axis_angle", form)
        np.testing.assert_array_equal(convert(still, form, "axis_angle"), np.zeros(3))
    assert convert(np.zeros(3), "axis_angle", "rows_6d").tolist() == [1, 0, 0, 0, 1, 0]


def test_an_axis_angle_beyond_half_a_turn_survives_its_quaternion() -> None:
    long = np.array([0.0, 4.0, 0.0])
    quaternion = convert(long, "axis_angle", "quat_wxyz")
    np.testing.assert_allclose(convert(quaternion, "quat_wxyz", "axis_angle"), long)
    short = convert(convert(long, "axis_angle", "matrix"), "matrix", "axis_angle")
    np.testing.assert_allclose(short, [0.0, 4.0 - 2.0 * np.pi, 0.0])


def test_six_numbers_need_not_be_orthonormal() -> None:
    found = convert(np.array([2.0, 0.0, 0.0, 1.0, 3.0, 0.0]), "rows_6d", "matrix")
    np.testing.assert_allclose(found, np.eye(3))


def test_rows_read_as_columns_are_the_inverse() -> None:
    matrix = convert(np.array([0.3, -0.7, 1.1]), "axis_angle", "matrix")
    swapped = convert(convert(matrix, "matrix", "rows_6d"), "columns_6d", "matrix")
    np.testing.assert_allclose(swapped, matrix.T, atol=1e-12)
    assert angle_between(matrix, swapped) > 1.0


def test_angles_between_rotations() -> None:
    turned = convert(np.array([[0.0, 0.0, 0.5], [0.0, 0.0, -0.25]]), "axis_angle", "matrix")
    np.testing.assert_allclose(angle_between(np.eye(3), turned), [0.5, 0.25])


def test_other_shapes_and_no_quaternions_are_refused() -> None:
    with pytest.raises(UserError, match=r"as quat_xyzw should have shape \(..., 4\), found \(2, 3"):
        convert(np.zeros((2, 3)), "quat_xyzw", "matrix")
    with pytest.raises(UserError, match=r"should have norm 1, found 0\.5"):
        convert(np.array([[1.0, 0, 0, 0], [0.5, 0, 0, 0]]), "quat_wxyz", "matrix")


@pytest.mark.parametrize("reference", get_args(Reference))
def test_poses_come_back_from_every_reference(reference: Reference) -> None:
    draw = np.random.default_rng(0)
    poses = pose_matrix(draw.normal(size=(2, 5, 3)), draw.normal(size=(2, 5, 3)), "axis_angle")
    base = poses[:, 1]
    referred = refer(poses, base, reference)
    np.testing.assert_allclose(restore(referred, base, reference), poses, atol=1e-12)
    if reference == "relative":
        np.testing.assert_allclose(referred[:, 1], np.broadcast_to(np.eye(4), (2, 4, 4)), atol=1e-9)
    np.testing.assert_allclose(
        inverse(poses) @ poses, np.broadcast_to(np.eye(4), poses.shape), atol=1e-9
    )


def test_relative_poses_do_not_know_the_frame_of_the_world() -> None:
    draw = np.random.default_rng(1)
    poses = pose_matrix(draw.normal(size=(4, 3)), draw.normal(size=(4, 3)), "axis_angle")
    moved = pose_matrix(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0]), "axis_angle") @ poses
    np.testing.assert_allclose(
        refer(moved, moved[0], "relative"), refer(poses, poses[0], "relative"), atol=1e-12
    )


def test_vectors_of_poses() -> None:
    pose = pose_matrix(np.array([1.0, 2.0, 3.0]), QUARTER_ABOUT_Z, "matrix")
    vector = pose_vector(pose, "rows_6d")
    np.testing.assert_allclose(vector, [1, 2, 3, 0, -1, 0, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(from_vector(vector, "rows_6d"), pose, atol=1e-12)
