"""Folders of plain videos: every file an episode, its frames by the time they are shown."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from support.coded_pictures import codes, encode, video
from support.turned_video import turn

from foreact.data.formats.video_folder import VideoFolderStore, open_video_folder, usual_rate
from foreact.data.inspect import check_store
from foreact.data.stores.opening import open_episodes
from foreact.data.windows.loader import WindowDataset
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec

SPEC = StreamSpec(cameras={"video": (32, 48)}, fps=10.0)


def of_episode(store: VideoFolderStore, episode: int) -> list[tuple[int, int, int]]:
    length = int(store.lengths[episode])
    return codes(store.read(episode, 0, length, ["video"])["video"])


def test_every_file_is_an_episode_in_natural_order(tmp_path: Path) -> None:
    encode(tmp_path / "ride10.mp4", video(10, 4, 0))
    encode(tmp_path / "ride9.MKV", video(9, 6, 0), container="matroska")
    (tmp_path / "._ride9.mp4").write_bytes(b"of a Mac")
    (tmp_path / ".ride9.mp4").write_bytes(b"hidden")
    (tmp_path / "notes.txt").write_text("no video")
    store = open_episodes(tmp_path)
    assert isinstance(store, VideoFolderStore)
    assert store.names == ["ride9.MKV", "ride10.mp4"]
    assert store.lengths.tolist() == [6, 4]
    assert store.spec == SPEC
    assert of_episode(store, 0) == [(9, n, 0) for n in range(6)]
    assert of_episode(store, 1) == [(10, n, 0) for n in range(4)]


def test_frames_are_taken_by_their_time(tmp_path: Path) -> None:
    shown = [0, 100, 200, 300, 700, 800, 900, 1000, 1100, 1200]  # ms: a pause after the fourth
    encode(tmp_path / "a.mkv", video(1, 10, 0), shown, ticks=100, container="matroska", bf="0")
    store = open_video_folder(tmp_path)
    assert store.spec.fps == 10.0
    frames = [frame for _, frame, _ in of_episode(store, 0)]
    assert frames == [0, 1, 2, 3, 3, 3, 4, 4, 5, 6, 7, 8, 9]


def test_windows_across_a_pause_are_left_out(tmp_path: Path) -> None:
    shown = [*range(0, 600, 100), *range(2000, 2600, 100)]
    encode(tmp_path / "a.mkv", video(1, 12, 0), shown, ticks=100, container="matroska", bf="0")
    store = open_video_folder(tmp_path)
    with pytest.warns(UserWarning, match="cross a gap"):
        dataset = WindowDataset(store, Window(video={"video": (0, 1, 2)}), np.arange(1))
    for episode, anchor in dataset.index.tolist():
        clip = store.read(episode, anchor, anchor + 3, ["video"])["video"]
        first = codes(clip)[0][1]
        assert codes(clip) == [(1, first + k, 0) for k in range(3)]


def test_a_file_that_begins_late_begins_with_its_first_frame(tmp_path: Path) -> None:
    encode(tmp_path / "a.mkv", video(1, 5, 0), [7 + n for n in range(5)], container="matroska")
    assert of_episode(open_video_folder(tmp_path), 0) == [(1, n, 0) for n in range(5)]


def test_the_most_common_rate_is_the_rate_of_all(tmp_path: Path) -> None:
    for number in range(2):
        encode(tmp_path / f"{number}.mp4", video(number, 6, 0), rate=10)
    encode(tmp_path / "fast.mp4", video(5, 13, 0), rate=20)
    store = open_video_folder(tmp_path)
    assert store.spec.fps == 10.0
    assert of_episode(store, 2) == [(5, n, 0) for n in range(0, 13, 2)]
    text = "1 of 3 files have another rate than 10 Hz, such as fast.mp4 with 20"
    assert any(text in finding.text for finding in store.findings())


def test_a_task_gives_the_rate(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", video(3, 13, 0), rate=20)
    store = open_video_folder(tmp_path, spec=replace(SPEC, fps=5.0))
    assert of_episode(store, 0) == [(3, n, 0) for n in (0, 4, 8, 12)]
    assert not store.native


def test_a_task_gives_the_size(tmp_path: Path) -> None:
    big = video(2, 4, 1).repeat(2, axis=1).repeat(2, axis=2)
    encode(tmp_path / "a.mp4", big)
    encode(tmp_path / "b.mp4", video(3, 4, 1))
    store = open_video_folder(tmp_path, spec=SPEC)
    assert of_episode(store, 0) == [(2, n, 1) for n in range(4)]
    assert of_episode(store, 1) == [(3, n, 1) for n in range(4)]


def test_a_turned_file_stands_upright(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", np.rot90(video(1, 3, 0), 1, axes=(1, 2)))
    turn(path, 90)
    assert of_episode(open_video_folder(tmp_path), 0) == [(1, n, 0) for n in range(3)]


def test_a_pickled_store_reads_on(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", video(1, 3, 0))
    store = open_video_folder(tmp_path)
    store.gather("video", np.array([0]))
    assert of_episode(pickle.loads(pickle.dumps(store)), 0) == [(1, n, 0) for n in range(3)]


@pytest.mark.parametrize(
    ("rate", "digits"), [(30, 6), (30000 / 1001, 6), (30000 / 1001, 3), (24, 3), (12.5, 6)]
)
def test_the_usual_rate_of_rounded_times(rate: float, digits: int) -> None:
    times = (np.arange(500) / rate).round(digits)
    assert usual_rate(times) == pytest.approx(rate, rel=1e-6)
    with_a_pause = np.concatenate([times, times + times[-1] + 60])
    assert usual_rate(with_a_pause) == pytest.approx(rate, rel=1e-6)


# --- what is left out, and told -------------------------------------------------------------------


def six_good(folder: Path) -> None:
    for number in range(6):
        encode(folder / f"{number}.mp4", video(number, 4, 0))


def sound_alone(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


def cut(path: Path) -> None:
    encode(path, video(9, 12, 0))
    path.write_bytes(path.read_bytes()[:600])


def bright(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.color_trc = 16
        for pixels in video(9, 4, 0):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())


LEFT_OUT = {
    "sound alone": (sound_alone, "x.mp4 has no moving pictures"),
    "a cut file": (cut, "x.mp4 cannot be decoded as a video"),
    "no video at all": (lambda path: path.write_bytes(b"?" * 99), "x.mp4 cannot be decoded"),
    "high dynamic range": (bright, "x.mp4 is of high dynamic range (PQ)"),
    "a slower file": (
        lambda path: encode(path, video(9, 4, 0), rate=5),
        "x.mp4 has 5 frames a second and 10 are wanted",
    ),
    "a single frame": (
        lambda path: encode(path, video(9, 1, 0)),
        "x.mp4 has a single frame",
    ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_file_that_cannot_be_used_is_left_out_and_told(tmp_path: Path, case: str) -> None:
    make, reason = LEFT_OUT[case]
    six_good(tmp_path)
    make(tmp_path / "x.mp4")
    store = open_video_folder(tmp_path)
    assert store.names == [f"{n}.mp4" for n in range(6)]
    told = [f.text for f in store.findings() if f.severity == "warning"]
    assert len(told) == 1
    assert told[0].startswith("left out: ")
    assert reason in told[0]


def test_the_same_video_twice_is_told(tmp_path: Path) -> None:
    six_good(tmp_path)
    shutil.copy(tmp_path / "2.mp4", tmp_path / "copy.mp4")
    assert "2.mp4 and copy.mp4 are the same video; keep one of them" in str(check_store(tmp_path))


# --- what is refused ------------------------------------------------------------------------------


def test_too_many_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    six_good(tmp_path)
    for name in ("x.mp4", "y.mp4"):
        (tmp_path / name).write_bytes(b"?")
    sentence = r"2 of 8 videos in .* cannot be used, and at most 20 % may be left out; the f"
    with pytest.raises(UserError, match=sentence):
        open_video_folder(tmp_path)
    assert len(open_video_folder(tmp_path, may_leave_out=0.5)) == 6


def test_no_file_that_can_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"?")
    with pytest.raises(UserError, match=r"1 of 1 videos in .* cannot be used"):
        open_video_folder(tmp_path, may_leave_out=1.0)


def test_sizes_that_differ_need_a_task(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", video(0, 4, 0))
    encode(tmp_path / "b.mp4", np.zeros((4, 64, 96, 3), np.uint8))
    with pytest.raises(UserError, match=r"one size, a\.mp4 is 48x32 and b\.mp4 96x64; name a task"):
        open_video_folder(tmp_path)


def test_another_shape_than_the_tasks_is_refused(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", video(0, 4, 0))
    with pytest.raises(UserError, match=r"a\.mp4 is 48x32, of another aspect ratio than the"):
        open_video_folder(tmp_path, spec=replace(SPEC, cameras={"video": (32, 32)}))


def test_a_task_with_actions_is_refused(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", video(0, 4, 0))
    action = ActionSpec(names=("x",), units=("m",), frame="ego", mode="delta", rate_hz=10.0)
    with pytest.raises(UserError, match="disagree on 'action'"):
        open_video_folder(tmp_path, spec=replace(SPEC, action=action))


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no video file"):
        open_video_folder(tmp_path)
