"""Token grids as VaViM's own tools leave them: one .npy file (h, w) per frame."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foreact.errors import UserError
from foreact.families.driving.data.trajectories import Trajectories


class TokenFiles(ABC):
    """Drives whose frames are files, as a subclass names them; meets `data.drives.Drives`."""

    label: str
    rate_hz: float
    names: list[str]
    lengths: np.ndarray
    starts: np.ndarray
    poses: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    _grid: tuple[tuple[int, ...], Path] | None = None

    @abstractmethod
    def file(self, row: int) -> Path:
        """The token file of a row, counted over all drives."""

    def where(self, row: int) -> str:
        return str(self.file(row))

    def load(self) -> None:
        return None  # nothing to hold in memory: each frame is a file

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """Token grids int64 (*rows.shape, h, w).

        Raises:
            UserError: a file is missing, damaged, holds no grid, or one of another size than the
                files before it.
        """
        grids = [self._read(self.file(int(row))) for row in rows.flat]
        return np.stack(grids).reshape(*rows.shape, *grids[0].shape)

    def _read(self, file: Path) -> np.ndarray:
        try:
            grid = np.load(file)
        except FileNotFoundError:
            raise UserError(
                f"There is no token file {file}; tokenize that frame, or correct the folder."
            ) from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"The token file {file} cannot be read ({error}); tokenize that frame again."
            ) from None
        if not isinstance(grid, np.ndarray) or grid.ndim != 2 or grid.dtype.kind not in "iu":
            has = f"{grid.dtype} {grid.shape}" if isinstance(grid, np.ndarray) else "several arrays"
            raise UserError(f"{file} should hold integers (h, w), found {has}.")
        self._grid = self._grid or (grid.shape, file)
        if grid.shape != self._grid[0]:
            raise UserError(
                f"{file} holds a grid of {grid.shape} tokens and {self._grid[1]} one of "
                f"{self._grid[0]}; tokenize all frames at one size."
            )
        return grid.astype(np.int64)


class TokenFolders(TokenFiles):
    """OpenDV's tokens: `<root>/<video>/t_000001.npy`, ..., in the order of the file names.

    Args:
        root: such as flat_tokens/.
        videos: names in the wanted order. A leading "-" may be written as "@" on disk.
        rate_hz: frames per second of the files, the raw rate.
        skip_missing: leave out videos without a folder, with a warning, instead of refusing.

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
        self.root, self.label, self.rate_hz = Path(root), str(root), rate_hz
        folders = {video: self._folder(video) for video in videos}
        if missing := [video for video, folder in folders.items() if folder is None]:
            share = f"{len(missing)} of {len(videos)}"
            problem = f"{share} videos have no folder in {root}, such as '{missing[0]}'"
            if not skip_missing or len(missing) == len(videos):
                raise UserError(
                    f"{problem}; tokenize them, correct the list, or skip missing ones on purpose."
                )
            warnings.warn(f"{problem}; they are left out.", stacklevel=2)
        self._folders = [folder for folder in folders.values() if folder is not None]
        self.names = [video for video, folder in folders.items() if folder is not None]
        # Fixed-width bytes: OpenDV has 60 million frames, as Python strings they would not fit into
        # memory.
        self._files = [
            np.array(sorted(p.name for p in folder.glob("*.npy")), np.bytes_)
            for folder in self._folders
        ]
        self.lengths = np.array([len(files) for files in self._files], np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths

    def file(self, row: int) -> Path:
        drive = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self._folders[drive] / bytes(self._files[drive][row - self.starts[drive]]).decode()

    def _folder(self, video: str) -> Path | None:
        for name in (video, f"@{video[1:]}") if video.startswith("-") else (video,):
            if (self.root / name).is_dir():
                return self.root / name
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
        self.root, self.label = Path(root), f"{trajectories.label} with {root}"
        self.rate_hz = rate_hz
        self.names = trajectories.names
        self.lengths, self.starts = trajectories.lengths, trajectories.starts
        self.poses: np.ndarray | None = trajectories.poses
        self.timestamps: np.ndarray | None = trajectories.timestamps
        self._files = trajectories.files

    def file(self, row: int) -> Path:
        return (self.root / self._files[row]).with_suffix(".npy")
