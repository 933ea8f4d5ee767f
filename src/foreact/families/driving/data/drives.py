"""Drives: long recordings of one forward camera with tokens, ego poses and times.

Any `EpisodeStore` with one episode per video, scene or log, the episodes' names as "name", and
these streams, each where it is known:

    front         uint8 (N, H, W, 3)
    tokens_front  unsigned (N, h, w)
    ego_pose      float64 (N, 7)    see `ego`; float32 could not resolve a metre in map coordinates
    timestamp     int64 (N,)        microseconds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foreact.data.formats.frames import kept_on_disk, read_frames
from foreact.data.formats.importing import Account
from foreact.data.stores.derived import write_stream
from foreact.data.stores.store import open_store
from foreact.data.stores.writer import StoreWriter
from foreact.data.windows.anchors import TIMESTAMP
from foreact.errors import UserError
from foreact.families.driving.data.trajectories import Trajectories
from foreact.progress import Progress
from foreact.types import StreamSpec

FRONT = "front"
EGO_POSE = "ego_pose"
FRAME_SIZE = (288, 512)
"""Height and width of the frames that the driving models see."""


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
    account: Account,
    progress: bool = True,
) -> None:
    """Write frames, poses and times of trajectories into a native store, one episode per scene.

    An import that was cut short goes on after its last whole scene.

    Args:
        trajectories: what belongs together.
        images: root of the image paths.
        out: the store, new or begun before from the same source.
        rate_hz: nominal frame rate; the store has that of the time stamps, see `measured_rate`.
        size: height and width of the stored frames; images of another aspect ratio are refused.
        facts: JSON-able notes on the source; must equal those of a store begun before.
        account: counts frames whose image is not there, and whole scenes, which are left out.
        progress: show a bar.

    Raises:
        UserError: no image is there, one is damaged, the store holds something else, or the disk
            refuses.
    """
    images, out = Path(images), Path(out)
    driving_spec(rate_hz, size)  # refuses an impossible size before any file is looked for
    rows: dict[str, np.ndarray] = {}  # scene -> rows whose image exists
    missing: list[str] = []
    for name, start, length in zip(
        trajectories.names, trajectories.starts, trajectories.lengths, strict=True
    ):
        existing = [
            row for row in range(start, start + length) if _is_file(images, trajectories.files[row])
        ]
        if existing:
            rows[name] = np.array(existing)
        there = set(existing)
        missing += [
            trajectories.files[row] for row in range(start, start + length) if row not in there
        ]
    if not rows:
        first = images / trajectories.files[0]
        raise UserError(
            f"None of the {len(trajectories.files)} images is there, such as {first}; "
            "correct the folder."
        )
    account.leave_out("images", len(missing), f"not in {images}", *missing)
    empty = [name for name in trajectories.names if name not in rows]
    account.leave_out("episodes", len(empty), f"without any image in {images}", *empty)
    rate = measured_rate([trajectories.timestamps[scene] for scene in rows.values()], rate_hz)
    if rate != rate_hz:
        account.note(
            f"The store has {rate:g} frames per second: its frames are {1 / rate:g} s apart, and "
            f"not {1 / rate_hz:g} s as at the nominal {rate_hz:g} Hz."
        )
    with StoreWriter(out, driving_spec(rate, size), attrs=facts) as writer:
        done = episodes_done(writer, facts, list(rows))
        if changed := [name for name, length in done.items() if length != len(rows[name])]:
            raise UserError(
                f"{out} holds {done[changed[0]]} frames of '{changed[0]}', of which "
                f"{len(rows[changed[0]])} are there now; import into another path, or restore the "
                "images."
            )
        bar = Progress(rows.items(), unit="scene", desc="import", disable=not progress)
        for name, scene_rows in bar:
            if name not in done:
                files = [images / trajectories.files[row] for row in scene_rows]
                frames = read_frames(files, size)
                with kept_on_disk(frames, out) as video:
                    writer.append({FRONT: video}, name=name)
    names = open_store(out).info("name").tolist()
    order = np.concatenate([rows[name] for name in names])
    write_stream(out, EGO_POSE, trajectories.poses[order], attrs={})
    write_stream(out, TIMESTAMP, trajectories.timestamps[order], attrs={})


def measured_rate(timestamps: Sequence[np.ndarray], nominal_hz: float) -> float:
    """Frames per second of recordings, by their time stamps.

    Single gaps do not count: they are told from the time stamps wherever windows are cut. But where
    only every fifth image of a recording is there, its rate is a fifth of the nominal one.

    Args:
        timestamps: int64 (T,) microseconds of the frames of each recording.
        nominal_hz: what they should have; returned where they are that, or tell nothing.

    Raises:
        UserError: they cannot be microseconds.
    """
    periods = np.concatenate([np.diff(stamps) for stamps in timestamps]) / 1e6
    periods = periods[periods > 0]
    if len(periods) == 0:
        return nominal_hz
    # Nearly the shortest, so that gaps do not count; one stamp that is off does not either.
    ratio = float(np.quantile(periods, 0.1)) * nominal_hz
    if ratio < 0.1:
        raise UserError(
            f"Time stamps should be microseconds, {1e6 / nominal_hz:g} apart at {nominal_hz:g} Hz; "
            f"found frames {1e6 * ratio / nominal_hz:g} apart: check the source's unit of time."
        )
    if 0.75 < ratio < 1.5:
        return nominal_hz
    return nominal_hz / round(ratio) if ratio > 1 else float(f"{nominal_hz / ratio:.3g}")


def _is_file(root: Path, name: str) -> bool:
    try:
        return (root / name).is_file()
    except OSError:  # a name that no file can have, such as one of 5000 letters
        return False
