"""Small UMI files whose pictures say which episode, frame and camera they are."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

LENGTHS = (30, 21)
SIZE = 32


def picture(episode: int, frame: int, camera: int = 0, size: int = SIZE) -> np.ndarray:
    """Left half: the episode in red, the camera in blue; right half: the frame in green."""
    image = np.zeros((size, size, 3), np.uint8)
    image[:, : size // 2] = (60 + 60 * episode, 0, 200 * camera)
    image[:, size // 2 :] = (0, 8 * frame, 0)
    return image


def who(image: np.ndarray) -> tuple[int, int, int]:
    """Inverse of `picture`, of compressed pictures too: episode, frame, camera."""
    half = image.shape[1] // 2
    left, right = image[:, : half - 4], image[:, half + 4 :]
    red, blue = left[..., 0].mean(), left[..., 2].mean()
    assert left[..., 1].mean() < 20
    assert right[..., 0].mean() < 20
    return round((red - 60) / 60), round(right[..., 1].mean() / 8), round(blue / 200)


def poses(episode: int, length: int, robot: int = 0) -> dict[str, np.ndarray]:
    """A hand that moves along its own path, tilted and turning."""
    t = np.arange(length)[:, None]
    start = np.array([[0.3, -0.2, 0.5, 0.4, 0.1, -0.2]]) + episode + 0.1 * robot
    turn = np.array([0.6, -0.3, 0.4]) + t * (0.01, 0.02, -0.015 * (1 + robot))
    return {
        "eef_pos": (np.array([1.0, 2.0, 0.3]) + t * (0.01, -0.02, 0.005 + 0.01 * robot)).astype(
            np.float32
        ),
        "eef_rot_axis_angle": turn.astype(np.float32),
        "gripper_width": (0.08 - 0.001 * t).astype(np.float32),
        "demo_start_pose": np.repeat(start, length, axis=0),
        "demo_end_pose": np.repeat(start + 1.0, length, axis=0),
    }


def write_umi(
    path: Path,
    lengths: tuple[int, ...] = LENGTHS,
    *,
    robots: int = 1,
    size: int = SIZE,
) -> Path:
    """A folder as UMI's own script writes it: JPEG-XL frames, low-dimensional arrays unpacked."""
    codecs = pytest.importorskip("imagecodecs.numcodecs")
    codecs.register_codecs()
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for robot in range(robots):
        frames = [picture(e, t, robot, size) for e, n in enumerate(lengths) for t in range(n)]
        array = group.create_array(
            f"data/camera{robot}_rgb",
            shape=(sum(lengths), size, size, 3),
            chunks=(1, size, size, 3),
            dtype="uint8",
            compressors=codecs.Jpegxl(level=99),
        )
        array[:] = np.stack(frames)
        hands = [poses(e, n, robot) for e, n in enumerate(lengths)]
        for name in hands[0]:
            values = np.concatenate([hand[name] for hand in hands])
            group.create_array(
                f"data/robot{robot}_{name}",
                data=values,
                chunks=(lengths[0], values.shape[1]),
                compressors=None,
                config={"write_empty_chunks": True},
            )
    group.create_array("meta/episode_ends", data=np.cumsum(lengths))
    return path


def zipped(folder: Path, top: str = "", *, leave_out: str = "") -> Path:
    """The folder as FOLDER.zip, its files below `top`."""
    target = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and name != leave_out:
                archive.write(file, f"{top}{name}")
    return target
