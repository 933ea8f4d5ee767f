"""LeRobot sets that cannot be read are refused in one sentence that names what is wrong."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.coded_pictures import encode, video
from support.lerobot_worlds import (
    LENGTHS,
    TOP,
    WRIST,
    data_file,
    edit_info,
    edit_table,
    episodes_file,
    make_set,
    video_file,
    write_tasks,
)

from foreact.data.formats.lerobot.store import open_lerobot
from foreact.data.stores.opening import open_episodes
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec

N = sum(LENGTHS)


def says(**entries: Any) -> Callable[[Path], None]:
    return lambda root: edit_info(root, lambda info: info.update(entries))


def lacks(*features: str) -> Callable[[Path], None]:
    return lambda root: edit_info(root, lambda i: [i["features"].pop(name) for name in features])


def episodes(**columns: Any) -> Callable[[Path], None]:
    return lambda root: edit_table(episodes_file(root), **columns)


def rows(**columns: Any) -> Callable[[Path], None]:
    return lambda root: edit_table(data_file(root), **columns)


def cut(file: Callable[[Path], Path], keep: float) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        data = file(root).read_bytes()
        file(root).write_bytes(data[: int(len(data) * keep)])

    return change


def without(file: Callable[[Path], Path]) -> Callable[[Path], None]:
    return lambda root: file(root).unlink()


AT_OPENING = {
    "v2.1": (says(codebase_version="v2.1"), "of v2.1.*lerobot.scripts.convert_dataset_v21_to_v30"),
    "v2.0": (says(codebase_version="v2.0"), "of v2.0, and v3.0 is what is read; convert"),
    "v4.0": (says(codebase_version="v4.0"), "version 'v4.0', and v3.0 is what is read"),
    "no rate": (says(fps=None), r"info\.json is damaged"),
    "rate of 0": (says(fps=0), r"info\.json is damaged \(fps is 0\)"),
    "no index": (lacks("index"), r"info\.json lacks the features \['index'\]"),
    "no template": (says(data_path="data/{nothing}"), "data_path in .* is no template of paths"),
    "no data file": (
        without(lambda r: data_file(r, 1)),
        r"file-001\.parquet is missing; copy",
    ),
    "no video": (
        without(lambda r: video_file(r, WRIST, 1)),
        r"wrist/chunk-000/file-001\.mp4 is missing \(1 of the 3 videos of 'observation.images.w",
    ),
    "no episodes": (
        lambda r: [episodes_file(r, n).unlink() for n in (0, 1)],
        r"meta/episodes holds no parquet file",
    ),
    "the second file of episodes": (
        without(lambda r: episodes_file(r, 1)),
        r"The episodes of .* have 16 rows and its 2 data files 22",
    ),
    "the first file of episodes": (
        without(lambda r: episodes_file(r, 0)),
        "should list episodes 0, 1, ... once each, episode 0 is missing",
    ),
    "an episode twice": (
        episodes(episode_index=lambda v: [0, 1, 1]),
        "once each, episode 1 is there more than once",
    ),
    "rows that leave a gap": (
        episodes(dataset_from_index=lambda v: [0, 6, 12]),
        r"episode 1 has the rows 6\.\.12, which do not follow",
    ),
    "rows of another episode": (
        rows(episode_index=lambda v: [0] * 4 + [1] * 8),
        "Row 4 of the data files of .* belongs to episode 1, meta/episodes says 0",
    ),
    "a recording that was interrupted": (
        cut(lambda r: data_file(r, 1), 0.7),
        r"file-001\.parquet is no whole parquet file",
    ),
    "no place in the video": (
        episodes(**{f"videos__{TOP}__from_timestamp": None}),
        f"lacks the column 'videos/{TOP}/from_timestamp'",
    ),
    "an empty place in the video": (
        episodes(**{f"videos__{TOP}__from_timestamp": lambda v: [0.0, None, 1.0]}),
        r"from_timestamp' of .* should hold 3 x 1 numbers, found 1 empty ones",
    ),
    "a place in the video that is no number": (
        episodes(**{f"videos__{TOP}__from_timestamp": lambda v: [0.0, float("nan"), 1.0]}),
        f"The videos of '{TOP}' in .* have a from_timestamp of nan for episode 1",
    ),
    "no info": (
        without(lambda r: r / "meta" / "info.json"),
        r"is no LeRobot set: .*info\.json is missing",
    ),
    "tasks out of order": (
        lambda r: write_tasks(r, {"task_index": [1, 0], "task": ["b", "a"]}),
        r"tasks\.parquet should have the numbers 0, 1, ... in order, found \[1, 0\]",
    ),
    "tasks without texts": (
        lambda r: write_tasks(r, {"task_index": [0, 1]}),
        r"tasks\.parquet has no column 'task' of texts",
    ),
    "tasks of numbers": (
        lambda r: write_tasks(r, {"task_index": [0, 1], "task": [5, 6]}),
        r"tasks\.parquet should hold texts, found \[5, 6\]",
    ),
}


@pytest.mark.parametrize("case", AT_OPENING)
def test_refused_when_it_is_opened(tmp_path: Path, case: str) -> None:
    change, sentence = AT_OPENING[case]
    root = make_set(tmp_path / "set")
    change(root)
    with pytest.raises(UserError, match=sentence) as refusal:
        open_episodes(root)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no LeRobot set: .*info\.json is missing"):
        open_lerobot(tmp_path)


WHEN_READ = {
    "a video shorter than its rows": (
        lambda r: encode(video_file(r), video(0, 9, 0)),
        "top",
        r"file-000\.mp4 has no picture at 2\.100 s, where episode 3 has a step",
    ),
    "a cut video": (
        cut(video_file, 0.5),
        "top",
        r"file-000\.mp4 (cannot be decoded as a video|is cut short)",
    ),
    "numbers of another length": (
        rows(observation_state=lambda v: [[1.0]] * len(v)),
        "state",
        r"'observation.state' of .* should hold 12 x 2 numbers, found 12 of type float64",
    ),
    "an empty number": (
        rows(observation_state=lambda v: [[1.0, None], *v[1:]]),
        "state",
        r"should hold 12 x 2 numbers, found 1 empty ones",
    ),
    "rows that are even only together": (
        rows(observation_state=lambda v: [[1.0], [1.0, 2.0, 3.0], *v[2:]]),
        "state",
        r"'observation.state' of .* should hold 12 x 2 numbers, found rows of several lengths",
    ),
    "times that are no numbers": (
        rows(timestamp=lambda v: [float("nan")] * len(v)),
        "top",
        r"file-000\.mp4 has no picture at nan s, where episode 0 has a step",
    ),
    "no column": (rows(observation_state=None), "state", "lacks the column 'observation.state'"),
}


@pytest.mark.parametrize("case", WHEN_READ)
def test_refused_when_it_is_read(tmp_path: Path, case: str) -> None:
    change, stream, sentence = WHEN_READ[case]
    root = make_set(tmp_path / "set")
    if case == "a cut video":  # whose first picture can still be seen
        noise = np.random.default_rng(0).integers(0, 256, (22, 32, 48, 3), np.uint8)
        encode(video_file(root), noise)
        store = open_lerobot(root)
        change(root)
    else:
        change(root)
        store = open_lerobot(root)
    with pytest.raises(UserError, match=sentence) as refusal:
        store.gather(stream, np.arange(N))
    assert "\n" not in str(refusal.value)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    encode(video_file(root, WRIST, 1), np.zeros((11, 48, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"file-001\.mp4 has pictures of \(48, 64\), the first"):
        open_lerobot(root).gather("wrist", np.array([6]))


def test_a_task_that_is_not_there_is_refused(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    edit_table(data_file(root), task_index=lambda v: [2, *v[1:]])
    with pytest.raises(UserError, match=r"step 0 of '0' in .* is of task 2, and the ta"):
        open_lerobot(root).instruction_of(np.arange(N))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"bytes": None, "path": "a.png"}, "'image' of row 0 in .* has no bytes, perhaps a path"),
        ({"bytes": b"no picture", "path": None}, "'image' of row 0 in .* cannot be decoded"),
    ],
)
def test_pictures_that_are_none(tmp_path: Path, value: dict[str, Any], sentence: str) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    feature = {"dtype": "image", "shape": [32, 48, 3], "names": None}
    root = make_set(tmp_path / "set", columns={"image": (feature, pa.array([value] * N, kind))})
    with pytest.raises(UserError, match=sentence):
        open_lerobot(root)


def test_depth_in_an_image_is_no_picture(tmp_path: Path) -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.full((32, 48), 4000, np.uint16)).save(file, format="PNG")
    feature = {"dtype": "image", "shape": [32, 48, 1], "names": None}
    column = pa.array([{"bytes": file.getvalue(), "path": None}] * N)
    root = make_set(tmp_path / "set", columns={"image": (feature, column)})
    with pytest.raises(UserError, match="is of mode I;16, as depth is, not of 8 bits a colour"):
        open_lerobot(root)


def test_without_pyarrow_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, real = make_set(tmp_path / "set"), builtins.__import__

    def no_arrow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_arrow)
    with pytest.raises(UserError, match=r'pip install "foreact\[lerobot\]"'):
        open_lerobot(root)


# --- a task's spec --------------------------------------------------------------------------------

ACTION = ActionSpec(
    names=("x", "y", "z"), units=("m",) * 3, frame="tool", mode="delta", rate_hz=10.0
)
SPEC = StreamSpec(
    cameras={"wrist": (32, 48)}, fps=10.0, action=ACTION, state={"state": ("a", "b")}, has_text=True
)


def test_a_task_says_what_the_streams_mean_and_which_are_read(tmp_path: Path) -> None:
    store = open_episodes(make_set(tmp_path / "set"), SPEC)
    assert store.spec == SPEC
    assert not store.native
    assert store.streams == ["wrist", "state", "action"]
    assert not store.has("top")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cameras": {"front": (32, 48)}}, r"has no camera 'front', .* it has \['top', 'wrist'\]"),
        ({"cameras": {"wrist": (64, 48)}}, "disagree on 'cameras'"),
        ({"fps": 20.0}, "disagree on 'fps'"),
        ({"state": {"pose": ("a",)}}, r"has no state 'pose', which the task has; it has \['state"),
        ({"state": {"state": ("a",)}}, "'state', has 2 dims and the task 1"),
        ({"state": {"state": ("b", "a")}}, "'state', calls dim 0 'a' and the task 'b'"),
        ({"action": replace(ACTION, names=("x",), units=("m",))}, "'action', has 3 dims and the"),
        ({"has_reward": True}, "has no rewards, and the task has"),
    ],
)
def test_a_task_of_other_streams_is_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    root = make_set(tmp_path / "set")
    with pytest.raises(UserError, match=sentence):
        open_episodes(root, replace(SPEC, **change))


def test_a_task_with_instructions_needs_some(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    (root / "meta" / "tasks.parquet").unlink()
    with pytest.raises(UserError, match="has no instructions, and the task has"):
        open_episodes(root, SPEC)


def test_other_json_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text(json.dumps([1, 2]))
    with pytest.raises(UserError, match=r"info\.json is damaged"):
        open_episodes(tmp_path)
