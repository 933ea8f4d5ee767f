"""nuPlan as it is downloaded -> trajectory records: one SQLite file per log, camera images beside.

Read are image (filename_jpg, timestamp, ego_pose_token, camera_token), camera (token, channel) and
ego_pose (token, x, y, z, qw, qx, qy, qz). One record per image of the camera; a whole log is one
scene, since a drive goes on across the 20 s scenes of the data base. Calibrations are pickles in
that data base and stay unread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from foreact.data.formats.importing import Account
from foreact.errors import UserError, decoding
from foreact.families.driving.data.trajectories import Record
from foreact.files import listed

RATE_HZ = 10.0
"""Rate of the cameras."""

QUERY = """
SELECT image.filename_jpg, image.timestamp, ego_pose.x, ego_pose.y, ego_pose.z,
       ego_pose.qw, ego_pose.qx, ego_pose.qy, ego_pose.qz
FROM image
JOIN camera ON camera.token = image.camera_token
LEFT JOIN ego_pose ON ego_pose.token = image.ego_pose_token
WHERE camera.channel = ?
ORDER BY image.timestamp
"""


def nuplan_logs(databases: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """The logs' files below a folder, by name; or those with the given names (without .db).

    Raises:
        UserError: there is none, two have one name, or a name is missing.
    """
    logs: dict[str, Path] = {}
    for path in sorted(listed(Path(databases), "**/*", endings=[".db"]), key=lambda p: p.stem):
        if path.stem in logs:
            raise UserError(
                f"{databases} holds the log '{path.stem}' twice: {logs[path.stem]} and {path}."
            )
        logs[path.stem] = path
    if not logs:
        raise UserError(
            f"There is no .db file below {databases}; give the folder of nuPlan's logs."
        )
    if names is None:
        return list(logs.values())
    if missing := sorted(set(names) - set(logs)):
        raise UserError(
            f"{databases} has no log '{missing[0]}' ({len(missing)} of {len(names)} are missing)."
        )
    return [logs[name] for name in sorted(set(names))]


def nuplan_records(
    logs: Iterable[Path], *, camera: str = "CAM_F0", account: Account
) -> Iterator[Record]:
    """One record (see `driving.data.trajectories`) per image of a camera, log after log.

    Args:
        logs: their data bases.
        camera: channel.
        account: counts logs as episodes, and images; and what is left out: images without a pose,
            and logs without an image of the camera.

    Raises:
        UserError: a file is no data base of nuPlan, or damaged.
    """
    for log in logs:
        rows = _rows(log, camera)
        records = [_record(log, camera, row) for row in rows if None not in row[2:]]
        account.find("episodes")
        account.find("images", len(rows))
        lost = [row[0] for row in rows if None in row[2:]]
        account.leave_out("images", len(lost), "without an ego pose", *lost)
        if not records:
            thing = "image with an ego pose" if rows else "image"
            account.leave_out("episodes", 1, f"without any {thing} of camera {camera}", log.stem)
        yield from records


def _rows(log: Path, camera: str) -> list[tuple[Any, ...]]:
    """Image path, time and the seven numbers of the pose, or Nones, of each image of a log."""
    with (
        decoding(f"{log} cannot be read as a log of nuPlan", "download it again"),
        closing(sqlite3.connect(f"{log.resolve().as_uri()}?mode=ro", uri=True)) as base,
    ):
        rows = base.execute(QUERY, (camera,)).fetchall()
        if wrong := [row for row in rows if not isinstance(row[0], str) or type(row[1]) is not int]:
            raise ValueError(f"an image has the path {wrong[0][0]!r} and the time {wrong[0][1]!r}")
        # SQLite lets any value into any column.
        if wrong := [n for row in rows for n in row[2:] if not isinstance(n, float | int | None)]:
            raise ValueError(f"an ego pose holds {wrong[0]!r}")
        return rows


def _record(log: Path, camera: str, row: tuple[Any, ...]) -> Record:
    file, timestamp, x, y, z, qw, qx, qy, qz = row
    return {
        "scene": {"name": log.stem, "description": ""},
        camera: {
            "file_path": file,
            "timestamp": timestamp,
            "ego_to_world_tran": [x, y, z],
            "ego_to_world_rot": [qw, qx, qy, qz],
        },
    }
