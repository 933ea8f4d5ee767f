"""`foreact data check` finds what is wrong with a LeRobot set, and nothing in a sound one."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
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
    state_of,
    video_file,
)

from foreact.data.formats.lerobot.stats import number_stats
from foreact.data.formats.lerobot.store import open_lerobot
from foreact.data.inspect import check_store

N = sum(LENGTHS)


def told(root: Path, severity: str) -> list[str]:
    return [f.text for f in open_lerobot(root).findings() if f.severity == severity]


def write_stats(root: Path, values: np.ndarray) -> None:
    stats = {"observation.state": number_stats(values)}
    (root / "meta" / "stats.json").write_text(json.dumps(stats))


def test_a_sound_set_has_no_complaints(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    write_stats(root, state_of(N))
    report = check_store(root, windows=5)
    assert [str(f) for f in report.findings if f.severity != "note"] == []
    assert "time stamps agree with 10 Hz: 0.1 s from step to step" in str(report)


def shorter_video(root: Path) -> None:
    frames = np.concatenate([video(e, n, 0) for e, n in enumerate(LENGTHS)])
    encode(video_file(root), np.delete(frames, [3, 10], axis=0))


def shift(by: float) -> Callable[[Path], None]:
    column = f"videos__{TOP}__from_timestamp"
    return lambda root: edit_table(
        episodes_file(root), **{column: lambda v: [v[0], v[1] + by, v[2]]}
    )


def slower_stamps(root: Path) -> None:
    edit_info(root, lambda info: info.update(fps=12))


FINDINGS = {
    "counts": (
        lambda r: edit_info(r, lambda i: i.update(total_frames=30, total_tasks=0)),
        "warning",
        ["info.json says total_frames 30, there are 22", "info.json says total_tasks 0, there are"],
    ),
    "size": (
        lambda r: edit_info(r, lambda i: i["features"][TOP].update(shape=[64, 96, 3])),
        "warning",
        [f"'{TOP}' is 32 x 48, info.json says (64, 96, 3)"],
    ),
    "index": (
        lambda r: edit_table(data_file(r), index=lambda v: [*v[:-1], 99]),
        "warning",
        ["'index' of 1 rows does not count on, first at row 11"],
    ),
    "rate": (
        slower_stamps,
        "warning",
        ["time stamps of 18 of 22 rows are not frame_index / fps with the 12 of info.json; their"],
    ),
    "tasks": (
        lambda r: edit_table(data_file(r), task_index=lambda v: [*v[:-1], 7]),
        "error",
        ["task_index of 1 rows is none of the 2 tasks, first 7 at row 11"],
    ),
    "fewer pictures than rows": (
        shorter_video,
        "error",
        ["chunk-000/file-000.mp4 has 20 pictures for 22 rows: pictures slide", "lacks pictures of"],
    ),
    "drift": (
        shift(0.03),
        "warning",
        ["is up to 0.0300 s off the rows' times; here the nearest picture is taken"],
    ),
    "overlap": (
        shift(-0.2),
        "error",
        ["the pictures of episode 0 run into those of episode 1"],
    ),
    "a clock that stands still": (
        lambda r: edit_table(data_file(r), timestamp=lambda v: [0.0] * len(v)),
        "error",
        ["time stamps of 10 rows are no numbers, or do not rise within an episode"],
    ),
    "times that are no numbers": (
        lambda r: edit_table(data_file(r), timestamp=lambda v: [float("nan")] * len(v)),
        "error",
        ["time stamps of 12 rows are no numbers", "lacks pictures of 2 episodes, first episode 0"],
    ),
    "a file of another size": (
        lambda r: encode(video_file(r, WRIST, 2), np.zeros((6, 48, 64, 3), np.uint8)),
        "error",
        [f"{WRIST}/chunk-000/file-002.mp4 has pictures of (48, 64), the first file of (32, 48)"],
    ),
    "an undeclared column": (
        lambda r: edit_info(r, lambda i: i["features"].pop("action")),
        "warning",
        ["the data files have columns that info.json does not declare: action; they are left out"],
    ),
    "an orphan": (
        lambda r: shutil.copy(data_file(r), data_file(r, 7)),
        "warning",
        ["1 files belong to no episode, first data/chunk-000/file-007.parquet; lerobot would add"],
    ),
    "statistics": (
        lambda r: write_stats(r, state_of(N) * 2),
        "warning",
        ["meta/stats.json differs from the rows in observation.state; it is not used here"],
    ),
    "damaged statistics": (
        lambda r: (r / "meta" / "stats.json").write_text("{"),
        "warning",
        ["meta/stats.json is damaged"],
    ),
    "splits": (
        lambda r: edit_info(r, lambda i: i.update(splits={"train": "0:3", "val": "3:4"})),
        "note",
        ["info.json divides the episodes: {'train': '0:3', 'val': '3:4'}; not used"],
    ),
    "a picture for two steps": (
        lambda r: encode(video_file(r), np.zeros((8, 32, 48, 3), np.uint8), rate=3),
        "warning",
        ["steps the picture of the step before"],
    ),
}


@pytest.mark.parametrize("case", FINDINGS)
def test_it_finds(tmp_path: Path, case: str) -> None:
    change, severity, sentences = FINDINGS[case]
    root = make_set(tmp_path / "set")
    change(root)
    found = told(root, severity)
    for sentence in sentences:
        assert any(sentence in text for text in found), found


def test_discarded_takes_are_counted(tmp_path: Path) -> None:
    found = told(make_set(tmp_path / "set", spare=3), "note")
    text = f"videos/{TOP}/chunk-000/file-000.mp4 has 0.9 s of pictures between 3 pairs of episodes"
    assert any(t.startswith(text) for t in found), found


def test_a_true_rate_beside_a_rounded_one_overlaps_nothing(tmp_path: Path) -> None:
    """29.97 Hz in a set that says 29, as some converters write it: stamps and videos are right."""
    root = make_set(tmp_path / "set", fps=29.97, cameras={TOP: (0, 0, 0, 0)})
    edit_info(root, lambda info: info.update(fps=29))
    frames = np.concatenate([video(e, n, 0) for e, n in enumerate(LENGTHS)])
    pts = (np.arange(N) / 29.97 * 30000).round()
    encode(video_file(root), frames, pts=pts, rate=30, ticks=1000)
    begins = np.cumsum([0, *LENGTHS]) / 29.97
    column = f"videos__{TOP}__from_timestamp"
    edit_table(episodes_file(root), **{column: lambda v: begins[:3]})
    edit_table(episodes_file(root, 1), **{column: lambda v: begins[3:4]})
    assert told(root, "error") == []


def test_every_picture_in_the_rows_is_looked_at(tmp_path: Path) -> None:
    def png(height: int, mode: Any = np.uint8) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.full((height, 48), 9, mode)).save(file, format="PNG")
        return file.getvalue()

    values = [png(32)] * N
    values[5], values[9], values[14], values[20] = b"", png(32)[:60], png(16), png(32, np.uint16)
    feature = {"dtype": "image", "shape": [32, 48, 3], "names": None}
    column = pa.array([{"bytes": value, "path": None} for value in values])
    root = make_set(tmp_path / "set", columns={"image": (feature, column)})
    assert any(
        text.startswith("4 pictures of 'image' cannot be used; step 0 of '1' in ")
        and text.endswith("is damaged")
        for text in told(root, "error")
    )


def test_integers_that_float32_rounds_are_told(tmp_path: Path) -> None:
    stamps = pa.array(np.arange(N) + 2**60)
    entry = {"dtype": "int64", "shape": [1], "names": None}
    root = make_set(tmp_path / "set", columns={"observation.nanoseconds": (entry, stamps)})
    assert any("'nanoseconds' has integers up to 115292" in text for text in told(root, "warning"))


def test_a_value_that_is_none_is_told(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    edit_table(data_file(root), observation_state=lambda v: [[float("nan"), 0.0], *v[1:]])
    report = check_store(root, windows=2)
    assert not report.ok
    assert "stream 'state' has 1 NaN or infinite values, the first in episode 0 at step 0" in str(
        report
    )
