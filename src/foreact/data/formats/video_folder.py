"""A folder of plain video files, opened as it is: every file is an episode without actions.

Frames are taken on a grid of equal steps in time, from a file's first frame on, by the times at
which the file shows them; so a file of a variable rate keeps its speed. Where it shows nothing new
for a while, the time stamps have a gap, and windows across it are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from foreact.data.formats.frames import resized
from foreact.data.formats.mp4 import VideoFrames
from foreact.data.formats.mp4_index import VideoFacts, VideoIndex, look_at_video
from foreact.data.formats.video import ENDINGS
from foreact.data.stores.episodes import EpisodeStore, Rows
from foreact.data.stores.findings import Finding
from foreact.data.windows.anchors import TIMESTAMP
from foreact.errors import UserError
from foreact.files import listed
from foreact.progress import Progress
from foreact.types import StreamSpec

CAMERA = "video"
LEFT_OUT = 0.2
"""Share of the files that may be left out."""
SLOWEST = 0.75
"""Share of the grid's rate below which a file has too few frames for it."""
STORES = ("zarr.json", ".zgroup", ".zattrs")
"""Files that make a folder a zarr store."""


def is_video_folder(path: Path) -> bool:
    """Whether the path is a folder with video files in it that is no store."""
    return (
        path.is_dir() and not any((path / name).exists() for name in STORES) and bool(_files(path))
    )


def open_video_folder(
    path: str | Path, *, spec: StreamSpec | None = None, may_leave_out: float = LEFT_OUT
) -> VideoFolderStore:
    """Open the videos of a folder; each is scanned for the times of its frames, not decoded.

    Hidden files are passed over, and folders within the folder. A file that cannot be read, has no
    moving pictures, is of high dynamic range or slower than the others is left out; `findings`
    tells of it.

    Args:
        path: the folder.
        spec: a task's: one camera "video", its rate, and its size, to which frames of the same
            aspect ratio are resized. By default the files' own size, which must be one, and their
            most common rate.
        may_leave_out: share of the files.

    Raises:
        UserError: there is no video, more files are left out than may be, or sizes differ.
    """
    return VideoFolderStore(Path(path), spec, may_leave_out)


def open_format(path: Path, spec: StreamSpec | None, *, memory_limit: int) -> VideoFolderStore:
    """`open_video_folder` as a format's opener; `memory_limit` is unused: no pixels are held."""
    return open_video_folder(path, spec=spec)


@dataclass(frozen=True)
class _Video:
    path: Path
    index: VideoIndex
    facts: VideoFacts
    rate: float

    def steps(self, fps: float) -> int:
        """Steps of the grid from the first frame to the last."""
        times = self.index.times
        return int(np.floor((times[-1] - times[0]) * fps + 0.5)) + 1

    def numbers(self, steps: np.ndarray, fps: float) -> np.ndarray:
        """The frame that is nearest to each step of the grid."""
        return self.index.nearest(self.index.times[0] + steps / fps)


class VideoFolderStore(EpisodeStore):
    """See `open_video_folder`.

    Streams: "video" uint8 (N, H, W, 3), and "timestamp" int64 (N, 1), microseconds since its file's
    first frame at which the frame of each step is shown.

    Attributes:
        path: the folder.
        spec: one camera.
        native: whether the spec was read off the files.
        lengths, starts: int64 (E,) steps and first row of each file, in the natural order of names.
        left_out: name of each file that is not read -> why.
    """

    def __init__(self, path: Path, spec: StreamSpec | None, may_leave_out: float) -> None:
        self.path, self._given, self._may_leave_out = path, spec, may_leave_out
        self.native, self.left_out = spec is None, {}
        frames = VideoFrames()
        files = _files(path)
        if not files:
            raise UserError(f"{path} holds no video file; name a folder of {', '.join(ENDINGS)}.")
        videos = []
        for file in Progress(files, desc="scan", unit="video"):
            try:
                facts, index = look_at_video(file), frames.index(file)
                if len(index) < 2:
                    raise UserError(f"{file} has a single frame; leave it out.")
                if facts.dynamic_range is not None:
                    raise UserError(
                        f"{file} is of high dynamic range ({facts.dynamic_range}) and would look "
                        "washed out; convert it to 8 bits (BT.709) first."
                    )
                videos.append(_Video(file, index, facts, usual_rate(index.times)))
            except UserError as error:
                self.left_out[file.name] = str(error)
        self._require_enough(files)
        fps = spec.fps if spec is not None else _most_common([video.rate for video in videos])
        for video in videos:
            if video.rate < SLOWEST * fps:
                self.left_out[video.path.name] = (
                    f"{video.path} has {video.rate:g} frames a second and {fps:g} are wanted; name "
                    "a task with a lower rate, or leave it out."
                )
        self._videos = [video for video in videos if video.path.name not in self.left_out]
        self._require_enough(files)
        size = _one_size(self._videos, spec)
        own = StreamSpec(cameras={CAMERA: size}, fps=fps)
        if spec is not None:
            own.require_equal(spec, f"The folder {path}", "the task")
        self.spec = own
        self.lengths = np.array([video.steps(fps) for video in self._videos], np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        frames.change = partial(_fitted, size=size)
        self._reader = _Frames(self._videos, frames, self.starts, fps, size)

    def reader(self, stream: str) -> Rows:
        if stream == CAMERA:
            return self._reader
        if stream == TIMESTAMP:
            return _Stamps(self._stamps())
        raise UserError(f"{self.path} has no stream '{stream}'; it has '{CAMERA}'.")

    def has(self, stream: str) -> bool:
        return stream in (CAMERA, TIMESTAMP)

    @property
    def info_names(self) -> list[str]:
        return ["name"]

    def info(self, name: str) -> np.ndarray:
        """ "name": of each file."""
        if name != "name":
            return super().info(name)
        return np.array([video.path.name for video in self._videos], object)

    def findings(self) -> list[Finding]:
        """Files that were left out, are there twice, or are uneven."""
        found = [Finding("warning", f"left out: {reason}") for reason in self.left_out.values()]
        by_content: dict[str, list[str]] = {}
        for video in self._videos:
            by_content.setdefault(video.index.digest, []).append(video.path.name)
        for names in by_content.values():
            if len(names) > 1:
                text = f"{' and '.join(names)} are the same video; keep one of them"
                found.append(Finding("warning", text))
        fps, changed = self.spec.fps, []
        for video in self._videos:
            if video.facts.pixel_aspect != 1:
                text = f"{video.path.name} has pixels that are not square, and is not stretched"
                found.append(Finding("warning", text))
            if abs(video.rate / fps - 1) > 1e-3:
                changed.append(video)
        if changed:
            text = (
                f"{len(changed)} of {len(self)} files have another rate than {fps:g} Hz, such as "
                f"{changed[0].path.name} with {changed[0].rate:g}: their nearest frames are taken"
            )
            found.append(Finding("note", text))
        return found

    def _stamps(self) -> np.ndarray:
        """int64 (N, 1), microseconds."""
        fps, parts = self.spec.fps, []
        for video, length in zip(self._videos, self.lengths, strict=True):
            times = video.index.times
            shown = times[video.numbers(np.arange(length), fps)] - times[0]
            parts.append((shown * 1e6).round().astype(np.int64))
        return np.concatenate(parts)[:, None]

    def _require_enough(self, files: Sequence[Path]) -> None:
        bad = len(self.left_out)
        if bad == len(files) or bad > self._may_leave_out * len(files):
            first = next(iter(self.left_out.values()))
            raise UserError(
                f"{bad} of {len(files)} videos in {self.path} cannot be used, and at most "
                f"{100 * self._may_leave_out:g} % may be left out; the first: {first}"
            )


class _Frames:
    def __init__(
        self,
        videos: Sequence[_Video],
        frames: VideoFrames,
        starts: np.ndarray,
        fps: float,
        size: tuple[int, int],
    ) -> None:
        self._videos, self._frames, self._starts = videos, frames, starts
        self._fps, self._size = fps, size

    def rows(self, index: np.ndarray) -> np.ndarray:
        flat = index.reshape(-1)
        out = np.empty((len(flat), *self._size, 3), np.uint8)
        of_video = np.searchsorted(self._starts, flat, side="right") - 1
        for number in np.unique(of_video):
            chosen, video = of_video == number, self._videos[number]
            numbers = video.numbers(flat[chosen] - self._starts[number], self._fps)
            out[chosen] = self._frames.take(video.path, numbers)
        return out.reshape(*index.shape, *out.shape[1:])


class _Stamps:
    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self._values[index]


def usual_rate(times: np.ndarray) -> float:
    """Frames per second of rising times (N,), N > 1, gaps aside.

    Times are often rounded to milliseconds: the mean of the usual steps is taken, and the whole
    number or multiple of 1/1.001 Hz that it is within 0.02 % of.
    """
    steps = np.diff(times)
    usual = np.median(steps)
    rate = 1 / float(steps[np.abs(steps - usual) <= usual / 2].mean())
    for known in (float(round(rate)), round(rate * 1.001) / 1.001):
        if known and abs(rate / known - 1) < 2e-4:
            return known
    return round(rate, 3)


def _files(folder: Path) -> list[Path]:
    found = listed(folder, endings=ENDINGS)
    return [file for file in found if file.is_file() and not file.name.startswith(".")]


def _most_common(rates: Sequence[float]) -> float:
    """The most common rate, the lowest of several."""
    counts = Counter(rates)
    return min(counts, key=lambda rate: (-counts[rate], rate))


def _one_size(videos: Sequence[_Video], spec: StreamSpec | None) -> tuple[int, int]:
    sizes: dict[tuple[int, int], str] = {}
    for video in videos:
        sizes.setdefault(video.facts.size, video.path.name)
    if spec is not None and CAMERA in spec.cameras:
        height, width = wanted = spec.cameras[CAMERA]
        for own, name in sizes.items():
            if own[0] * width != own[1] * height:
                raise UserError(
                    f"{name} is {own[1]}x{own[0]}, of another aspect ratio than the task's "
                    f"{width}x{height}; crop it or leave it out."
                )
        return wanted
    if len(sizes) > 1:
        (a, one), (b, other) = list(sizes.items())[:2]
        raise UserError(
            f"The videos should have one size, {one} is {a[1]}x{a[0]} and {other} {b[1]}x{b[0]}; "
            "name a task (--task) that says to which size to bring them."
        )
    return next(iter(sizes))


def _fitted(pixels: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    return pixels if pixels.shape[:2] == size else resized(pixels, size)
