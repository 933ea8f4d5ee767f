"""meta/episodes and meta/tasks.parquet: where each episode lies, and what is to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foreact.data.formats.lerobot.info import Feature, Info
from foreact.data.formats.lerobot.tables import RowFiles, numbers, open_parquet, read_columns
from foreact.errors import UserError
from foreact.files import listed

TASKS = Path("meta", "tasks.parquet")
TASK_COLUMNS = ("task", "__index_level_0__")
"""Names under which the texts of the tasks are found."""
AGAIN = "record, convert or copy the set again"


@dataclass(frozen=True)
class VideoPlaces:
    """Where the pictures of one camera lie.

    Attributes:
        files: each file once.
        file_of: int64 (E,) number in `files` of each episode.
        start: float64 (E,) seconds on the clock of its file, of its first picture.
    """

    files: Sequence[Path]
    file_of: np.ndarray
    start: np.ndarray


@dataclass(frozen=True)
class Episodes:
    """The episodes of a set, by number.

    Attributes:
        starts, lengths: int64 (E,) first row and rows.
        data_files: that hold the rows, in their order.
        videos: name of the camera in the set -> places.
    """

    starts: np.ndarray
    lengths: np.ndarray
    data_files: Sequence[Path]
    videos: Mapping[str, VideoPlaces]

    def __len__(self) -> int:
        return len(self.lengths)


def read_episodes(info: Info, cameras: Sequence[Feature]) -> Episodes:
    """Read all files of meta/episodes.

    Args:
        info: of the set.
        cameras: whose videos to find.

    Raises:
        UserError: one is missing or damaged, an episode is missing or there twice, or its rows do
            not follow those of the episode before.
    """
    folder = info.root / "meta" / "episodes"
    files = listed(folder, "*/*", endings=[".parquet"])
    if not files:
        raise UserError(f"{folder} holds no parquet file; {AGAIN}.")
    names = ["episode_index", "dataset_from_index", "dataset_to_index"]
    names += ["data/chunk_index", "data/file_index"]
    parts = ("chunk_index", "file_index", "from_timestamp")
    for camera in cameras:
        names += [f"videos/{camera.key}/{part}" for part in parts]
    columns = {name: [] for name in names}
    for file in files:
        table = read_columns(file, names)
        for name in names:
            column = numbers(table[name], 1, f"The column '{name}' of {file}")
            columns[name].append(column[:, 0])
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    order = np.argsort(whole["episode_index"], kind="stable")
    whole = {name: values[order] for name, values in whole.items()}
    starts, ends = whole["dataset_from_index"], whole["dataset_to_index"]
    _require_consecutive(folder, whole["episode_index"], starts, ends)
    places = _places(whole, "data")
    return Episodes(
        starts.astype(np.int64),
        (ends - starts).astype(np.int64),
        [info.data_file(*place) for place in sorted(set(places))],
        {camera.key: _video_places(info, camera, whole) for camera in cameras},
    )


def _require_consecutive(
    folder: Path, index: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> None:
    if not np.array_equal(index, np.arange(len(index))) or len(index) == 0:
        lacking = np.setdiff1d(np.arange(len(index)), index)
        twice = index[1:][np.diff(index) == 0]
        if len(twice):
            which = f"episode {twice[0]} is there more than once"
        else:
            which = f"episode {lacking[0]} is missing" if len(lacking) else "there is none"
        raise UserError(f"{folder} should list episodes 0, 1, ... once each, {which}; {AGAIN}.")
    wrong = np.flatnonzero((starts != np.append(0, ends[:-1])) | (ends <= starts))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{folder} says that episode {first} has the rows {starts[first]}..{ends[first]}, "
            f"which do not follow those of the episode before; {AGAIN}."
        )


def _places(whole: Mapping[str, np.ndarray], head: str) -> list[tuple[int, int]]:
    """Chunk and file of every episode."""
    chunks, files = whole[f"{head}/chunk_index"], whole[f"{head}/file_index"]
    return [(int(c), int(f)) for c, f in zip(chunks, files, strict=True)]


def _video_places(info: Info, camera: Feature, whole: Mapping[str, np.ndarray]) -> VideoPlaces:
    places = _places(whole, f"videos/{camera.key}")
    unique = sorted(set(places))
    files = [info.video_file(camera.key, *place) for place in unique]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(
            f"{missing[0]} is missing ({len(missing)} of the {len(files)} videos of "
            f"'{camera.key}'); copy or download the set again."
        )
    start = whole[f"videos/{camera.key}/from_timestamp"].astype(np.float64)
    if len(wrong := np.flatnonzero(~np.isfinite(start))):
        raise UserError(
            f"The videos of '{camera.key}' in {info.root} have a from_timestamp of "
            f"{start[wrong[0]]} for episode {wrong[0]}; {AGAIN}."
        )
    numbers_ = {place: number for number, place in enumerate(unique)}
    return VideoPlaces(
        files,
        np.array([numbers_[place] for place in places], np.int64),
        start,
    )


def require_same_rows(episodes: Episodes, rows: RowFiles, folder: Path) -> None:
    """Compare the ranges of the episodes with the rows that are there.

    Raises:
        UserError: they disagree.
    """
    total = int(episodes.lengths.sum())
    if len(rows) != total:
        raise UserError(
            f"The episodes of {folder} have {total} rows and its {len(rows.files)} data files "
            f"{len(rows)}; {AGAIN}."
        )
    found = rows.whole("episode_index", [1])[:, 0]
    expected = np.repeat(np.arange(len(episodes)), episodes.lengths)
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"Row {row} of the data files of {folder} belongs to episode {found[row]}, "
            f"meta/episodes says {expected[row]}; {AGAIN}."
        )


def read_tasks(info: Info) -> list[str]:
    """The texts of the tasks by number; none where there is no meta/tasks.parquet.

    Raises:
        UserError: it is damaged, has no texts, or its rows are not in the order of their numbers.
    """
    file = info.root / TASKS
    if not file.is_file():
        return []
    with open_parquet(file) as opened:
        names = [name for name in opened.schema_arrow.names if name in TASK_COLUMNS]
    if not names:
        raise UserError(f"{file} has no column 'task' of texts; {AGAIN}.")
    table = read_columns(file, ["task_index", names[0]])
    index = numbers(table["task_index"], 1, f"The column 'task_index' of {file}")[:, 0]
    if not np.array_equal(index, np.arange(len(index))):
        raise UserError(
            f"The rows of {file} should have the numbers 0, 1, ... in order, found "
            f"{index[:8].tolist()}: readers would disagree on the texts; write it in order."
        )
    texts = table[names[0]].to_pylist()
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{file} should hold texts, found {texts[:3]!r}; {AGAIN}.")
    return texts


def orphans(info: Info, episodes: Episodes) -> list[Path]:
    """Data and video files of the set that no episode names."""
    named = {*episodes.data_files}
    for places in episodes.videos.values():
        named |= {*places.files}
    found = listed(info.root / "data", "**/*", endings=[".parquet"])
    found += [
        file
        for camera in episodes.videos
        for file in listed(info.root / "videos" / camera, "**/*", endings=[".mp4"])
    ]
    return [file for file in found if file not in named]
