"""The released trajectory pickles
(`nuscenes_train_data_cleaned.pkl` and the like) -> trajectory
records.
"""

from __future__ import annotations

from pathlib import Path

from foreact.errors import UserError
from foreact.families.driving.data.trajectories import Record, Trajectories, read_trajectories
from foreact.released.pickles import read_pickle_bytes


def read_trajectory_pickle(path: str | Path) -> list[Record]:
    """The records of a pickle, read without running it; see `driving.data.trajectories` for their
    keys.

    Raises:
        UserError: no such file, a damaged one, one that asks for more than plain values and arrays,
            or no list of records.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"The trajectory file {path} cannot be read ({error.strerror}).") from None
    records = read_pickle_bytes(data, str(path))
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(
            f"{path} should hold a list of one dict per frame, found {type(records).__name__}."
        )
    return records


def open_trajectories(path: str | Path, *cameras: str) -> Trajectories:
    """The trajectories of one camera from a released pickle (.pkl) or from JSON lines (anything
    else).

    Args:
        path: the file.
        cameras: names of the camera, of which the first that the records have is taken.

    Raises:
        UserError: as `read_trajectory_pickle`, `read_trajectories` and `Trajectories.from_records`.
    """
    records = (
        read_trajectory_pickle(path)
        if Path(path).suffix == ".pkl"
        else list(read_trajectories(path))
    )
    camera = next((name for name in cameras if records and name in records[0]), cameras[0])
    return Trajectories.from_records(records, camera, str(path))
