"""Drawn drives look and move as drives do, and lie on disk as nuScenes does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foreact.errors import UserError
from foreact.families.driving.data import ego
from foreact.families.driving.data import toy_street as toy
from foreact.families.driving.data.nuscenes import nuscenes_records
from foreact.families.driving.data.trajectories import Trajectories


def arc(bend: float, length: float = 200.0) -> np.ndarray:
    """A centre line (N, 3) of constant curvature, 1/m, positive to the left."""
    heading = bend * 0.5 * np.arange(int(length / 0.5))
    steps = 0.5 * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    return np.concatenate([np.cumsum(steps, axis=0) - steps, heading[:, None]], axis=1)


def fields(picture: np.ndarray) -> np.ndarray:
    """Where the picture is green, below the fog of the horizon: bool (rows, WIDTH)."""
    near = picture[toy.HORIZON + 8 :].astype(int)
    return near[..., 1] - near[..., 0] > 20


def middle(picture: np.ndarray, row: int) -> float:
    """Mean column of the road in a row."""
    return float(np.flatnonzero(~fields(picture)[row - toy.HORIZON - 8]).mean())


def drives(count: int, seed: int = 0) -> list[np.ndarray]:
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        found.append(toy.positions(rng, toy.road(rng)))
    return found


def poses_of(drive: np.ndarray) -> np.ndarray:
    x, y, yaw = drive.T
    zero = np.zeros_like(x)
    return np.stack([x, y, zero, np.cos(yaw / 2), zero, zero, np.sin(yaw / 2)], axis=1)


# --- what is seen ---------------------------------------------------------------------------------


def test_a_straight_road_lies_ahead_as_wide_as_it_is() -> None:
    picture = toy.picture(np.array([10.0, 0.0, 0.0]), arc(0.0))
    assert picture.shape == (toy.HEIGHT, toy.WIDTH, 3)
    assert picture.dtype == np.uint8
    sky = picture[: toy.HORIZON].astype(int)
    assert (sky[..., 2] > sky[..., 0]).all()
    for row in (toy.HORIZON + 15, toy.HORIZON + 25):
        forward = toy.FOCAL * toy.CAMERA_HEIGHT / (row + 1 - toy.HORIZON)
        road = np.flatnonzero(~fields(picture)[row - toy.HORIZON - 8])
        assert len(road) == pytest.approx(2 * toy.HALF_ROAD * toy.FOCAL / forward, abs=2)
        assert middle(picture, row) == pytest.approx(toy.WIDTH / 2, abs=1)


@given(bend=st.floats(1 / 60, 1 / 15))
def test_a_bend_goes_where_it_goes_and_mirrors(bend: float) -> None:
    pose = np.array([0.0, 0.0, 0.0])
    left, right = (toy.picture(pose, arc(sign * bend)) for sign in (1, -1))
    row = toy.HORIZON + 12  # 18 m ahead
    offset = bend * (toy.FOCAL * toy.CAMERA_HEIGHT / 13) ** 2 / 2  # metres, of a shallow bend
    assert middle(left, row) < toy.WIDTH / 2 - 2 * min(offset, 4)
    assert middle(right, row) > toy.WIDTH / 2 + 2 * min(offset, 4)
    differ = fields(left)[:, 1:] != fields(right)[:, :0:-1]
    assert differ.mean() < 0.02


@given(x=st.floats(-300, 300), y=st.floats(-300, 300), yaw=st.floats(-3, 3))
def test_the_road_looks_the_same_wherever_it_lies(x: float, y: float, yaw: float) -> None:
    centre = arc(0.03)
    c, s = np.cos(yaw), np.sin(yaw)
    moved = np.stack(
        [
            x + c * centre[:, 0] - s * centre[:, 1],
            y + s * centre[:, 0] + c * centre[:, 1],
            centre[:, 2] + yaw,
        ],
        axis=1,
    )
    a, b = (toy.picture(line[10], line) for line in (centre, moved))
    assert (fields(a) != fields(b)).mean() < 0.005


def test_marks_come_closer_as_the_car_goes() -> None:
    centre = arc(0.0)
    here, later, period = (toy.picture(centre[i], centre).astype(int) for i in (20, 24, 32))
    assert np.abs(here - later).mean() > 1
    column = toy.WIDTH // 2
    assert (
        np.abs(here[toy.HORIZON + 12 :, column] - period[toy.HORIZON + 12 :, column]).mean() < 5
    ), "6 m: one dash on"


# --- how it moves ---------------------------------------------------------------------------------


def test_cars_face_where_they_go_at_the_speed_of_cars() -> None:
    for drive in drives(10):
        poses = poses_of(drive)
        step = ego.waypoints(poses[:-1], poses[1:, None])[:, 0]
        speed = np.linalg.norm(step, axis=1) / toy.PERIOD
        assert (speed > 1.5).all()
        assert (speed < 11).all()
        assert (np.abs(np.arctan2(step[:, 1], step[:, 0])) < 0.35).all()
        assert len(drive) == toy.FRAMES


def test_all_commands_occur() -> None:
    found = np.concatenate([ego.commands(p[:-6], p[6:], 2.0) for p in map(poses_of, drives(20))])
    counts = np.bincount(found, minlength=3)
    assert (counts > 0.1 * counts.sum()).all()


# --- on disk --------------------------------------------------------------------------------------


def test_the_folder_is_read_as_nuscenes(tmp_path: Path) -> None:
    toy.write_toy_street(tmp_path / "toy", scenes=2, seed=3, progress=False)
    records = nuscenes_records(tmp_path / "toy")
    assert len(records) == 2 * toy.FRAMES
    found = Trajectories.from_records(records, "CAM_FRONT", "toy")
    assert found.names == ["scene-0000", "scene-0001"]
    np.testing.assert_allclose(
        found.poses, np.concatenate([poses_of(d) for d in drives(2, seed=3)]), atol=1e-9
    )
    assert set(np.diff(found.timestamps[: toy.FRAMES])) == {500_000}
    rng = np.random.default_rng([3, 1])
    centre = toy.road(rng)
    first = np.asarray(Image.open(tmp_path / "toy" / found.files[toy.FRAMES])).astype(int)
    assert np.abs(first - toy.picture(toy.positions(rng, centre)[0], centre)).mean() < 3, "JPEG"
    frame = records[0]["CAM_FRONT"]
    assert frame["intrinsic"] == [
        [toy.FOCAL, 0.0, toy.WIDTH / 2],
        [0.0, toy.FOCAL, toy.HORIZON],
        [0.0, 0.0, 1.0],
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_a_scene_depends_on_the_seed_and_its_number_alone(tmp_path: Path) -> None:
    for name, scenes, seed in (("one", 1, 0), ("two", 2, 0), ("other", 1, 1)):
        toy.write_toy_street(tmp_path / name, scenes=scenes, seed=seed, progress=False)

    def poses(name: str) -> list[dict]:
        return json.loads((tmp_path / name / "v1.0-toy/ego_pose.json").read_text())[: toy.FRAMES]

    assert poses("one") == poses("two") != poses("other")
    files = sorted((tmp_path / "one/samples/CAM_FRONT").iterdir())
    assert len(files) == toy.FRAMES
    assert all(
        file.read_bytes() == (tmp_path / "two/samples/CAM_FRONT" / file.name).read_bytes()
        for file in files
    )


def test_a_stopped_drawing_leaves_no_data_set_and_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = toy.picture, []

    def stops(pose: np.ndarray, centre: np.ndarray) -> np.ndarray:
        drawn.append(1)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return real(pose, centre)

    with monkeypatch.context() as patched:
        patched.setattr(toy, "picture", stops)
        with pytest.raises(KeyboardInterrupt):
            toy.write_toy_street(tmp_path / "toy", scenes=1, progress=False)
    assert not (tmp_path / "toy").exists()
    toy.write_toy_street(tmp_path / "toy", scenes=1, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        toy.write_toy_street(tmp_path / "there")
    with pytest.raises(UserError, match="at least 1, found 0"):
        toy.write_toy_street(tmp_path / "new", scenes=0)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
