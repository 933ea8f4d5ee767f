"""nuScenes as it is downloaded -> trajectory records, without its devkit.

Read are scene (name, description), sample (scene_token), sample_data (sample_token, ego_pose_token,
calibrated_sensor_token, filename, timestamp, is_key_frame), ego_pose, calibrated_sensor and sensor
(channel). Which scenes are for training is not in the tables: the caller gives their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foreact.data.formats.importing import Account
from foreact.errors import UserError, decoding
from foreact.families.driving.data.trajectories import Record
from foreact.files import listed, parse_json, read_text

RATE_HZ = 2.0
"""Rate of the key frames."""


def find_version(root: Path) -> str:
    """The one folder of tables below `root`, such as v1.0-trainval.

    Raises:
        UserError: there is none, or several.
    """
    versions = [path.name for path in listed(root, "v1.0-*") if path.is_dir()]
    if len(versions) != 1:
        raise UserError(
            f"{root} should hold one folder of tables v1.0-*, found {versions}; name the version."
        )
    return versions[0]


def nuscenes_records(
    root: str | Path,
    *,
    version: str | None = None,
    camera: str = "CAM_FRONT",
    scenes: Sequence[str] | None = None,
    account: Account | None = None,
) -> list[Record]:
    """One record (see `driving.data.trajectories`) per key frame of a camera, with calibration.

    Args:
        root: holds the tables' folder and samples/.
        version: folder of the tables; by default the only one.
        camera: channel.
        scenes: names of the scenes to take; by default all.
        account: counts the scenes as episodes, and the key frames as images; and what is left out:
            scenes without a key frame, and key frames of no scene.

    Raises:
        UserError: tables are missing or damaged, or a scene or camera is not in them.
    """
    root = Path(root)
    folder = root / (version or find_version(root))
    with decoding(f"The tables of {folder} cannot be joined", "unpack them again"):
        return _records(folder, camera, scenes, account or Account())


def _records(
    folder: Path, camera: str, scenes: Sequence[str] | None, account: Account
) -> list[Record]:
    scene_rows = _table(folder, "scene", "token", "name", "description")
    scene_tokens = {row["token"] for row in scene_rows}
    if scenes is not None:
        chosen, names = set(scenes), {row["name"] for row in scene_rows}
        if missing := sorted(chosen - names):
            raise UserError(
                f"{folder} has no scene '{missing[0]}' ({len(missing)} of "
                f"{len(chosen)} are missing)."
            )
        scene_rows = [row for row in scene_rows if row["name"] in chosen]
    scene_by_token = {row["token"]: row for row in scene_rows}
    samples = _table(folder, "sample", "token", "scene_token")
    sample_tokens = {row["token"] for row in samples if row["scene_token"] in scene_tokens}
    scene_of = {  # token of a sample -> its scene
        row["token"]: scene_by_token[row["scene_token"]]
        for row in samples
        if row["scene_token"] in scene_by_token
    }
    sensors = _table(folder, "sensor", "token", "channel")
    channels = {row["token"]: row["channel"] for row in sensors}
    fields = ("token", "sensor_token", "translation", "rotation")
    calibrations = {
        row["token"]: row
        for row in _table(folder, "calibrated_sensor", *fields)
        if channels.get(row["sensor_token"]) == camera
    }
    fields = (
        "sample_token",
        "ego_pose_token",
        "calibrated_sensor_token",
        "filename",
        "timestamp",
        "is_key_frame",
    )
    key_frames = [
        row
        for row in _table(folder, "sample_data", *fields)
        if row["is_key_frame"] and row["calibrated_sensor_token"] in calibrations
    ]
    frames = [row for row in key_frames if row["sample_token"] in scene_of]
    lost = [row["filename"] for row in key_frames if row["sample_token"] not in sample_tokens]
    account.find("episodes", len(scene_rows))
    account.find("images", len(frames) + len(lost))
    account.leave_out("images", len(lost), "of a sample or scene that is in no table", *lost)
    seen = {scene_of[row["sample_token"]]["token"] for row in frames}
    empty = [row["name"] for row in scene_rows if row["token"] not in seen]
    account.leave_out("episodes", len(empty), f"without a key frame of camera {camera}", *empty)
    if not frames:
        raise UserError(
            f"{folder} has no key frame of camera '{camera}'; its sensors are "
            f"{sorted(channels.values())}."
        )
    pose_tokens = {row["ego_pose_token"] for row in frames}
    poses = {
        row["token"]: row
        for row in _table(folder, "ego_pose", "token", "translation", "rotation")
        if row["token"] in pose_tokens
    }
    if missing := pose_tokens - set(poses):
        raise UserError(
            f"{len(missing)} ego poses that {folder / 'sample_data.json'} names are not "
            "in ego_pose.json."
        )
    return [
        {
            "scene": {key: scene_of[row["sample_token"]][key] for key in ("name", "description")},
            camera: {
                "file_path": row["filename"],
                "timestamp": row["timestamp"],
                "ego_to_world_tran": poses[row["ego_pose_token"]]["translation"],
                "ego_to_world_rot": poses[row["ego_pose_token"]]["rotation"],
                "sensor_to_ego_tran": calibrations[row["calibrated_sensor_token"]]["translation"],
                "sensor_to_ego_rot": calibrations[row["calibrated_sensor_token"]]["rotation"],
                "intrinsic": calibrations[row["calibrated_sensor_token"]].get(
                    "camera_intrinsic", []
                ),
            },
        }
        for row in frames
    ]


def _table(folder: Path, name: str, *fields: str) -> list[dict[str, Any]]:
    path = folder / f"{name}.json"
    if not path.is_file():
        raise UserError(
            f"There is no table {path}; give the folder that nuScenes was unpacked into."
        )
    with decoding(f"The table {path} cannot be read", "unpack it again"):
        rows = parse_json(read_text(path))
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(f in row for f in fields) for row in rows
    ):
        raise UserError(f"The table {path} should be a list of rows with {', '.join(fields)}.")
    return rows
