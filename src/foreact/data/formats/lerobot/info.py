"""meta/info.json: what a set says of itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreact.errors import UserError, decoding
from foreact.files import parse_json, read_text

INFO = Path("meta", "info.json")
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
ACTION, REWARD = "action", "next.reward"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CAMERA_PREFIX, STATE_PREFIX = "observation.images.", "observation."
NUMBERS = ("bool", "int", "uint", "float")
"""How the names of the types of numbers begin."""


@dataclass(frozen=True)
class Feature:
    """One feature of a set.

    Attributes:
        key: its name in the set.
        kind: "video", "image", "numbers" or "other".
        dtype: as the set says.
        shape: of a row; (H, W, C) or (C, H, W) for cameras.
        names: one per number of a row, where the set names them.
        is_depth: whether a camera holds depth.
    """

    key: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    is_depth: bool = False

    @property
    def dims(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Info:
    """What meta/info.json says; counts are not taken from it.

    Attributes:
        root: folder of the set.
        fps: steps per second.
        features: by name.
        raw: the whole file.
    """

    root: Path
    fps: float
    features: Mapping[str, Feature]
    raw: Mapping[str, Any]

    @property
    def file(self) -> Path:
        return self.root / INFO

    def data_file(self, chunk: int, number: int) -> Path:
        return self._path("data_path", DATA_PATH, chunk, number)

    def video_file(self, camera: str, chunk: int, number: int) -> Path:
        """A video file of the camera with that name in the set."""
        return self._path("video_path", VIDEO_PATH, chunk, number, camera)

    def streams(self) -> dict[str, Feature]:
        """Our name of each feature that is a camera or a state -> feature.

        Our names leave out "observation.images." and "observation.", unless two would be alike.
        """
        taken = [
            feature
            for key, feature in self.features.items()
            if key not in (*BOOKKEEPING, ACTION, REWARD)
            and feature.kind in ("video", "image", "numbers")
            and not feature.is_depth
        ]
        count = Counter(short_name(feature.key) for feature in taken)
        reserved = {*BOOKKEEPING, ACTION, "reward"}
        return {
            feature.key
            if count[name := short_name(feature.key)] > 1 or name in reserved
            else name: feature
            for feature in taken
        }

    def left_out(self) -> dict[str, str]:
        """Name in the set of each feature that is no stream -> why."""
        return {
            key: "of depth" if feature.is_depth else f"of dtype '{feature.dtype}'"
            for key, feature in self.features.items()
            if feature.is_depth or feature.kind == "other"
        }

    def _path(self, entry: str, usual: str, chunk: int, number: int, camera: str = "") -> Path:
        template = self.raw.get(entry) or usual
        with decoding(f"{entry} in {self.file} is no template of paths", f"write {usual}"):
            path = str(template).format(chunk_index=chunk, file_index=number, video_key=camera)
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise UserError(f"{entry} in {self.file} leads out of the set; write {usual}.")
        return self.root / path


def short_name(key: str) -> str:
    return key.removeprefix(CAMERA_PREFIX).removeprefix(STATE_PREFIX)


def is_lerobot(path: Path) -> bool:
    """Whether the path is a folder with a meta/info.json, or with the other half of its `meta`."""
    return (path / INFO).is_file() or (path / "meta" / "episodes").is_dir()


def read_info(root: Path) -> Info:
    """Read meta/info.json.

    Raises:
        UserError: it is missing or damaged, or of another version than 3.
    """
    file = root / INFO
    if not file.is_file():
        raise UserError(f"{root} is no LeRobot set: {file} is missing; copy the set again.")
    with decoding(f"{file} is damaged"):
        raw = parse_json(read_text(file))
        version = str(raw["codebase_version"])
    _require_version(root, version)
    with decoding(f"{file} is damaged"):
        fps = raw["fps"]
        if isinstance(fps, bool) or not 0 < float(fps) < math.inf:
            raise ValueError(f"fps is {fps!r}")
        features = {key: _feature(key, entry) for key, entry in raw["features"].items()}
    if missing := [key for key in BOOKKEEPING if key not in features]:
        raise UserError(
            f"{file} lacks the features {missing} that every LeRobot set has; copy or convert it "
            "again."
        )
    return Info(root, float(fps), features, raw)


def _require_version(root: Path, version: str) -> None:
    if version.startswith("v2."):
        raise UserError(
            f"{root} is a LeRobot set of {version}, and v3.0 is what is read; convert it with "
            "`python -m lerobot.scripts.convert_dataset_v21_to_v30` of lerobot (in lerobot 0.4: "
            "lerobot.datasets.v30.convert_dataset_v21_to_v30)."
        )
    if not version.startswith("v3."):
        raise UserError(
            f"{root} is a LeRobot set of the version '{version}', and v3.0 is what is read; write "
            "it again with a lerobot that makes v3.0."
        )


def _feature(key: str, raw: Mapping[str, Any]) -> Feature:
    dtype, shape = str(raw["dtype"]), tuple(int(n) for n in raw["shape"])
    if dtype in ("video", "image"):
        kind = dtype
    else:
        kind = "numbers" if dtype.startswith(NUMBERS) else "other"
    facts = [raw.get(name) or {} for name in ("info", "video_info")]
    is_depth = any(f.get("is_depth_map") or f.get("video.is_depth_map") for f in facts)
    names = tuple(_flat(raw.get("names"))) if kind == "numbers" else ()
    fits = len(names) == math.prod(shape) > 0
    return Feature(key, kind, dtype, shape, names if fits else None, is_depth)


def _flat(names: Any) -> Iterator[str]:
    """The texts in lists and in values of dicts, however deep, or the keys of {name: number}."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, Mapping) and all(type(n) is int for n in names.values()):
        yield from sorted(names, key=lambda name: names[name])
    elif isinstance(names, Mapping):
        for value in names.values():
            yield from _flat(value)
    elif isinstance(names, list):
        for value in names:
            yield from _flat(value)
