"""Token grids as VaViM's own tools leave them: one .npy file (h, w) per frame."""

from __future__ import annotations

import re
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from foreact.data.stores.episodes import EpisodeStore, Rows
from foreact.data.windows.anchors import TIMESTAMP
from foreact.errors import UserError, decoding
from foreact.families.driving.data.drives import EGO_POSE, FRONT
from foreact.families.driving.data.trajectories import Trajectories
from foreact.files import listed
from foreact.types import StreamSpec

TOKENS = f"tokens_{FRONT}"

_NUMBER = re.compile(rb"(\d{1,12})\.npy$")


class TokenFiles(EpisodeStore):
    """Drives whose frames are token files, which a subclass names.

    Args:
        path: where the files lie.
        names: (E,) of the drives.
        lengths: int64 (E,) frames of each.
        rate_hz: frames per second.
        numbers: streams of numbers beside the tokens, each (N, ...).
    """

    native = True

    def __init__(
        self,
        path: Path,
        names: list[str],
        lengths: np.ndarray,
        rate_hz: float,
        numbers: Mapping[str, np.ndarray],
    ) -> None:
        if not lengths.sum():
            raise UserError(
                f"There is no token file for any of the {len(names)} videos in {path}; tokenize "
                "them, or correct the folder."
            )
        self.path, self.lengths, self.starts = path, lengths, np.cumsum(lengths) - lengths
        self.spec = StreamSpec(cameras={}, fps=rate_hz)
        self._names, self._numbers = np.array(names, object), numbers
        self._grid: tuple[tuple[int, ...], Path] | None = None

    @abstractmethod
    def file(self, row: int) -> Path:
        """The token file of a row, counted over all drives."""

    @property
    def content_streams(self) -> list[str]:
        return [TOKENS, *self._numbers]

    def has(self, stream: str) -> bool:
        return stream in self.content_streams

    def reader(self, stream: str) -> Rows:
        if stream == TOKENS:
            return _Grids(self)
        if stream in self._numbers:
            return _Numbers(self._numbers[stream])
        has = [TOKENS, *self._numbers]
        raise UserError(f"{self.label} has no stream '{stream}'; it has {has}.")

    @property
    def info_names(self) -> list[str]:
        return ["name"]

    def info(self, name: str) -> np.ndarray:
        return self._names if name == "name" else super().info(name)

    def where(self, row: int) -> str:
        return str(self.file(row))

    def grid(self, row: int) -> np.ndarray:
        """The tokens of a row, int64 (h, w).

        Raises:
            UserError: the file is missing, damaged, holds no grid, or one of another size than the
                files before it.
        """
        grid, file = self._read(self.file(row)), self.file(row)
        self._grid = self._grid or (grid.shape, file)
        if grid.shape != self._grid[0]:
            raise UserError(
                f"{file} holds a grid of {grid.shape} tokens and {self._grid[1]} one of "
                f"{self._grid[0]}; tokenize all frames at one size."
            )
        return grid

    def _read(self, file: Path) -> np.ndarray:
        with decoding(f"The token file {file} cannot be read", "tokenize that frame again"):
            if not file.is_file():
                raise UserError(
                    f"There is no token file {file}; tokenize that frame, or correct the folder."
                )
            grid = np.load(file)
        if not isinstance(grid, np.ndarray) or grid.ndim != 2 or grid.dtype.kind not in "iu":
            has = f"{grid.dtype} {grid.shape}" if isinstance(grid, np.ndarray) else "several arrays"
            raise UserError(f"{file} should hold integers (h, w), found {has}.")
        return grid.astype(np.int64)


class _Grids:
    """Reads a file for every row."""

    def __init__(self, files: TokenFiles) -> None:
        self.files = files

    def rows(self, index: np.ndarray) -> np.ndarray:
        grids = [self.files.grid(int(row)) for row in index.flat]
        return np.stack(grids).reshape(*index.shape, *grids[0].shape)


class _Numbers:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.values[index]


class TokenFolders(TokenFiles):
    """OpenDV's tokens: `<root>/<video>/t_000001.npy`, ..., in the order of the file names.

    Args:
        root: such as flat_tokens/.
        videos: names in the wanted order. A leading "-" may be written as "@" on disk.
        rate_hz: frames per second of the files, the raw rate.
        skip_missing: leave out videos without a folder, with a warning, instead of refusing.

    Holes in the numbering of a video's files are gaps in time, which are counted in a warning.

    Raises:
        UserError: videos are missing.
    """

    def __init__(
        self,
        root: str | Path,
        videos: Sequence[str],
        *,
        rate_hz: float = 10.0,
        skip_missing: bool = False,
    ) -> None:
        root = Path(root)
        folders = {video: _folder_of(root, video) for video in videos}
        if missing := [video for video, folder in folders.items() if folder is None]:
            share = f"{len(missing)} of {len(videos)}"
            problem = f"{share} videos have no folder in {root}, such as '{missing[0]}'"
            if not skip_missing or len(missing) == len(videos):
                raise UserError(
                    f"{problem}; tokenize them, correct the list, or skip missing ones on purpose."
                )
            warnings.warn(f"{problem}; they are left out.", stacklevel=2)
        self._folders = [folder for folder in folders.values() if folder is not None]
        names = [video for video, folder in folders.items() if folder is not None]
        # Fixed-width bytes: OpenDV has 60 million frames, as Python strings they would not fit into
        # memory.
        self._files = [
            np.array([file.name for file in listed(folder, "*.npy")], np.bytes_)
            for folder in self._folders
        ]
        lengths = np.array([len(files) for files in self._files], np.int64)
        times = self._times(root, names, rate_hz)
        super().__init__(root, names, lengths, rate_hz, {} if times is None else {TIMESTAMP: times})

    def _times(self, root: Path, names: Sequence[str], rate_hz: float) -> np.ndarray | None:
        """Microseconds (N,) by the numbers in the file names, where numbers are missing there.

        Windows are then left out across the holes, as across any gap in time. Where the numbering
        is whole there is no need to hold it in memory.
        """
        spans = [int(np.diff(_frame_numbers(files)).sum()) + 1 for files in self._files]
        holes = {
            name: count - len(files)
            for name, count, files in zip(names, spans, self._files, strict=True)
            if count > len(files) > 0
        }
        if not holes:
            return None
        warnings.warn(
            f"{sum(holes.values())} frames are missing in the numbering of the token files of "
            f"{len(holes)} of {len(names)} videos in {root}, such as '{next(iter(holes))}'; "
            "windows across such holes are left out.",
            stacklevel=3,
        )
        period = 1e6 / rate_hz
        stamps = [np.rint(_frame_numbers(files) * period).astype(np.int64) for files in self._files]
        return np.concatenate(stamps)

    def file(self, row: int) -> Path:
        drive = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self._folders[drive] / bytes(self._files[drive][row - self.starts[drive]]).decode()


def _frame_numbers(files: np.ndarray) -> np.ndarray:
    """The number at the end of each file's name, int64 (T,).

    Where a name has none, or the numbers do not grow with the names, files are counted instead.
    """
    matches = [_NUMBER.search(bytes(name)) for name in files]
    numbers = np.array([int(match[1]) for match in matches if match is not None], np.int64)
    steps = np.diff(numbers)
    if len(numbers) < len(files) or (steps <= 0).any():
        return np.arange(len(files))
    # Every fifth frame of a video may keep its number there: the rate is that of the files.
    return (numbers - numbers[0]) // max(1, int(np.gcd.reduce(steps))) if len(steps) else numbers


def _folder_of(root: Path, video: str) -> Path | None:
    for name in (video, f"@{video[1:]}") if video.startswith("-") else (video,):
        if (root / name).is_dir():
            return root / name
    return None


class TrajectoryTokens(TokenFiles):
    """nuPlan's and nuScenes' tokens: `<root>/<image path>` with .npy for .jpg.

    Args:
        trajectories: scenes, times and poses, which give the order.
        root: such as tokens/.
        rate_hz: frames per second of the trajectories: 2 for nuScenes' key frames, 10 for nuPlan.
    """

    def __init__(self, trajectories: Trajectories, root: str | Path, *, rate_hz: float) -> None:
        if not Path(root).is_dir():
            raise UserError(f"There is no token folder {root}.")
        self._source, self._files = trajectories.label, trajectories.files
        numbers = {EGO_POSE: trajectories.poses, TIMESTAMP: trajectories.timestamps}
        super().__init__(Path(root), trajectories.names, trajectories.lengths, rate_hz, numbers)

    @property
    def label(self) -> str:
        return f"{self._source} with {self.path}"

    def file(self, row: int) -> Path:
        return (self.path / self._files[row]).with_suffix(".npy")
