"""OpenDV-YouTube: videos and the table of what to cut off -> a native store at 10 Hz.

<root>/metadata.csv                    tabs: video_id, split, discard_start, discard_end (s), ...
<root>/videos/<channel>/<id>.mp4       or .webm, .mkv, ...; a leading "-" of an id may be "@"
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import av.logging
import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.video.stream import VideoStream

from foreact.data.formats.frames import kept_on_disk
from foreact.data.formats.importing import Account, store_to_import
from foreact.data.formats.video import ENDINGS, picture_stream, quarter_turns
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError, decoding, in_short
from foreact.families.driving.data.drives import FRAME_SIZE, FRONT, driving_spec, episodes_done
from foreact.files import listed, parse_table, read_text
from foreact.progress import Progress

RATE_HZ = 10.0

Cutting = Literal["exact", "reference"]


@dataclass(frozen=True, kw_only=True)
class Video:
    """One line of the table and its file.

    Attributes:
        discard_start, discard_end: seconds to cut off.
    """

    name: str
    path: Path
    split: str
    discard_start: float
    discard_end: float


def opendv_videos(
    root: str | Path,
    *,
    split: str | None = None,
    names: Sequence[str] | None = None,
    account: Account | None = None,
) -> list[Video]:
    """The videos of a split, or of given ids, in the table's order.

    Args:
        root: holds metadata.csv and videos/.
        split, names: which; by default all.
        account: counts the videos chosen as episodes, and those left out, which have no file; and
            the files that belong to no chosen video.

    Raises:
        UserError: the table is missing or malformed, or there is no such video.
    """
    root, ids = Path(root), None if names is None else set(names)
    table = root / "metadata.csv"
    paths = listed(root / "videos", "*/*", endings=ENDINGS)
    files = {path.stem: path for path in paths}
    if not table.is_file():
        raise UserError(
            f"There is no table {table}; give the folder that holds metadata.csv and videos/."
        )
    complaint = (
        f"{table} should be tab separated with video_id, split, discard_start and discard_end"
    )
    with decoding(complaint, "mend it or download it again"):
        rows = {row["video_id"]: row for row in parse_table(read_text(table))}
        chosen = {
            name: row
            for name, row in rows.items()
            if (split is None or row["split"].lower() == split.lower())
            and (ids is None or name in ids)
        }
        cuts = {
            name: (float(row["discard_start"]), float(row["discard_end"]))
            for name, row in chosen.items()
        }
        splits = {name: row["split"] for name, row in chosen.items()}
    if unknown := sorted((ids or set()) - set(rows)):
        raise UserError(
            f"{table} does not list '{unknown[0]}' ({len(unknown)} of the given names are missing)."
        )
    bad = [name for name, cut in cuts.items() if not all(0 <= s < math.inf for s in cut)]
    if bad:
        raise UserError(f"{table} should cut off 0 seconds or more; '{bad[0]}' has {cuts[bad[0]]}.")
    videos, missing = [], []
    for name in chosen:
        path = files.get(name) or files.get(f"@{name[1:]}" if name.startswith("-") else name)
        if path is None:
            missing.append(name)
            continue
        start, end = cuts[name]
        videos.append(
            Video(name=name, path=path, split=splits[name], discard_start=start, discard_end=end)
        )
    if not videos:
        raise UserError(
            f"{table} lists {len(chosen)} videos for this choice; none of them lies "
            f"below {root}/videos."
        )
    account = account or Account()
    account.find("episodes", len(chosen))
    account.leave_out("episodes", len(missing), f"not below {root / 'videos'}", *missing)
    used = {video.path for video in videos}
    others = [path for path in paths if path not in used]
    account.find("files", len(paths))
    account.leave_out("files", len(others), "of no video that was chosen", *others)
    return videos


def import_opendv(
    root: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    names: Sequence[str] | None = None,
    cutting: Cutting = "exact",
    damage: Literal["warn", "error"] = "warn",
    size: tuple[int, int] = FRAME_SIZE,
    progress: bool = True,
) -> Account:
    """Cut, sample and shrink videos into the episodes of a native store; resumable after each.

    See `store_to_import` for what a stopped or refused import leaves.

    Args:
        root: holds metadata.csv and videos/.
        out: the store, new or begun before with the same options.
        split, names: which videos; by default all.
        cutting: where a video ends. "exact": `discard_end` seconds before its end. "reference":
            `discard_start` seconds later than that (but not after the end), as the released models'
            frames were cut.
        damage: whether a video with damaged parts is taken as far as it decodes, with a warning, or
            refused.
        size: height and width of the frames.
        progress: show a bar.

    Returns:
        What was found and taken.

    Raises:
        UserError: nothing can be imported, a video is damaged and `damage` is "error", or the disk
            refuses.
    """
    account, spec = Account(), driving_spec(RATE_HZ, size)
    videos = opendv_videos(root, split=split, names=names, account=account)
    facts = {"source": "OpenDV", "cutting": cutting}
    with store_to_import(Path(out)) as draft, StoreWriter(draft, spec, attrs=facts) as writer:
        done = episodes_done(writer, facts, [video.name for video in videos])
        for video in Progress(videos, unit="video", desc="import", disable=not progress):
            if video.name in done:
                continue
            clip = Clip(video, cutting=cutting, size=size)
            with kept_on_disk(clip, draft) as frames:
                if clip.damage and damage == "error":
                    raise UserError(
                        f"{video.path}: {clip.damage}; download it again, or import "
                        "with damage 'warn'."
                    )
                if len(frames) == 0:
                    reason = clip.damage or "nothing remains after cutting"
                    account.leave_out("episodes", 1, f"because {reason}", video.path)
                    continue
                if clip.damage:
                    warnings.warn(
                        f"{video.path}: {clip.damage}; {len(frames)} frames are taken.",
                        stacklevel=2,
                    )
                writer.append(
                    {FRONT: frames}, name=video.name, split=video.split, complaints=clip.complaints
                )
        if writer.episodes == 0:
            reasons = account.reasons("episodes")
            raise UserError(
                f"None of the {len(videos)} videos below {root} gave a frame ({reasons}); look at "
                "what is left of them after cutting, or download them again."
            )
    return account


class Clip:
    """Frames of one video, cut, at 10 per second: uint8 (H, W, 3), decoded in this process.

    FFmpeg's decoder conceals damaged parts and goes on; a frame that is lost is replaced by the one
    before it.

    Attributes:
        complaints: errors that the decoder has reported, from the key frame before the cut on.
        failure: what made it give up, if anything did.
        missing: seconds by which the video ended too early.
    """

    def __init__(self, video: Video, *, cutting: Cutting, size: tuple[int, int]) -> None:
        self.video, self.cutting, self.size = video, cutting, size
        self.complaints, self.failure, self.missing = 0, "", 0.0

    @property
    def damage(self) -> str:
        """What is wrong with the video, known after its last frame; empty where nothing is."""
        faults = [f"it cannot be decoded further ({self.failure})"] if self.failure else []
        if self.complaints:
            faults.append(f"the decoder reported {self.complaints} errors")
        if self.missing > 1.0:
            faults.append(f"it ends {self.missing:.1f} s too early")
        return " and ".join(faults)

    def __iter__(self) -> Iterator[np.ndarray]:
        level, skip_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)
        try:
            with av.logging.Capture() as log:
                try:
                    yield from self._frames()
                except Exception as error:  # decoders raise anything over damaged bytes
                    self.failure = in_short(error)
                self.complaints += len(log)
        finally:
            av.logging.set_level(level)
            av.logging.set_skip_repeated(skip_repeated)

    def _frames(self) -> Iterator[np.ndarray]:
        with av.open(str(self.video.path)) as container:
            if not container.streams.video or container.duration is None:
                self.failure = "there is no video stream of known duration"
                return
            stream = picture_stream(container)
            # One thread: messages from the decoder's own threads, which tell of damage, can lock
            # up the interpreter.
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
            self.missing = length = max(0.0, self._length(container.duration / av.time_base))
            if length == 0:
                return
            origin, start = (container.start_time or 0) / av.time_base, self.video.discard_start
            if start > 0:
                container.seek(int((origin + start) * av.time_base))
            graph, turns = None, 0
            assert stream.time_base is not None
            for packet in container.demux(stream):
                try:
                    decoded = packet.decode()
                except FFmpegError:
                    self.complaints += 1
                    continue
                for frame in decoded:
                    if frame.pts is None:
                        continue
                    time = float(frame.pts * stream.time_base) - origin - start
                    if time < 0:  # between the key frame that seeking finds and the cut
                        continue
                    frame.pts, frame.time_base = round(time / stream.time_base), stream.time_base
                    if graph is None:
                        turns = quarter_turns(frame)
                        graph = self._graph(stream, turns)
                    graph.push(frame)
                    yield from self._pull(graph, length, turns)
                    if time > length + 1 / RATE_HZ:
                        return
            if graph is not None:
                graph.push(None)
                yield from self._pull(graph, length, turns)

    def _length(self, duration: float) -> float:
        """Seconds to keep from `discard_start` on."""
        start, end = self.video.discard_start, self.video.discard_end
        if self.cutting == "exact":
            return duration - start - end
        return min(duration - start, duration - end)

    def _graph(self, stream: VideoStream, turns: int) -> Graph:
        graph = Graph()
        graph.threads = 1
        # Frames are scaled as they were coded, and turned afterwards.
        height, width = self.size if turns % 2 == 0 else self.size[::-1]
        graph.link_nodes(
            graph.add_buffer(template=stream),
            graph.add("fps", f"{RATE_HZ:g}"),
            graph.add("scale", f"{width}:{height}"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ).configure()
        return graph

    def _pull(self, graph: Graph, length: float, turns: int) -> Iterator[np.ndarray]:
        while True:
            try:
                frame = graph.vpull()
            except (BlockingIOError, EOFError):
                return
            assert frame.pts is not None  # the filter "fps" sets both
            assert frame.time_base is not None
            if frame.pts * frame.time_base >= length - 1e-6:
                return
            self.missing = length - (frame.pts + 1) * frame.time_base
            yield np.rot90(frame.to_ndarray(format="rgb24"), turns)
