"""Any store as a LeRobotDataset v3.0."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreact.data.formats.lerobot.features import (
    camera_key,
    plain_rate,
    state_key,
    written_features,
)
from foreact.data.formats.lerobot.info import (
    ACTION,
    BOOKKEEPING,
    DATA_PATH,
    INFO,
    REWARD,
    VIDEO_PATH,
)
from foreact.data.formats.lerobot.row_writer import RowWriter, column, write_tasks
from foreact.data.formats.lerobot.spec import OWN_ENTRY
from foreact.data.formats.lerobot.stats import Colours, Stats, number_stats
from foreact.data.formats.lerobot.tables import parquet
from foreact.data.formats.lerobot.video_writer import Codec, VideoPlace, VideoWriter
from foreact.data.stores.episodes import EpisodeStore
from foreact.errors import UserError, decoding, in_short, room_or
from foreact.files import write_json
from foreact.progress import Progress
from foreact.types import StreamSpec

FILES_PER_FOLDER = 1000
MEGABYTE = 2**20
EPISODE_ROWS = 100
"""Episodes of a row group of meta/episodes."""


@dataclass(frozen=True)
class Written:
    """What an export wrote."""

    episodes: int
    steps: int
    tasks: int


def export_lerobot(
    store: EpisodeStore,
    out: str | Path,
    *,
    codec: Codec = "h264",
    task_text: str | None = None,
    data_mb: int = 100,
    video_mb: int = 200,
    robot: str | None = None,
    progress: bool = True,
) -> Written:
    """Write a store as a LeRobotDataset v3.0, which appears when it is whole.

    Cameras become videos "observation.images.NAME", states "observation.NAME", rewards
    "next.reward". Pictures lose a little to the codec, at every size; numbers are kept to the bit.

    Args:
        store: what to write.
        out: a new folder.
        codec: of the videos. H.264 keeps the full colours of pictures with an odd side; readers
            other than FFmpeg's may not know that.
        task_text: the instruction of a store that has none.
        data_mb, video_mb: size at which a new data or video file begins, as lerobot's defaults.
        robot: the set's `robot_type`.
        progress: show a bar.

    Raises:
        UserError: pyarrow is not installed, `out` exists, there is no instruction, or one too many,
            the store is damaged, or the disk refuses.
    """
    parquet()
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; choose another folder, or remove it.")
    if data_mb < 1 or video_mb < 1:
        raise UserError(f"Files need a size of 1 MB or more, found {data_mb} and {video_mb}.")
    draft = out.with_name(f".{out.name}.unfinished")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        limits = (data_mb, video_mb)
        written = _Export(store, draft, codec, _tasks(store, task_text), limits, robot).run(
            progress
        )
        os.replace(draft, out)
    except OSError as error:
        remedy = room_or(error, "see to its rights")
        raise UserError(f"{out} could not be written ({in_short(error)}); {remedy}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return written


def _tasks(store: EpisodeStore, task_text: str | None) -> tuple[list[str], np.ndarray]:
    """The instructions, and the number of each row's."""
    count = int(store.lengths.sum())
    if not store.spec.has_text:
        if not task_text:
            raise UserError(
                f"{store.label} has no instructions, and every row of a LeRobot set has one; say "
                'what is done with --task-text "...".'
            )
        return [task_text], np.zeros(count, np.int64)
    if task_text is not None:
        raise UserError(f"{store.label} has instructions of its own; leave out --task-text.")
    return store.instructions, store.instruction_of(np.arange(count)).astype(np.int64)


class _Export:
    def __init__(
        self,
        store: EpisodeStore,
        root: Path,
        codec: Codec,
        tasks: tuple[list[str], np.ndarray],
        limits: tuple[int, int],
        robot: str | None,
    ) -> None:
        self.store, self.root, self.robot = store, root, robot
        self.codec: Codec = codec
        self.texts, self.task_of = tasks
        self.data_mb, self.video_mb = limits
        self.spec: StreamSpec = store.spec
        self.cameras = {name: camera_key(name) for name in self.spec.cameras}
        self.states = {name: state_key(name) for name in self.spec.state}
        keys = [*self.cameras.values(), *self.states.values(), ACTION, REWARD, *BOOKKEEPING]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise UserError(f"Two streams of {store.label} would be called '{twice[0]}'.")
        self.colours = {key: Colours() for key in self.cameras.values()}
        self.parts: dict[str, list[np.ndarray]] = {}

    def run(self, progress: bool) -> Written:
        """Write everything; info.json comes last."""
        with ExitStack() as stack:
            rows = stack.enter_context(RowWriter(self._namer(DATA_PATH), self.data_mb * MEGABYTE))
            videos = {
                key: stack.enter_context(
                    VideoWriter(
                        self._namer(VIDEO_PATH, key),
                        self.spec.cameras[name],
                        self.spec.fps,
                        self.codec,
                        self.video_mb * MEGABYTE,
                    )
                )
                for name, key in self.cameras.items()
            }
            numbers = range(len(self.store))
            episodes = [
                self._episode(number, rows, videos)
                for number in Progress(numbers, desc="export", unit="episode", disable=not progress)
            ]
            for video in videos.values():
                video.finish()
        with decoding(f"The files of {self.root} could not be written", "make room"):
            self._write_episodes(episodes)
            write_tasks(self.root / "meta" / "tasks.parquet", self.texts)
        stats = {key: number_stats(np.concatenate(parts)) for key, parts in self.parts.items()}
        stats |= {key: colours.stats() for key, colours in self.colours.items()}
        write_json(self.root / "meta" / "stats.json", stats)
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.robot,
            "total_episodes": len(self.store),
            "total_frames": int(self.store.lengths.sum()),
            "total_tasks": len(self.texts),
            "chunks_size": FILES_PER_FOLDER,
            "data_files_size_in_mb": self.data_mb,
            "video_files_size_in_mb": self.video_mb,
            "fps": plain_rate(self.spec.fps),
            "splits": {"train": f"0:{len(self.store)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.cameras else None,
            "features": written_features(
                self.spec, self.codec, {key: video.pix_fmt for key, video in videos.items()}
            ),
            OWN_ENTRY: {"action": self.spec.to_json()["action"]},
        }
        write_json(self.root / INFO, info)
        return Written(len(self.store), int(self.store.lengths.sum()), len(self.texts))

    def _namer(self, template: str, key: str = "") -> Callable[[int], Path]:
        def name(number: int) -> Path:
            chunk, file = divmod(max(0, number), FILES_PER_FOLDER)
            return self.root / template.format(chunk_index=chunk, file_index=file, video_key=key)

        return name

    def _episode(
        self, number: int, rows: RowWriter, videos: dict[str, VideoWriter]
    ) -> dict[str, Any]:
        """Write one episode; returns its row of meta/episodes."""
        import pyarrow as pa

        store, fps = self.store, self.spec.fps
        length, start = int(store.lengths[number]), int(store.starts[number])
        steps = store.read(number, 0, length, store.streams)
        columns = self._numbers(number, start, steps)
        stats: dict[str, Stats] = {key: number_stats(v) for key, v in columns.items()}
        for key, values in columns.items():
            self.parts.setdefault(key, []).append(values)
        file = rows.append(pa.table({key: column(values) for key, values in columns.items()}))
        tasks = np.unique(columns["task_index"]).tolist()
        entry: dict[str, Any] = {
            "episode_index": number,
            "tasks": [self.texts[task] for task in tasks],
            "length": length,
            "data/chunk_index": file // FILES_PER_FOLDER,
            "data/file_index": file % FILES_PER_FOLDER,
            "dataset_from_index": start,
            "dataset_to_index": start + length,
        }
        for name, key in self.cameras.items():
            place: VideoPlace = videos[key].append(steps[name])
            seen = Colours()
            seen.add(steps[name])
            self.colours[key].include(seen)
            stats[key] = seen.stats()
            entry |= {
                f"videos/{key}/chunk_index": place.file // FILES_PER_FOLDER,
                f"videos/{key}/file_index": place.file % FILES_PER_FOLDER,
                f"videos/{key}/from_timestamp": place.before / fps,
                f"videos/{key}/to_timestamp": (place.before + length) / fps,
            }
        for key, values in stats.items():
            entry |= {f"stats/{key}/{name}": value for name, value in values.items()}
        return entry | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}

    def _numbers(
        self, number: int, start: int, steps: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The columns of an episode: (T, D) each."""
        length = int(self.store.lengths[number])
        index = np.arange(length)[:, None]
        columns = {key: steps[name] for name, key in self.states.items()}
        if self.spec.action is not None:
            columns[ACTION] = steps["action"]
        if self.spec.has_reward:
            # Ours came with a row's frame, LeRobot's follows its action.
            columns[REWARD] = np.concatenate([steps["reward"][1:], np.zeros((1, 1), np.float32)])
        return columns | {
            "timestamp": (index / self.spec.fps).astype(np.float32),
            "frame_index": index,
            "episode_index": np.full_like(index, number),
            "index": start + index,
            "task_index": self.task_of[start : start + length, None],
        }

    def _write_episodes(self, episodes: list[dict[str, Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = self.root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        file.parent.mkdir(parents=True)
        table = pa.Table.from_pylist(episodes)
        pq.write_table(table, file, compression="snappy", row_group_size=EPISODE_ROWS)
