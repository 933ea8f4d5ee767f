"""Stores written as LeRobot sets: everything that lerobot needs, and back again unchanged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.coded_pictures import codes, video
from support.refusals import listing, refused

from foreact.cli import main
from foreact.data.formats.lerobot import video_writer
from foreact.data.formats.lerobot.export import export_lerobot
from foreact.data.formats.lerobot.store import LeRobotStore, open_lerobot
from foreact.data.formats.mp4_index import scan_video
from foreact.data.stores.store import ZarrStore, open_store
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec

__all__ = ["refused"]

LENGTHS = (6, 9, 4)
TEXTS = ("push", "lift", "push")
ACTION = ActionSpec(
    names=("x", "y"), units=("px", "px"), frame="world", mode="delta", rate_hz=10.0, high=(9.0, 9.0)
)
SPEC = StreamSpec(
    cameras={"top": (32, 48), "wrist": (32, 48)},
    fps=10.0,
    action=ACTION,
    state={"pos": ("a", "b", "c"), "grip": ("g",)},
    has_text=True,
    has_reward=True,
)


def write_store(path: Path, spec: StreamSpec = SPEC) -> ZarrStore:
    rng = np.random.default_rng(0)
    with StoreWriter(path, spec) as writer:
        for episode, length in enumerate(LENGTHS):
            steps: dict[str, np.ndarray] = {}
            for number, (camera, size) in enumerate(spec.cameras.items()):
                whole = video(episode, length, number)
                steps[camera] = whole[:, : size[0], : size[1]]
            for name, names in spec.state.items():
                steps[name] = rng.normal(size=(length, len(names))).astype(np.float32)
            if spec.action is not None:
                steps["action"] = rng.normal(size=(length, spec.action.dim)).astype(np.float32)
            if spec.has_reward:
                steps["reward"] = np.arange(length, dtype=np.float32)[:, None] / 4
            writer.append(steps, **({"text": TEXTS[episode]} if spec.has_text else {}))
    return open_store(path)


def export(tmp_path: Path, spec: StreamSpec = SPEC, **options: Any) -> tuple[ZarrStore, Path]:
    store = write_store(tmp_path / "s.zarr", spec)
    export_lerobot(store, tmp_path / "set", progress=False, **options)
    return store, tmp_path / "set"


def info_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "meta" / "info.json").read_text())


def episodes_of(root: Path) -> dict[str, list[Any]]:
    return pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pydict()


def require_same(store: ZarrStore, again: LeRobotStore) -> None:
    assert again.spec == store.spec
    assert again.lengths.tolist() == store.lengths.tolist()
    for name in store.streams:
        if name not in store.spec.cameras:
            np.testing.assert_array_equal(again.all_rows(name), store.all_rows(name))
    for number, camera in enumerate(store.spec.cameras):
        for episode, length in enumerate(LENGTHS):
            found = codes(again.read(episode, 0, length, [camera])[camera])
            assert found == [(episode, frame, number) for frame in range(length)]


def test_a_set_opens_as_the_store_that_it_was_made_of(tmp_path: Path) -> None:
    store, root = export(tmp_path)
    again = open_lerobot(root)
    require_same(store, again)
    assert again.instructions == ["push", "lift"]
    assert again.info("text").tolist() == list(TEXTS)
    assert [f for f in again.findings() if f.severity != "note"] == []
    assert open_lerobot(root, spec=SPEC).spec == SPEC


def test_pictures_change_only_by_what_the_codec_loses(tmp_path: Path) -> None:
    store, root = export(tmp_path)
    rows = np.arange(sum(LENGTHS))
    lost = open_lerobot(root).gather("top", rows).astype(int) - store.gather("top", rows)
    # Where blocks of colour meet, the halved colours blend.
    assert np.abs(lost).mean() < 2


def test_av1(tmp_path: Path) -> None:
    spec = StreamSpec(cameras={"top": (32, 48)}, fps=10.0)
    big = StreamSpec(cameras={"top": (64, 96)}, fps=10.0)
    with StoreWriter(tmp_path / "s.zarr", big) as writer:
        for episode, length in enumerate(LENGTHS):
            frames = video(episode, length, 0).repeat(2, axis=1).repeat(2, axis=2)
            writer.append({"top": frames})
    store = open_store(tmp_path / "s.zarr")
    export_lerobot(store, tmp_path / "set", codec="av1", task_text="go", progress=False)
    again = open_lerobot(tmp_path / "set")
    for episode, length in enumerate(LENGTHS):
        pictures = again.read(episode, 0, length, ["top"])["top"][:, ::2, ::2]
        assert codes(pictures) == [(episode, frame, 0) for frame in range(length)]
    assert spec.fps == again.spec.fps


@pytest.mark.parametrize("size", [(31, 48), (32, 47), (31, 47)])
def test_odd_sides_are_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    spec = StreamSpec(cameras={"top": size}, fps=10.0)
    store, root = export(tmp_path, spec, task_text="go")
    again = open_lerobot(root)
    assert again.spec.cameras == {"top": size}
    rows = np.arange(sum(LENGTHS))
    lost = again.gather("top", rows).astype(int) - store.gather("top", rows)
    assert np.abs(lost).mean() < 1
    feature = info_of(root)["features"]["observation.images.top"]
    assert feature["shape"] == [*size, 3]
    assert feature["info"]["video.pix_fmt"] == "yuv444p"


def test_info_says_everything(tmp_path: Path) -> None:
    info = info_of(export(tmp_path, robot="arm")[1])
    expected = {
        "codebase_version": "v3.0",
        "robot_type": "arm",
        "total_episodes": 3,
        "total_frames": 19,
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 10,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    assert {name: info[name] for name in expected} == expected
    assert isinstance(info["fps"], int)
    features = info["features"]
    assert features["action"] == {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    assert features["observation.grip"]["shape"] == [1]
    camera = features["observation.images.wrist"]
    assert camera["dtype"] == "video"
    assert camera["names"] == ["height", "width", "channels"]
    assert camera["info"]["video.codec"] == "h264"


def test_rows_are_as_lerobot_declares_them(tmp_path: Path) -> None:
    _, root = export(tmp_path)
    file = pq.ParquetFile(root / "data/chunk-000/file-000.parquet")
    declared = {n for n, f in info_of(root)["features"].items() if f["dtype"] != "video"}
    assert set(file.schema_arrow.names) == declared
    assert file.metadata.num_row_groups == 3
    table = file.read()
    types = {name: str(table.schema.field(name).type) for name in declared}
    assert types["action"] == "fixed_size_list<element: float>[2]"
    assert (types["observation.grip"], types["timestamp"]) == ("float", "float")
    assert {types[n] for n in ("index", "frame_index", "episode_index", "task_index")} == {"int64"}
    assert table["frame_index"].to_pylist() == [*range(6), *range(9), *range(4)]
    assert table["index"].to_pylist() == list(range(19))
    assert table["task_index"].to_pylist() == [0] * 6 + [1] * 9 + [0] * 4
    assert table["next.reward"].to_pylist()[:6] == [0.25, 0.5, 0.75, 1.0, 1.25, 0.0]


def test_episodes_say_where_their_pictures_lie(tmp_path: Path) -> None:
    table = episodes_of(export(tmp_path)[1])
    head = "videos/observation.images.top"
    assert table["episode_index"] == [0, 1, 2]
    assert table["length"] == [6, 9, 4]
    assert table["tasks"] == [["push"], ["lift"], ["push"]]
    assert table["dataset_from_index"] == [0, 6, 15]
    assert table["dataset_to_index"] == [6, 15, 19]
    assert table[f"{head}/from_timestamp"] == [0.0, 0.6, 1.5]
    assert table[f"{head}/to_timestamp"] == [0.6, 1.5, 1.9]
    assert table["meta/episodes/file_index"] == [0, 0, 0]
    assert table["stats/action/count"] == [[6], [9], [4]]


def test_the_texts_are_the_index_of_pandas(tmp_path: Path) -> None:
    schema = pq.read_schema(export(tmp_path)[1] / "meta" / "tasks.parquet")
    assert json.loads(schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert schema.names == ["task_index", "task"]


def test_statistics_are_those_of_the_rows(tmp_path: Path) -> None:
    store, root = export(tmp_path)
    stats = json.loads((root / "meta" / "stats.json").read_text())
    assert set(stats) == set(info_of(root)["features"])
    values = store.all_rows("pos").astype(np.float64)
    own = stats["observation.pos"]
    np.testing.assert_allclose(own["mean"], values.mean(0))
    np.testing.assert_allclose(own["std"], values.std(0))
    np.testing.assert_allclose(own["q90"], np.quantile(values, 0.9, axis=0))
    assert own["count"] == [19]
    colours = store.gather("top", np.arange(19)) / 255
    camera = stats["observation.images.top"]
    np.testing.assert_allclose(np.ravel(camera["mean"]), colours.mean((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(camera["std"]), colours.std((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(camera["max"]), [1, 1, 1])
    assert np.shape(camera["q01"]) == (3, 1, 1)
    assert camera["count"] == [19]


@pytest.mark.parametrize("fps", [12.5, 30000 / 1001, 59.94, 7.0])
def test_pictures_lie_exactly_on_the_rate(tmp_path: Path, fps: float) -> None:
    spec = StreamSpec(cameras={"top": (32, 48)}, fps=fps)
    _, root = export(tmp_path, spec, task_text="go")
    file = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    index = scan_video(file)
    np.testing.assert_allclose(index.times, np.arange(19) / fps, atol=1e-6, rtol=0)
    assert episodes_of(root)["videos/observation.images.top/from_timestamp"] == [
        0.0, 6 / fps, 15 / fps,
    ]  # fmt: skip
    assert {0, 6, 15} <= set(index.keys.tolist())
    with av.open(str(file)) as container:
        rate = container.streams.video[0].average_rate
        assert rate is not None
        assert abs(rate - Fraction(fps)) < 1e-4
    assert open_lerobot(root).spec.fps == fps


def test_files_end_where_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreact.data.formats.lerobot.export.MEGABYTE", 1)
    monkeypatch.setattr("foreact.data.formats.lerobot.export.FILES_PER_FOLDER", 2)
    store, root = export(tmp_path, data_mb=1, video_mb=1)
    files = [path.relative_to(root).as_posix() for path in root.rglob("file-*")]
    assert "data/chunk-001/file-000.parquet" in files
    assert "videos/observation.images.top/chunk-001/file-000.mp4" in files
    require_same(store, open_lerobot(root))


def test_numbers_alone_need_no_videos(tmp_path: Path) -> None:
    spec = StreamSpec(cameras={}, fps=5.0, state={"pos": ("a",)})
    store, root = export(tmp_path, spec, task_text="go")
    assert info_of(root)["video_path"] is None
    np.testing.assert_array_equal(open_lerobot(root).all_rows("pos"), store.all_rows("pos"))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has_text", "options", "sentence"),
    [
        (False, {}, r'has no instructions, and .*; say what is done with --task-text "\.\.\."'),
        (True, {"task_text": "go"}, "has instructions of its own; leave out --task-text"),
        (True, {"data_mb": 0}, "need a size of 1 MB or more, found 0 and 200"),
    ],
)
def test_refused(tmp_path: Path, has_text: bool, options: dict[str, Any], sentence: str) -> None:
    spec = StreamSpec(cameras={"top": (32, 48)}, fps=10.0, has_text=has_text)
    store = write_store(tmp_path / "s.zarr", spec)
    with pytest.raises(UserError, match=sentence):
        export_lerobot(store, tmp_path / "set", progress=False, **options)
    assert not (tmp_path / "set").exists()


def test_two_streams_of_one_name_are_refused(tmp_path: Path) -> None:
    spec = StreamSpec(cameras={"a": (32, 48)}, fps=10.0, state={"images.a": ("x",)})
    store = write_store(tmp_path / "s.zarr", spec)
    with pytest.raises(UserError, match=r"would be called 'observation\.images\.a'"):
        export_lerobot(store, tmp_path / "set", task_text="go", progress=False)


def test_nothing_is_left_of_an_export_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path / "s.zarr")
    before, real = listing(tmp_path), video_writer.VideoWriter.append

    def full(self: video_writer.VideoWriter, frames: np.ndarray) -> video_writer.VideoPlace:
        if len(frames) == LENGTHS[1]:
            raise OSError(28, "No space left on device")
        return real(self, frames)

    monkeypatch.setattr(video_writer.VideoWriter, "append", full)
    with pytest.raises(UserError, match=r"set could not be written \(.*No space left.*; make room"):
        export_lerobot(store, tmp_path / "set", progress=False)
    assert listing(tmp_path) == before


def test_the_command(
    tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(tmp_path / "s.zarr")
    words = ["data", "export-lerobot", "--store", "s.zarr", "--out", "set"]
    main(words)
    assert capsys.readouterr().out == "3 episodes, 19 steps, 2 tasks: set\n"
    assert re.match("set exists already; choose another folder", refused(*words))
