"""Ego trajectories: per frame of a camera its scene, file, time and ego pose, in JSON lines.

One record per frame, with the keys of the released nuScenes pickles:

    {"scene": {"name": ..., "description": ...},
     "CAM_FRONT": {"file_path": ..., "timestamp": ..., "ego_to_world_tran": [x, y, z],
                   "ego_to_world_rot": [w, x, y, z], ...}}

Paths are relative to the data set's root, times in microseconds, translations in metres.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreact.errors import UserError
from foreact.families.driving.data.ego import check_poses
from foreact.files import open_text

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Frames of one camera, scene after scene in the order of their names, by time within each.

    Attributes:
        label: where they come from, for messages.
        names: (E,) scenes.
        lengths, starts: int64 (E,), frames and first row of each scene.
        files: (N,) image paths relative to the data set's root.
        timestamps: int64 (N,) microseconds.
        poses: float64 (N, 7), see `foreact.families.driving.data.ego`.
    """

    label: str
    names: list[str]
    lengths: np.ndarray
    starts: np.ndarray
    files: list[str]
    timestamps: np.ndarray
    poses: np.ndarray

    @staticmethod
    def from_records(records: Iterable[Record], camera: str, label: str) -> Trajectories:
        """Sort the records of one camera; a list of the caller's stays as it is.

        Raises:
            UserError: no record, a missing or malformed entry, or a pose that is none.
        """
        rows = []
        for i, record in enumerate(records):
            try:
                frame = record[camera]
                pose = [
                    *map(float, frame["ego_to_world_tran"]),
                    *map(float, frame["ego_to_world_rot"]),
                ]
                scene, timestamp = str(record["scene"]["name"]), np.int64(frame["timestamp"])
                rows.append((scene, timestamp, str(frame["file_path"]), pose))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                keys = sorted(record) if isinstance(record, Mapping) else type(record).__name__
                raise UserError(
                    f"Record {i} of {label} has no usable entry for camera '{camera}' "
                    f"({type(error).__name__}: {error}); it has {keys}."
                ) from None
            if len(pose) != 7:
                raise UserError(
                    f"Record {i} of {label} should have 3 + 4 pose values, found {len(pose)}."
                )
        if not rows:
            raise UserError(f"{label} holds no frame of camera '{camera}'.")
        rows.sort(key=lambda row: row[:2])
        scenes = np.array([row[0] for row in rows], dtype=object)
        # A scene starts where the name differs from the row before.
        starts = np.flatnonzero(np.concatenate([[True], scenes[1:] != scenes[:-1]]))
        return Trajectories(
            label=label,
            names=[rows[start][0] for start in starts],
            lengths=np.diff(starts, append=len(rows)),
            starts=starts,
            files=[row[2] for row in rows],
            timestamps=np.array([row[1] for row in rows], np.int64),
            poses=check_poses(np.array([row[3] for row in rows]), label),
        )


def write_trajectories(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines; the file appears when it is whole.

    Raises:
        UserError: the disk refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_trajectories(path: str | Path) -> Iterator[Record]:
    """Records from JSON lines.

    Raises:
        UserError: no such file, or a line that is no record.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no trajectory file {path}; `foreact data import-nuscenes` writes one."
        )
    with open_text(path, errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise UserError(
                    f"Line {number} of {path} is not one JSON record; the file is cut short or of "
                    "another make."
                )
            yield record
