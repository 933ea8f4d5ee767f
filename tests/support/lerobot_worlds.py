"""Small LeRobot sets, laid out by hand with pyarrow and PyAV, and ways to spoil them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from support.coded_pictures import encode, video

LENGTHS = (5, 7, 4, 6)
FPS = 10
TOP, WRIST = "observation.images.top", "observation.images.wrist"
CAMERAS = {TOP: (0, 0, 0, 0), WRIST: (0, 1, 1, 2)}
"""Camera -> number of the video file of each episode."""
DATA_FILES = (0, 0, 1, 1)
TASKS = ("push the block", "lift it")
TASK_OF = (0, 1, 1, 0)

Table = dict[str, Any]


def file_name(number: int) -> str:
    return f"chunk-{number // 1000:03d}/file-{number % 1000:03d}"


def make_set(
    root: Path,
    *,
    cameras: Mapping[str, Sequence[int]] = CAMERAS,
    data_files: Sequence[int] = DATA_FILES,
    spare: int = 0,
    fps: float = FPS,
    columns: Mapping[str, tuple[dict[str, Any], Any]] | None = None,
) -> Path:
    """Write a set whose pictures say which episode, frame and camera they are.

    Args:
        root: its folder.
        cameras: as `CAMERAS`.
        data_files: number of the data file of each episode.
        spare: pictures of a discarded take behind every episode, in every video.
        fps: steps per second.
        columns: further features: name -> (entry of info.json, column of all rows).
    """
    total = sum(LENGTHS)
    starts = np.cumsum([0, *LENGTHS[:-1]])
    episode_of = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    step = np.arange(total) - starts[episode_of]
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
        "action": {"dtype": "float32", "shape": [3], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    table = {
        "observation.state": vectors(state_of(total)),
        "action": vectors(action_of(total)),
        "timestamp": pa.array((step / fps).astype(np.float32)),
        "frame_index": pa.array(step),
        "episode_index": pa.array(episode_of),
        "index": pa.array(np.arange(total)),
        "task_index": pa.array(np.array(TASK_OF)[episode_of]),
    }
    for name, (entry, values) in (columns or {}).items():
        features[name], table[name] = entry, values
    _write_rows(root, pa.table(table), data_files)
    episodes = {
        "episode_index": np.arange(len(LENGTHS)),
        "length": np.array(LENGTHS),
        "dataset_from_index": starts,
        "dataset_to_index": starts + LENGTHS,
        "data/chunk_index": np.array(data_files) // 1000,
        "data/file_index": np.array(data_files) % 1000,
    }
    for number, (camera, files) in enumerate(cameras.items()):
        episodes |= _write_videos(root, camera, number, files, spare, int(fps))
        features[camera] = {
            "dtype": "video",
            "shape": [32, 48, 3],
            "names": ["height", "width", "channels"],
            "info": {"video.fps": int(fps), "video.is_depth_map": False},
        }
    folder = root / "meta" / "episodes" / "chunk-000"
    folder.mkdir(parents=True)
    whole = pa.table({name: pa.array(values) for name, values in episodes.items()})
    pq.write_table(whole.slice(0, 3), folder / "file-000.parquet")
    pq.write_table(whole.slice(3), folder / "file-001.parquet")
    write_tasks(root, {"task_index": [0, 1], "task": list(TASKS)})
    info = {
        "codebase_version": "v3.0",
        "fps": fps,
        "features": features,
        "total_episodes": len(LENGTHS),
        "total_frames": total,
        "total_tasks": len(TASKS),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "something_new": [1],
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return root


def state_of(rows: int) -> np.ndarray:
    """float32 (N, 2)."""
    return np.stack([np.arange(rows), -np.arange(rows) / 4], 1).astype(np.float32)


def action_of(rows: int) -> np.ndarray:
    """float32 (N, 3)."""
    return (np.arange(rows)[:, None] + np.array([0.25, 100, -50])).astype(np.float32)


def vectors(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def write_tasks(root: Path, columns: Table) -> None:
    pq.write_table(pa.table(columns), root / "meta" / "tasks.parquet")


def edit_info(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = root / "meta" / "info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


def edit_table(file: Path, **columns: Callable[[list[Any]], Any] | None) -> None:
    """Replace columns of a parquet file by functions of their values; None drops one."""
    table = pq.read_table(file)
    for name, change in columns.items():
        name = name.replace("__", "/").replace("observation_", "observation.")
        place = table.schema.get_field_index(name)
        if change is None:
            table = table.remove_column(place)
        else:
            table = table.set_column(place, name, pa.array(change(table[name].to_pylist())))
    pq.write_table(table, file)


def episodes_file(root: Path, number: int = 0) -> Path:
    return root / "meta" / "episodes" / f"{file_name(number)}.parquet"


def data_file(root: Path, number: int = 0) -> Path:
    return root / "data" / f"{file_name(number)}.parquet"


def video_file(root: Path, camera: str = TOP, number: int = 0) -> Path:
    return root / "videos" / camera / f"{file_name(number)}.mp4"


def _write_rows(root: Path, table: pa.Table, data_files: Sequence[int]) -> None:
    starts = np.cumsum([0, *LENGTHS])
    for number in sorted(set(data_files)):
        file = data_file(root, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(file, table.schema) as writer:
            for episode in np.flatnonzero(np.array(data_files) == number):
                writer.write_table(table.slice(starts[episode], LENGTHS[episode]))


def _write_videos(
    root: Path, camera: str, number: int, files: Sequence[int], spare: int, fps: int
) -> dict[str, np.ndarray]:
    begins = np.zeros(len(LENGTHS))
    for file in sorted(set(files)):
        frames = []
        for episode in np.flatnonzero(np.array(files) == file).tolist():
            begins[episode] = sum(map(len, frames)) / fps
            frames.append(video(episode, LENGTHS[episode], number))
            frames.append(video(15, spare, number)[:spare] if spare else frames[-1][:0])
        encode(video_file(root, camera, file), np.concatenate(frames), rate=fps)
    head = f"videos/{camera}"
    return {
        f"{head}/chunk_index": np.array(files) // 1000,
        f"{head}/file_index": np.array(files) % 1000,
        f"{head}/from_timestamp": begins,
        f"{head}/to_timestamp": begins + (np.array(LENGTHS) + spare) / fps,
    }
