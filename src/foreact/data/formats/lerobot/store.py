"""A LeRobotDataset v3.0 as an episode store, without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foreact.data.formats.lerobot.check import check_set
from foreact.data.formats.lerobot.episodes import (
    Episodes,
    read_episodes,
    read_tasks,
    require_same_rows,
)
from foreact.data.formats.lerobot.info import ACTION, REWARD, Feature, Info, read_info
from foreact.data.formats.lerobot.readers import (
    ImageRows,
    InMemory,
    VideoRows,
    coded_pictures,
    decode_picture,
    snapped,
)
from foreact.data.formats.lerobot.spec import resolve_spec
from foreact.data.formats.lerobot.tables import RowFiles
from foreact.data.formats.mp4 import VideoFrames
from foreact.data.formats.mp4_index import look_at_video
from foreact.data.stores.episodes import EpisodeStore, Rows
from foreact.data.stores.findings import Finding
from foreact.data.windows.anchors import TIMESTAMP
from foreact.errors import UserError
from foreact.types import StreamSpec


def open_lerobot(path: str | Path, *, spec: StreamSpec | None = None) -> LeRobotStore:
    """Open a set lazily: episodes are checked against the rows, pictures and numbers are not read.

    Args:
        path: the folder that holds meta, data and videos.
        spec: what the streams mean, such as a task's; streams that it does not name are left out.
            By default all streams of the set.

    Raises:
        UserError: pyarrow is not installed; the set is of another version, lacks files, or
            contradicts itself or the spec.
    """
    return LeRobotStore(Path(path), spec)


def open_format(path: Path, spec: StreamSpec | None, *, memory_limit: int) -> LeRobotStore:
    """`open_lerobot` as a format's opener; `memory_limit` is unused: no pixels are held."""
    return open_lerobot(path, spec=spec)


class LeRobotStore(EpisodeStore):
    """See `open_lerobot`.

    Streams: cameras and states under their names in the set without "observation.images." and
    "observation."; "action"; "reward" where the set has "next.reward", moved to the frame that it
    came with; "timestamp", int64 (N, 1) microseconds since the start of the episode. Numbers are
    held in memory from their first use on, pictures are decoded when they are asked for.

    Attributes:
        path: folder of the set.
        spec: what the streams mean.
        native: whether the spec was read off the set.
        lengths, starts: int64 (E,) steps and first row of each episode.
        facts: what meta/info.json says.
        episodes: where the episodes lie.
        rows: the data files.
        tasks: the instructions by number, as the set has them.
        frames: what decodes the videos.
    """

    def __init__(self, path: Path, spec: StreamSpec | None) -> None:
        self.path, self._given = path, spec
        self.facts: Info = read_info(path)
        self.features: Mapping[str, Feature] = self.facts.streams()
        videos = [feature for feature in self.features.values() if feature.kind == "video"]
        self.episodes: Episodes = read_episodes(self.facts, videos)
        self.rows = RowFiles(self.episodes.data_files)
        require_same_rows(self.episodes, self.rows, path)
        self.lengths, self.starts = self.episodes.lengths, self.episodes.starts
        self.tasks = read_tasks(self.facts)
        self.frames = VideoFrames()
        wanted = self.features if spec is None else spec.cameras
        sizes = {
            name: self._size(feature)
            for name, feature in self.features.items()
            if feature.kind in ("video", "image") and name in wanted
        }
        self.native = spec is None
        self.spec = resolve_spec(self.facts, sizes, any(self.tasks), given=spec)
        self._readers: dict[str, Rows] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes that are spawned, not forked, open the set anew.
        return {"path": self.path, "spec": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["spec"])

    def reader(self, stream: str) -> Rows:
        """The reader of one stream; numbers are held in memory from the first use on."""
        if stream not in self._readers:
            self._readers[stream] = self._make_reader(stream)
        return self._readers[stream]

    def has(self, stream: str) -> bool:
        return stream in self.streams or stream == TIMESTAMP

    @property
    def info_names(self) -> list[str]:
        return ["text"] if self.spec.has_text else []

    def info(self, name: str) -> np.ndarray:
        """The instruction at the first step of each episode, "text"; see `instruction_of`."""
        if name not in self.info_names:
            return super().info(name)
        texts = np.array(self.instructions, object)
        return texts[self.instruction_of(self.starts)]

    @property
    def instructions(self) -> list[str]:
        """The instructions by number, as in the set."""
        return self.tasks if self.spec.has_text else super().instructions

    def instruction_of(self, rows: np.ndarray) -> np.ndarray:
        """Which of `instructions` each row follows, which may change within an episode."""
        if not self.spec.has_text:
            return super().instruction_of(rows)
        numbers = self.task_index[rows]
        if (wrong := (numbers < 0) | (numbers >= len(self.tasks))).any():
            raise UserError(
                f"{self.where(int(rows[wrong][0]))} is of task {numbers[wrong][0]}, and the tasks "
                f"are 0..{len(self.tasks) - 1}; record or convert the set again."
            )
        return numbers

    def findings(self) -> list[Finding]:
        """What every file and row of the set tells; videos are scanned, not decoded."""
        return check_set(self)

    @cached_property
    def task_index(self) -> np.ndarray:
        """int64 (N,) number of each row's task, as stored."""
        return self.rows.whole("task_index", [1], np.int64)[:, 0]

    @cached_property
    def seconds(self) -> np.ndarray:
        """float64 (N,) of each row since the start of its episode, by its time stamp."""
        stamps = self.rows.whole("timestamp", [1])[:, 0]
        return snapped(stamps, self.step_numbers, self.facts.fps)

    @property
    def step_numbers(self) -> np.ndarray:
        """int64 (N,) steps of each row since the start of its episode."""
        return np.arange(len(self.rows)) - np.repeat(self.starts, self.lengths)

    def _make_reader(self, stream: str) -> Rows:
        if stream == TIMESTAMP:
            return InMemory((self.seconds * 1e6).round().astype(np.int64)[:, None])
        if stream not in self.streams:
            raise UserError(f"{self.path} has no stream '{stream}'; it has {self.streams}.")
        if stream == "reward":
            return InMemory(self._rewards())
        feature = self.facts.features[ACTION] if stream == ACTION else self.features[stream]
        if feature.kind == "numbers":
            return InMemory(self.rows.whole(feature.key, feature.shape, np.float32))
        size = self.spec.cameras[stream]
        if feature.kind == "image":
            return ImageRows(self.rows, feature.key, size)
        return VideoRows(
            self.frames,
            self.episodes.videos[feature.key],
            self.starts,
            self.seconds,
            self.facts.fps,
            size,
        )

    def _rewards(self) -> np.ndarray:
        """float32 (N, 1): of the transition that led to a row's frame, 0 at the first step."""
        following = self.rows.whole(REWARD, [1], np.float32)
        rewards = np.concatenate([following[:1], following[:-1]])
        rewards[self.starts] = 0.0
        return rewards

    def _size(self, feature: Feature) -> tuple[int, int]:
        """Height and width of the first picture; what info.json says may be wrong."""
        if feature.kind == "video":
            return look_at_video(self.episodes.videos[feature.key].files[0]).size
        column, file = self.rows.group(0, feature.key)
        data = coded_pictures(column.slice(0, 1))[0]
        height, width = decode_picture(data, f"The picture '{feature.key}' of row 0", file).shape[
            :2
        ]
        return height, width
