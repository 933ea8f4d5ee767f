"""Frames of video files by number: the right ones in any order, whatever the codec does."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.coded_pictures import codes, encode, read_code, video
from support.turned_video import turn

from foreact.data.formats import mp4_cache
from foreact.data.formats.mp4 import OPEN_FILES, VideoFrames
from foreact.data.formats.mp4_index import VideoIndex, look_at_video, scan_video
from foreact.errors import UserError

CODECS = {
    "two pictures a group": {},
    "B-frames": {"g": "12", "bf": "3"},
    "one long group": {"g": "250", "bf": "2"},
    "open groups": {"g": "250", "bf": "3", "x264-params": "open-gop=1:keyint=6"},
}


@pytest.fixture(params=CODECS)
def coded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return encode(tmp_path / "v.mp4", video(3, 18, 1), **CODECS[request.param])


@pytest.mark.parametrize(
    "order", [range(18), range(17, -1, -1), (9, 2, 17, 0, 3, 3, 16)], ids=["on", "back", "mixed"]
)
def test_any_order_gives_the_frames_asked_for(coded: Path, order: range) -> None:
    frames = VideoFrames()
    singly = [read_code(frames.take(coded, np.array([n]))[0]) for n in order]
    assert singly == [(3, n, 1) for n in order]
    assert codes(VideoFrames().take(coded, np.array(order))) == singly


def test_the_index_is_in_the_order_of_presentation(coded: Path) -> None:
    index = scan_video(coded)
    assert index.times == pytest.approx(np.arange(18) / 10)
    assert index.keys[0] == 0
    assert index.nearest(np.array([-1.0, 0.04, 0.06, 0.7, 1.69, 9.0])).tolist() == [
        0, 0, 1, 7, 17, 17,
    ]  # fmt: skip


def test_a_single_frame_is_nearest_to_everything(tmp_path: Path) -> None:
    index = scan_video(encode(tmp_path / "v.mp4", video(0, 1, 0)))
    assert index.nearest(np.array([-1.0, 0.0, 3.0])).tolist() == [0, 0, 0]


def test_av1_and_mkv_that_begins_late(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "v.mkv",
        video(2, 9, 0),
        [5 + n for n in range(9)],
        codec="libsvtav1",
        container="matroska",
        preset="8",
    )
    assert scan_video(path).times == pytest.approx(0.5 + np.arange(9) / 10)
    assert codes(VideoFrames().take(path, np.arange(9))) == [(2, n, 0) for n in range(9)]


def test_a_turned_file_stands_upright(tmp_path: Path) -> None:
    upright = video(1, 3, 2)
    path = encode(tmp_path / "v.mp4", np.rot90(upright, 1, axes=(1, 2)))
    turn(path, 90)
    assert look_at_video(path).size == (32, 48)
    assert codes(VideoFrames().take(path, np.arange(3))) == [(1, n, 2) for n in range(3)]


def test_many_files_share_few_decoders(tmp_path: Path) -> None:
    paths = [
        encode(tmp_path / f"{n}.mp4", video(n % 10, 4, n // 10)) for n in range(OPEN_FILES + 4)
    ]
    frames = VideoFrames()
    for frame in (1, 3, 0):
        found = [read_code(frames.take(path, np.array([frame]))[0]) for path in paths]
        assert found == [(n % 10, frame, n // 10) for n in range(len(paths))]
    assert len(frames._decoders) == OPEN_FILES


def _read_in_child(frames: VideoFrames, path: Path, pipe) -> None:
    pipe.send(codes(frames.take(path, np.array([11, 2]))))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_opens_its_own_decoder(tmp_path: Path, method: str) -> None:
    path = encode(tmp_path / "v.mp4", video(3, 18, 1), **CODECS["one long group"])
    frames = VideoFrames()
    frames.take(path, np.array([4]))
    context: Any = multiprocessing.get_context(method)
    mine, its = context.Pipe()
    worker = context.Process(target=_read_in_child, args=(frames, path, its))
    worker.start()
    assert mine.poll(60)
    assert mine.recv() == [(3, 11, 1), (3, 2, 1)]
    assert codes(frames.take(path, np.array([5, 6]))) == [(3, 5, 1), (3, 6, 1)]
    worker.join(60)
    assert worker.exitcode == 0


def test_indices_travel_and_decoders_do_not(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", video(0, 4, 0))
    frames = VideoFrames()
    frames.take(path, np.array([0]))
    copy = pickle.loads(pickle.dumps(frames))
    assert list(copy._indices) == [path]
    assert not copy._decoders
    assert codes(copy.take(path, np.array([3]))) == [(0, 3, 0)]


def test_the_same_pictures_have_one_digest(tmp_path: Path) -> None:
    one = encode(tmp_path / "a.mp4", video(0, 5, 0))
    again = encode(tmp_path / "b.mp4", video(0, 5, 0))
    other = encode(tmp_path / "c.mp4", video(0, 5, 1))
    assert scan_video(one).digest == scan_video(again).digest != scan_video(other).digest


# --- what is kept of large files -----------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file counts as large; the files that were scanned."""
    scanned: list[Path] = []

    def scan(path: Path) -> VideoIndex:
        scanned.append(path)
        return scan_video(path)

    monkeypatch.setattr(mp4_cache, "LARGE", 0)
    monkeypatch.setattr(mp4_cache, "scan_video", scan)
    monkeypatch.setenv("FOREACT_CACHE", str(tmp_path / "cache"))
    return scanned


def test_a_large_file_is_scanned_once(tmp_path: Path, kept: list[Path]) -> None:
    path = encode(tmp_path / "v.mp4", video(1, 6, 0))
    first = mp4_cache.index_of_video(path)
    again = mp4_cache.index_of_video(path)
    assert kept == [path]
    assert again.pts.tolist() == first.pts.tolist()
    assert again.keys.tolist() == first.keys.tolist()
    assert (again.time_base, again.digest) == (first.time_base, first.digest)
    assert codes(VideoFrames().take(path, np.arange(6))) == [(1, n, 0) for n in range(6)]


def test_a_file_that_changed_is_scanned_again(tmp_path: Path, kept: list[Path]) -> None:
    path = encode(tmp_path / "v.mp4", video(1, 6, 0))
    mp4_cache.index_of_video(path)
    encode(path, video(2, 9, 0))
    assert len(mp4_cache.index_of_video(path)) == 9
    assert len(kept) == 2


def test_a_damaged_cache_is_made_anew(tmp_path: Path, kept: list[Path]) -> None:
    path = encode(tmp_path / "v.mp4", video(1, 6, 0))
    mp4_cache.index_of_video(path)
    (file,) = (tmp_path / "cache" / "videos").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert len(mp4_cache.index_of_video(path)) == 6
    assert len(mp4_cache.index_of_video(path)) == 6
    assert len(kept) == 2


def test_without_a_cache_folder_it_is_scanned_each_time(
    tmp_path: Path, kept: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOREACT_CACHE", str(tmp_path / "file"))
    path = encode(tmp_path / "v.mp4", video(1, 6, 0))
    assert len(mp4_cache.index_of_video(path)) == len(mp4_cache.index_of_video(path)) == 6
    assert len(kept) == 2


# --- what is refused ------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no video at .*gone\.mp4\."):
        scan_video(tmp_path / "gone.mp4")


def test_something_else_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"not a video" * 50)
    with pytest.raises(UserError, match=r"v\.mp4 cannot be decoded as a video .*; copy"):
        scan_video(tmp_path / "v.mp4")


def test_a_cut_file_whose_index_is_in_front_is_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    whole = tmp_path / "whole.mp4"
    encode(tmp_path / "v.mp4", noise)
    with (
        av.open(str(tmp_path / "v.mp4")) as source,
        av.open(str(whole), "w", options={"movflags": "+faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    data = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    assert len(scan_video(whole)) == 30
    with pytest.raises(UserError, match=r"cut\.mp4 is cut short.*; copy it again"):
        scan_video(tmp_path / "cut.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(UserError, match=r"sound\.mp4 has no moving pictures, or is cut short"):
        scan_video(path)


def test_a_damaged_picture_is_refused_by_its_number(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    path = encode(tmp_path / "v.mp4", noise)
    sizes = []
    with av.open(str(path)) as container:
        sizes = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    start, size = sizes[6]
    assert start is not None
    data[start : start + size] = bytes(size)
    path.write_bytes(data)
    frames = VideoFrames()
    frames.take(path, np.arange(4))
    with pytest.raises(UserError, match=r"v\.mp4 (is damaged|cannot be decoded).*frame [67]"):
        frames.take(path, np.array([6, 7]))
