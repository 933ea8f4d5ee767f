"""Drives along winding roads, drawn in the folder layout of nuScenes: data without a download.

Each scene is 20 seconds at 2 Hz: pictures of 256 x 144 pixels from a camera 1.6 m above a road
whose bends, lane marks and field patches tell where the car goes and how fast, and the tables with
the car's poses.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foreact.errors import UserError
from foreact.progress import Progress

HEIGHT, WIDTH = 144, 256
FOCAL = 140.0  # pixels
CAMERA_HEIGHT = 1.6  # metres
HORIZON = 58  # row of the picture
HALF_ROAD = 4.0  # metres
PERIOD = 0.5  # seconds between pictures
FRAMES = 40


def road(rng: np.random.Generator, length: float = 400.0, spacing: float = 0.5) -> np.ndarray:
    """A centre line (N, 3), x, y, heading, every `spacing` m; straights and bends of 12-60 m."""
    curvature: list[float] = []
    while len(curvature) * spacing < length:
        steps = int(rng.uniform(20, 45) / spacing)
        bend = 0.0 if rng.random() < 0.4 else rng.choice([-1, 1]) / rng.uniform(12, 60)
        curvature += [bend] * steps
    smooth = np.convolve(curvature, np.ones(16) / 16, mode="same")
    heading = rng.uniform(-np.pi, np.pi) + np.cumsum(smooth) * spacing
    steps = spacing * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    return np.concatenate([np.cumsum(steps, axis=0), heading[:, None]], axis=1)


def positions(rng: np.random.Generator, centre: np.ndarray, spacing: float = 0.5) -> np.ndarray:
    """Poses (FRAMES, 3) of a car that follows the road and slows down in bends."""
    distance, speed, poses = 10.0, rng.uniform(4, 8), []  # metres, metres per second
    for _ in range(FRAMES):
        i = min(int(distance / spacing), len(centre) - 40)
        poses.append(centre[i])
        curvature = abs(centre[i + 20, 2] - centre[i, 2]) / 10.0  # over the next 10 m
        limit = min(9.0, np.sqrt(2.0 / max(curvature, 1e-3)))  # at most 2 m/s^2 to the side
        speed += np.clip(limit - speed, -1.5, 1.0) + rng.normal() * 0.1
        distance += max(speed, 2.0) * PERIOD
    return np.array(poses)


def picture(pose: np.ndarray, centre: np.ndarray, spacing: float = 0.5) -> np.ndarray:
    """What the camera sees, uint8 (HEIGHT, WIDTH, 3)."""
    image = np.empty((HEIGHT, WIDTH, 3))
    image[:HORIZON] = np.linspace([120, 160, 220], [205, 220, 235], HORIZON)[:, None]
    rows, columns = np.mgrid[HORIZON + 1 : HEIGHT + 1, 0:WIDTH]
    # Where each pixel below the horizon meets the ground, metres from the car.
    forward = FOCAL * CAMERA_HEIGHT / (rows - HORIZON)
    left = (WIDTH / 2 - columns) / FOCAL * forward

    # The centre line from the car on, in the frame of the car.
    c, s = np.cos(pose[2]), np.sin(pose[2])
    offset = centre[:, :2] - pose[:2]
    x, y = offset @ [c, s], offset @ [-s, c]
    nearest = int(np.argmin(np.hypot(x, y)))
    x, y = x[nearest : nearest + 200], y[nearest : nearest + 200]
    # Only points further ahead than all before them: up to where the road turns back.
    visible = np.concatenate([[True], np.diff(np.maximum.accumulate(x)) > 0])
    road_metres = np.arange(nearest, nearest + len(x)) * spacing
    along = np.interp(forward, x[visible], road_metres[visible])
    beside = left - np.interp(forward, x[visible], y[visible])

    world_x, world_y = pose[0] + c * forward - s * left, pose[1] + s * forward + c * left
    patch = (np.floor(world_x / 5) + np.floor(world_y / 5)) % 2
    ground = np.where(patch[..., None] == 0, [92, 140, 70], [108, 158, 84]).astype(float)
    ground[np.abs(beside) < HALF_ROAD] = [95, 95, 100]
    ground[np.abs(np.abs(beside) - (HALF_ROAD - 0.3)) < 0.15] = [230, 230, 230]
    ground[(np.abs(beside) < 0.15) & (along % 6 < 3)] = [235, 215, 120]
    fog = np.clip(forward / 90.0, 0, 1)[..., None]
    image[HORIZON:] = ground * (1 - fog) + np.array([205, 220, 235]) * fog
    return image.clip(0, 255).astype(np.uint8)


def write_toy_street(out: Path, *, scenes: int = 40, seed: int = 0, progress: bool = True) -> None:
    """Write pictures and tables into a new folder.

    Args:
        out: the root of the data set; must not exist yet.
        scenes: how many, of 40 pictures each.
        seed: of roads and speeds.
        progress: show a bar.

    Raises:
        UserError: the folder exists.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another folder or remove it.")
    if scenes < 1:
        raise UserError(f"--scenes should be at least 1, found {scenes}.")
    # Drawn beside its place and moved there when whole.
    final, out = out, out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(out, ignore_errors=True)
    scene_tables = ("scene", "sample", "sample_data", "ego_pose")
    other_tables = ("calibrated_sensor", "sensor", "log")
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in scene_tables + other_tables}
    tables["sensor"].append({"token": "sensor", "channel": "CAM_FRONT", "modality": "camera"})
    tables["log"].append(
        {"token": "log", "logfile": "toy", "vehicle": "toy", "location": "nowhere"}
    )
    tables["calibrated_sensor"].append(
        {
            "token": "calibration",
            "sensor_token": "sensor",
            "translation": [0.0, 0.0, CAMERA_HEIGHT],
            "rotation": [0.5, -0.5, 0.5, -0.5],
            "camera_intrinsic": [
                [FOCAL, 0.0, WIDTH / 2],
                [0.0, FOCAL, float(HORIZON)],
                [0.0, 0.0, 1.0],
            ],
        }
    )
    folder = out / "samples" / "CAM_FRONT"
    folder.mkdir(parents=True)
    for number in Progress(range(scenes), desc="draw", unit="scene", disable=not progress):
        rng = np.random.default_rng([seed, number])
        centre = road(rng)
        poses = positions(rng, centre)
        tokens = [f"{number:04d}-{i:02d}" for i in range(FRAMES)]
        tables["scene"].append(
            {
                "token": f"scene-{number:04d}",
                "name": f"scene-{number:04d}",
                "description": "a winding road",
                "log_token": "log",
                "nbr_samples": FRAMES,
                "first_sample_token": tokens[0],
                "last_sample_token": tokens[-1],
            }
        )
        for i, (token, pose) in enumerate(zip(tokens, poses, strict=True)):
            name = f"samples/CAM_FRONT/toy__CAM_FRONT__{token}.jpg"
            Image.fromarray(picture(pose, centre)).save(out / name, quality=90)
            timestamp = 1_500_000_000_000_000 + number * 100_000_000 + int(i * PERIOD * 1e6)
            neighbours = {
                "prev": tokens[i - 1] if i else "",
                "next": tokens[i + 1] if i + 1 < FRAMES else "",
            }
            tables["sample"].append(
                {
                    "token": token,
                    "timestamp": timestamp,
                    "scene_token": f"scene-{number:04d}",
                    **neighbours,
                }
            )
            tables["ego_pose"].append(
                {
                    "token": token,
                    "timestamp": timestamp,
                    "translation": [float(pose[0]), float(pose[1]), 0.0],
                    "rotation": [float(np.cos(pose[2] / 2)), 0.0, 0.0, float(np.sin(pose[2] / 2))],
                }
            )
            tables["sample_data"].append(
                {
                    "token": token,
                    "sample_token": token,
                    "ego_pose_token": token,
                    "calibrated_sensor_token": "calibration",
                    "timestamp": timestamp,
                    "fileformat": "jpg",
                    "is_key_frame": True,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "filename": name,
                    **neighbours,
                }
            )
    (out / "v1.0-toy").mkdir()
    for name, rows in tables.items():
        (out / "v1.0-toy" / f"{name}.json").write_text(json.dumps(rows))
    os.replace(out, final)
