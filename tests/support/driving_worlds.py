"""Miniature driving data sets in the layouts of the real ones:
OpenDV, nuScenes, nuPlan, and stores with tokens.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from foreact.data.stores.derived import write_stream
from foreact.data.stores.writer import StoreWriter
from foreact.families.driving.data.drives import FRONT, driving_spec

START = 1_531_883_530_000_000
"""Microseconds of the first frame."""
FAR = np.array([664_430.0, 3_999_650.0, 606.0])
"""An origin in map coordinates, as in nuPlan: too far out for float32."""
SIZE = (18, 32)
"""Height and width of the stored frames, of the real ones' aspect ratio."""


def drive(
    steps: int, *, seed: int = 0, speed: float = 5.0, turn: float = 0.0, period: float = 0.5
) -> np.ndarray:
    """Poses float64 (N, 7) of a drive at `speed` m/s that turns left
    by `turn` rad/s, on slightly uneven ground.
    """
    rng = np.random.default_rng(seed)
    yaw = rng.uniform(-3, 3) + turn * period * np.arange(steps)
    step = speed * period * np.stack([np.cos(yaw), np.sin(yaw), np.zeros(steps)], axis=1)
    tilt = rng.normal(0, 0.01, (steps, 2))
    rotation = np.stack([np.cos(yaw / 2), *tilt.T, np.sin(yaw / 2)], axis=1)
    rotation /= np.linalg.norm(rotation, axis=1, keepdims=True)
    return np.concatenate([FAR + np.cumsum(step, axis=0) - step, rotation], axis=1)


def picture(level: int, *, scale: int = 5) -> np.ndarray:
    """uint8 (H, W, 3), `scale` times SIZE: a ramp whose brightness tells pictures apart."""
    height, width = SIZE[0] * scale, SIZE[1] * scale
    ramp = np.linspace(0, 60, width)[None, :, None] + np.linspace(0, 30, height)[:, None, None]
    return np.clip(ramp + level + np.array([0, 10, 20]), 0, 255).astype(np.uint8)


def write_nuscenes(
    root: Path,
    scenes: Mapping[str, np.ndarray],
    *,
    version: str = "v1.0-mini",
    period_us: int = 500_000,
) -> None:
    """nuScenes' tables and CAM_FRONT key frames; a sweep and a lidar frame lie between the key
    frames, to be ignored.

    Args:
        root: data set.
        scenes: name -> poses (N, 7).
        version: folder of the tables.
        period_us: from key frame to key frame.
    """
    tables: dict[str, list[dict]] = {
        name: [] for name in ("scene", "sample", "sample_data", "ego_pose")
    }
    tables["sensor"] = [
        {"token": f"s{c}", "channel": c, "modality": "x"} for c in ("CAM_FRONT", "CAM_BACK")
    ]
    tables["calibrated_sensor"] = [
        {
            "token": f"c{c['channel']}",
            "sensor_token": c["token"],
            "translation": [1.7, 0.0, 1.5],
            "rotation": [0.5, -0.5, 0.5, -0.5],
            "camera_intrinsic": [[1266.0, 0.0, 816.0], [0.0, 1266.0, 491.0], [0.0, 0.0, 1.0]],
        }
        for c in tables["sensor"]
    ]
    (root / "samples/CAM_FRONT").mkdir(parents=True, exist_ok=True)
    for number, (scene, poses) in enumerate(scenes.items()):
        tables["scene"].append(
            {"token": f"t{scene}", "name": scene, "description": "Parked cars", "log_token": "l"}
        )
        for i, pose in enumerate(poses):
            sample, time = f"{scene}-{i}", START + number * 10**9 + i * period_us
            tables["sample"].append(
                {"token": sample, "scene_token": f"t{scene}", "timestamp": time}
            )
            for camera, is_key, later in (
                ("CAM_FRONT", True, 0),
                ("CAM_FRONT", False, period_us // 6),
                ("CAM_BACK", True, 10),
            ):
                token = f"{sample}-{camera}-{later}"
                kind = "samples" if is_key else "sweeps"
                file = f"{kind}/{camera}/{scene}__{camera}__{time + later}.jpg"
                tables["sample_data"].append(
                    {
                        "token": token,
                        "sample_token": sample,
                        "ego_pose_token": token,
                        "calibrated_sensor_token": f"c{camera}",
                        "filename": file,
                        "timestamp": time + later,
                        "is_key_frame": is_key,
                    }
                )
                moved = pose[:3] + (later > 0)
                tables["ego_pose"].append(
                    {
                        "token": token,
                        "translation": moved.tolist(),
                        "rotation": pose[3:].tolist(),
                        "timestamp": time,
                    }
                )
                if is_key and camera == "CAM_FRONT":
                    Image.fromarray(picture(40 * number + 3 * i)).save(root / file, quality=95)
    (root / version).mkdir(exist_ok=True)
    for name, rows in tables.items():
        (root / version / f"{name}.json").write_text(
            json.dumps(rows[::-1])
        )  # nothing promises an order


def write_nuplan(
    databases: Path, images: Path, logs: Mapping[str, np.ndarray], *, period_us: int = 100_000
) -> None:
    """nuPlan's logs with two cameras, of which CAM_F0 has its images on disk.

    Args:
        databases: folder of the .db files.
        images: root of the image paths.
        logs: name -> poses (N, 7).
        period_us: from image to image.
    """
    databases.mkdir(parents=True, exist_ok=True)
    for number, (log, poses) in enumerate(logs.items()):
        (images / log / "CAM_F0").mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(databases / f"{log}.db")) as base, base:
            base.executescript(
                """
                CREATE TABLE ego_pose (token BLOB PRIMARY KEY, timestamp INTEGER,
                    x FLOAT, y FLOAT, z FLOAT, qw FLOAT, qx FLOAT, qy FLOAT, qz FLOAT,
                    log_token BLOB);
                CREATE TABLE camera (token BLOB PRIMARY KEY, log_token BLOB,
                    channel VARCHAR(64), intrinsic BLOB);
                CREATE TABLE image (token BLOB PRIMARY KEY, next_token BLOB, prev_token BLOB,
                    ego_pose_token BLOB, camera_token BLOB, filename_jpg VARCHAR(128),
                    timestamp INTEGER);
                """
            )
            for camera in (b"CAM_F0", b"CAM_L0"):
                base.execute(
                    "INSERT INTO camera VALUES (?, ?, ?, ?)",
                    (camera, b"log", camera.decode(), b"\x80pickle"),
                )
            for i in range(len(poses))[::-1]:
                time, token = START + number * 10**9 + i * period_us, i.to_bytes(8, "big")
                base.execute(
                    f"INSERT INTO ego_pose VALUES ({', '.join('?' * 10)})",
                    (token, time, *poses[i].tolist(), b"log"),
                )
                for camera in (b"CAM_F0", b"CAM_L0"):
                    file = f"{log}/{camera.decode()}/{i:05d}.jpg"
                    row = (camera + token, None, None, token, camera, file, time)
                    base.execute("INSERT INTO image VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                Image.fromarray(picture((40 * number + i) % 150)).save(
                    images / log / f"CAM_F0/{i:05d}.jpg", quality=95
                )


def write_clock(path: Path, seconds: float, fps: int) -> None:
    """An H.264 film of 160x90 with a key frame every half second,
    whose brightness grows by 20 per second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"crf": "10", "g": str(fps // 2), "bf": "2"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
        for i in range(round(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(picture(round(20 * i / fps)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_opendv(
    root: Path,
    videos: Sequence[tuple[str, str, float, float]],
    *,
    seconds: float = 8.0,
    fps: int = 30,
) -> None:
    """OpenDV's table and videos.

    Args:
        root: data set.
        videos: (id, split, discard_start, discard_end) of each.
        seconds, fps: of each.
    """
    lines = ["video_id\tsplit\tdiscard_start\tdiscard_end\ttitle"]
    for i, (name, split, start, end) in enumerate(videos):
        write_clock(root / f"videos/channel-{i % 2}/{name}.mp4", seconds, fps)
        lines.append(f'{name}\t{split}\t{start}\t{end}\tA drive, "by night"')
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def write_token_store(
    path: Path,
    poses: Sequence[np.ndarray],
    *,
    rate_hz: float = 10.0,
    grid: tuple[int, int] = (2, 3),
    vocab: int = 50,
    gaps: Mapping[int, int] | None = None,
) -> list[np.ndarray]:
    """A native driving store with pixels, tokens, poses and times.

    Args:
        path: store.
        poses: (N, 7) of each drive.
        rate_hz: raw rate.
        grid, vocab: of the tokens.
        gaps: drive -> frame before which two seconds are missing.

    Returns:
        Token grids uint16 (N, h, w) of each drive.
    """
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, vocab, (len(p), *grid)).astype(np.uint16) for p in poses]
    with StoreWriter(path, driving_spec(rate_hz, (4, 6))) as writer:
        for i, p in enumerate(poses):
            writer.append({FRONT: np.full((len(p), 4, 6, 3), i, np.uint8)}, name=f"drive-{i}")
    times = [START + np.rint(np.arange(len(p)) * 1e6 / rate_hz).astype(np.int64) for p in poses]
    for number, frame in (gaps or {}).items():
        times[number][frame:] += 2_000_000
    for name, values in (("tokens_front", tokens), ("ego_pose", poses), ("timestamp", times)):
        write_stream(path, name, np.concatenate(values), attrs={})
    return tokens


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a training checkpoint: weights and moments."""
    known = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in known.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    state_dict_loader.load(tensors, checkpoint_id=checkpoint, no_dist=True)
    return tensors
