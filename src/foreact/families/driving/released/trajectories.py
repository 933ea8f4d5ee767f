"""Released trajectory pickles (`nuscenes_train_data_cleaned.pkl` and others) -> records."""

from __future__ import annotations

from pathlib import Path

from foreact.errors import UserError
from foreact.families.driving.data.trajectories import Record, Trajectories, read_trajectories
from foreact.released.pickles import read_pickle_bytes


def read_trajectory_pickle(path: str | Path) -> list[Record]:
    """The records (see `driving.data.trajectories`) of a pickle, read without running it.

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
    """One camera's trajectories from a released pickle (.pkl), or from JSON lines (any other).

    Args:
        path: the file.
        cameras: names of the camera, of which the first that the records have is taken.

    Raises:
        UserError: as `read_trajectory_pickle`, `read_trajectories` and `Trajectories.from_records`.
    """
    is_pickle = Path(path).suffix == ".pkl"
    records = read_trajectory_pickle(path) if is_pickle else list(read_trajectories(path))
    camera = next((name for name in cameras if records and name in records[0]), cameras[0])
    return Trajectories.from_records(records, camera, str(path))
