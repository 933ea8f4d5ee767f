"""Drives: long recordings of one forward camera with tokens, ego poses and times; their store.

The native store is an ordinary one with a camera stream `front`, one episode per video, scene or
log, the episodes' names in `meta/name`, and beside the pixels, each as its own stream where it is
known:

    tokens_front  uint16 (N, h, w)
    ego_pose      float64 (N, 7)    see `ego`; float32 could not resolve a metre in map coordinates
    timestamp     int64 (N,)        microseconds
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from foreact.data.formats.frames import kept_on_disk, read_frames
from foreact.data.stores.derived import write_stream
from foreact.data.stores.store import ZarrStore, open_store
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError
from foreact.families.driving.data.ego import check_poses
from foreact.families.driving.data.trajectories import Trajectories
from foreact.types import StreamSpec

FRONT = "front"
FRAME_SIZE = (288, 512)
"""Height and width of the frames that the driving models see."""


class Drives(Protocol):
    """What windows are cut from. Rows count the frames of all drives one after another.

    Attributes:
        label: where they come from, for messages.
        rate_hz: raw frames per second.
        lengths, starts: int64 (E,), frames and first row of each drive.
        names: one per drive.
        poses: float64 (N, 7), see `foreact.families.driving.data.ego`, or None.
        timestamps: int64 (N,) microseconds, or None.
    """

    label: str
    rate_hz: float
    names: list[str]
    lengths: np.ndarray
    starts: np.ndarray
    poses: np.ndarray | None
    timestamps: np.ndarray | None

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """Token grids, integers (*rows.shape, h, w)."""
        ...

    def where(self, row: int) -> str:
        """Where the tokens of a row lie, for messages."""
        ...

    def load(self) -> None:
        """Take in memory what fits."""
        ...


class StoreDrives:
    """The drives of a native store; meets `Drives`."""

    def __init__(self, store: ZarrStore, camera: str = FRONT) -> None:
        self.store, self.label, self.rate_hz = store, str(store.path), store.spec.fps
        self.lengths, self.starts = store.lengths, store.starts
        self.names = [str(i) for i in range(len(store))]
        if "name" in store.info_names:
            self.names = store.info("name").tolist()
        poses, timestamps = self._whole("ego_pose"), self._whole("timestamp")
        self.poses = None if poses is None else check_poses(poses, self.label)
        self.timestamps = None if timestamps is None else timestamps.reshape(-1)
        self._stream = f"tokens_{camera}"
        self.tokenizer_hash = store.tokenizer_hash(self._stream)

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        return self.store.gather(self._stream, rows)

    def where(self, row: int) -> str:
        episode = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"step {row - self.starts[episode]} of '{self.names[episode]}' in {self.label}"

    def load(self) -> None:
        self.store.reader(self._stream)

    def _whole(self, stream: str) -> np.ndarray | None:
        """All rows of a stream, or None where the store lacks it."""
        if not self.store.has(stream):
            return None
        return self.store.gather(stream, np.arange(int(self.lengths.sum())))


def choose(drives: Drives, names: list[str]) -> np.ndarray:
    """Numbers of the drives with these names, in their order.

    Raises:
        UserError: there is no such drive.
    """
    number = {name: i for i, name in enumerate(drives.names)}
    if missing := [name for name in names if name not in number]:
        raise UserError(
            f"{drives.label} has no drive '{missing[0]}' ({len(missing)} of "
            f"{len(names)} are missing)."
        )
    return np.array([number[name] for name in names], np.int64)


def driving_spec(fps: float, size: tuple[int, int] = FRAME_SIZE) -> StreamSpec:
    """Spec of a native driving store at the raw frame rate.

    Raises:
        UserError: a size below 1 x 1.
    """
    if min(size) < 1:
        raise UserError(
            f"Frames should have at least 1 x 1 pixels, found height {size[0]} and width {size[1]}."
        )
    return StreamSpec(cameras={FRONT: size}, fps=fps)


def episodes_done(
    writer: StoreWriter, facts: Mapping[str, Any], names: list[str]
) -> dict[str, int]:
    """Names and lengths of the episodes that an earlier import left in the store, in its order.

    Raises:
        UserError: the store comes from another source, or holds an episode whose name is not in
            `names`.
    """
    if any(writer.attrs.get(key) != value for key, value in facts.items()):
        raise UserError(
            f"{writer.path} was made from {writer.attrs}, not from {dict(facts)}; "
            "choose another path."
        )
    if writer.episodes == 0:
        return {}
    store = open_store(writer.path)
    done = dict(zip(store.info("name").tolist(), store.lengths.tolist(), strict=True))
    if unknown := sorted(set(done) - set(names)):
        raise UserError(
            f"{writer.path} holds '{unknown[0]}', which is not imported now; choose another path."
        )
    return done


def write_drives(
    trajectories: Trajectories,
    images: str | Path,
    out: str | Path,
    *,
    rate_hz: float,
    size: tuple[int, int] = FRAME_SIZE,
    facts: Mapping[str, Any],
    progress: bool = True,
) -> int:
    """Write frames, poses and times of trajectories into a native store, one episode per scene.

    Frames whose image is not there are left out, whole scenes too, with a warning that counts them.
    An import that was cut short goes on after its last whole scene.

    Args:
        trajectories: what belongs together.
        images: root of the image paths.
        out: the store, new or begun before from the same source.
        rate_hz: raw frame rate.
        size: height and width of the stored frames; images of another aspect ratio are refused.
        facts: JSON-able notes on the source; must equal those of a store begun before.
        progress: show a bar.

    Returns:
        Number of episodes in the store.

    Raises:
        UserError: no image is there, one is damaged, the store holds something else, or the disk
            refuses.
    """
    images, out, spec = Path(images), Path(out), driving_spec(rate_hz, size)
    rows = {}  # scene -> rows whose image exists
    for name, start, length in zip(
        trajectories.names, trajectories.starts, trajectories.lengths, strict=True
    ):
        scene_rows = range(start, start + length)
        existing = [row for row in scene_rows if (images / trajectories.files[row]).is_file()]
        if existing:
            rows[name] = np.array(existing)
    image_count = sum(map(len, rows.values()))
    if not image_count:
        first = images / trajectories.files[0]
        raise UserError(
            f"None of the {len(trajectories.files)} images is there, such as {first}; "
            "correct the folder."
        )
    if image_count < len(trajectories.files):
        warnings.warn(
            f"{len(trajectories.files) - image_count} of {len(trajectories.files)} images of "
            f"{trajectories.label} are not in {images}; {len(trajectories.names) - len(rows)} of "
            f"{len(trajectories.names)} scenes have none at all.",
            stacklevel=2,
        )
    with StoreWriter(out, spec, attrs=facts) as writer:
        done = episodes_done(writer, facts, list(rows))
        if changed := [name for name, length in done.items() if length != len(rows[name])]:
            raise UserError(
                f"{out} holds {done[changed[0]]} frames of '{changed[0]}', of which "
                f"{len(rows[changed[0]])} are there now; import into another path, or restore the "
                "images."
            )
        bar = tqdm(rows.items(), unit="scene", desc="import", disable=not progress)
        for name, scene_rows in bar:
            if name not in done:
                files = [images / trajectories.files[row] for row in scene_rows]
                frames = read_frames(files, size)
                with kept_on_disk(frames, out) as video:
                    writer.append({FRONT: video}, name=name)
    names = open_store(out).info("name").tolist()
    order = np.concatenate([rows[name] for name in names])
    write_stream(out, "ego_pose", trajectories.poses[order], attrs={})
    write_stream(out, "timestamp", trajectories.timestamps[order], attrs={})
    return len(names)
