"""LeRobot sets opened in place: the right picture, numbers and text for every row."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.coded_pictures import codes, encode, picture, video
from support.lerobot_worlds import (
    CAMERAS,
    LENGTHS,
    TASKS,
    TOP,
    WRIST,
    action_of,
    data_file,
    edit_info,
    edit_table,
    episodes_file,
    make_set,
    state_of,
    video_file,
    write_tasks,
)

from foreact.data.formats.lerobot.store import LeRobotStore, open_lerobot
from foreact.data.formats.replay_buffer import import_store
from foreact.data.stores.opening import open_episodes
from foreact.data.stores.store import open_store
from foreact.data.windows.loader import WindowDataset, batches
from foreact.data.windows.window import Window
from foreact.errors import UserError

N = sum(LENGTHS)


def require_right(store: LeRobotStore, cameras: tuple[str, ...] = ("top", "wrist")) -> None:
    """Every picture of every episode is its own."""
    for number, camera in enumerate(cameras):
        for episode, length in enumerate(LENGTHS):
            found = codes(store.read(episode, 0, length, [camera])[camera])
            assert found == [(episode, frame, number) for frame in range(length)]


def test_every_row_has_its_picture_numbers_and_text(tmp_path: Path) -> None:
    store = open_episodes(make_set(tmp_path / "set"))
    assert isinstance(store, LeRobotStore)
    assert store.lengths.tolist() == list(LENGTHS)
    assert store.spec.cameras == {"top": (32, 48), "wrist": (32, 48)}
    assert store.spec.state == {"state": ("a", "b")}
    assert store.spec.fps == 10.0
    assert store.native
    require_right(store)
    np.testing.assert_array_equal(store.all_rows("state"), state_of(N))
    np.testing.assert_array_equal(store.all_rows("action"), action_of(N))
    assert store.all_rows("action").dtype == np.float32
    assert store.instructions == list(TASKS)
    assert store.instruction_of(np.array([0, 4, 5, 15, 16])).tolist() == [0, 0, 1, 1, 0]
    assert store.info("text").tolist() == [TASKS[0], TASKS[1], TASKS[1], TASKS[0]]


def test_the_meaning_of_actions_is_unknown(tmp_path: Path) -> None:
    action = open_lerobot(make_set(tmp_path / "set")).spec.action
    assert action is not None
    assert (action.names, action.mode) == (("action_0", "action_1", "action_2"), "absolute")
    assert (action.frame, set(action.units)) == ("unknown", {"unitless"})


def test_rows_in_any_order_and_shape(tmp_path: Path) -> None:
    store = open_lerobot(make_set(tmp_path / "set"))
    rows = np.array([[21, 0, 11], [5, 5, 16]])
    pictures = store.gather("wrist", rows)
    assert pictures.shape == (2, 3, 32, 48, 3)
    assert codes(pictures.reshape(-1, 32, 48, 3)) == [
        (3, 5, 1), (0, 0, 1), (1, 6, 1), (1, 0, 1), (1, 0, 1), (3, 0, 1),
    ]  # fmt: skip


def test_discarded_takes_are_passed_over(tmp_path: Path) -> None:
    require_right(open_lerobot(make_set(tmp_path / "set", spare=3)))


def test_files_sort_by_number_beyond_three_digits(tmp_path: Path) -> None:
    files = (998, 999, 1000, 11000)
    root = make_set(tmp_path / "set", data_files=files, cameras=dict.fromkeys(CAMERAS, files))
    store = open_lerobot(root)
    require_right(store)
    np.testing.assert_array_equal(store.all_rows("state"), state_of(N))


def _drift(starts: list[float]) -> list[float]:
    return [start + 0.04 * (-1) ** i for i, start in enumerate(starts)]


def test_a_picture_is_the_nearest_within_half_a_frame(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    drifted = {f"videos__{TOP}__from_timestamp": _drift}
    for number in (0, 1):
        edit_table(episodes_file(root, number), **drifted)
    require_right(open_lerobot(root))


def test_stamps_of_another_rate_than_the_stated_are_followed(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", fps=29)  # pictures at 29 Hz
    edit_info(root, lambda info: info.update(fps=25))
    require_right(open_lerobot(root))


def test_stamps_rounded_to_float32_late_in_an_episode() -> None:
    from foreact.data.formats.lerobot.readers import snapped

    steps = np.arange(40_000)
    late = snapped((steps / 30).astype(np.float32), steps, 30.0)
    np.testing.assert_array_equal(late, steps / 30)
    clock = 1000.0 + steps / 30
    np.testing.assert_array_equal(snapped(clock, steps, 30.0), clock)


def test_windows_stay_inside_their_episode(tmp_path: Path) -> None:
    store = open_lerobot(make_set(tmp_path / "set"))
    window = Window(video={"top": (-2, 0, 2)}, pad_before=2, pad_after=2)
    batch = next(batches(WindowDataset(store, window, np.arange(4)), batch_size=22, seed=0))
    assert batch.index is not None
    assert len(batch.index) == N
    for clip, (episode, anchor) in zip(batch.video["top"], batch.index.tolist(), strict=True):
        expected = [(episode, min(max(anchor + o, 0), LENGTHS[episode] - 1), 0) for o in (-2, 0, 2)]
        assert codes(clip.permute(0, 2, 3, 1).numpy()) == expected


def test_workers_read_the_same(tmp_path: Path) -> None:
    store = open_lerobot(make_set(tmp_path / "set"))
    dataset = WindowDataset(store, Window(video={"wrist": (0, 1)}), np.arange(4))
    store.gather("wrist", np.array([3]))  # a decoder is open when workers are forked
    alone, helped = (batches(dataset, batch_size=6, seed=1, workers=w) for w in (0, 2))
    for _ in range(4):
        assert (next(alone).video["wrist"] == next(helped).video["wrist"]).all()


def test_a_pickled_store_opens_anew(tmp_path: Path) -> None:
    store = open_lerobot(make_set(tmp_path / "set"))
    store.gather("top", np.array([0]))
    copy = pickle.loads(pickle.dumps(store))
    require_right(copy)


# --- features -------------------------------------------------------------------------------------


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def image_feature() -> tuple[dict[str, Any], pa.Array]:
    pictures = [
        {"bytes": png(picture(e, frame, 7)), "path": None}
        for e, length in enumerate(LENGTHS)
        for frame in range(length)
    ]
    return {"dtype": "image", "shape": [3, 32, 48], "names": None}, pa.array(pictures)


def test_pictures_in_the_rows(tmp_path: Path) -> None:
    store = open_lerobot(make_set(tmp_path / "set", columns={"wrist_image": image_feature()}))
    assert store.spec.cameras["wrist_image"] == (32, 48)
    rows = np.array([21, 0, 4, 5])
    expected = np.stack([picture(*code) for code in ((3, 5, 7), (0, 0, 7), (0, 4, 7), (1, 0, 7))])
    np.testing.assert_array_equal(store.gather("wrist_image", rows), expected)


def test_numbers_of_every_kind(tmp_path: Path) -> None:
    flags = np.arange(N) % 3 == 0
    wide = np.arange(N * 6, dtype=np.float64).reshape(N, 2, 3)
    columns = {
        "next.done": ({"dtype": "bool", "shape": [1], "names": None}, pa.array(flags)),
        "observation.effort": (
            {"dtype": "float64", "shape": [1], "names": None},
            pa.array([[float(i)] for i in range(N)]),
        ),
        "observation.grid": (
            {"dtype": "float64", "shape": [2, 3], "names": None},
            pa.array(wide.tolist()),
        ),
        "observation.legs": (
            {"dtype": "int32", "shape": [2], "names": {"left": {"x": ["l"]}, "right": ["r"]}},
            vectors_of_ints(),
        ),
    }
    store = open_lerobot(make_set(tmp_path / "set", columns=columns))
    np.testing.assert_array_equal(store.all_rows("next.done")[:, 0], flags.astype(np.float32))
    np.testing.assert_array_equal(store.all_rows("effort"), np.arange(N)[:, None])
    np.testing.assert_array_equal(store.all_rows("grid"), wide.reshape(N, 6))
    assert store.spec.state["grid"][5] == "grid_5"
    assert store.spec.state["effort"] == ("effort",)
    assert store.spec.state["legs"] == ("l", "r")
    assert store.all_rows("legs").dtype == np.float32


def vectors_of_ints() -> pa.Array:
    return pa.array([[i, -i] for i in range(N)], pa.list_(pa.int32()))


def test_names_of_dimensions_by_their_place(tmp_path: Path) -> None:
    """As gamepads are recorded: {name: place}."""
    root = make_set(tmp_path / "set")
    names = {"grip": 2, "dx": 0, "dy": 1}
    edit_info(root, lambda info: info["features"]["action"].update(names=names))
    action = open_lerobot(root).spec.action
    assert action is not None
    assert action.names == ("dx", "dy", "grip")


def test_columns_that_lerobot_does_not_need(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    unused = {f"videos__{camera}__to_timestamp": None for camera in (TOP, WRIST)}
    for number in (0, 1):
        edit_table(episodes_file(root, number), **unused, length=None)
    assert open_lerobot(root).lengths.tolist() == list(LENGTHS)


def test_a_reward_comes_with_the_frame_that_it_led_to(tmp_path: Path) -> None:
    entry = {"dtype": "float32", "shape": [1], "names": None}
    column = pa.array(np.arange(N, dtype=np.float32) + 1)
    store = open_lerobot(make_set(tmp_path / "set", columns={"next.reward": (entry, column)}))
    assert store.spec.has_reward
    assert store.read(0, 0, 5, ["reward"])["reward"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert store.read(1, 0, 3, ["reward"])["reward"][:, 0].tolist() == [0, 6, 7]


def test_depth_and_texts_are_left_out(tmp_path: Path) -> None:
    texts = ({"dtype": "string", "shape": [1], "names": None}, pa.array(["x"] * N))
    root = make_set(tmp_path / "set", columns={"language": texts})
    edit_info(root, lambda info: info["features"][WRIST]["info"].update(is_depth_map=True))
    store = open_lerobot(root)
    assert list(store.spec.cameras) == ["top"]
    told = [finding.text for finding in store.findings()]
    assert f"feature '{WRIST}' of depth is left out" in told
    assert "feature 'language' of dtype 'string' is left out" in told


def test_depth_marked_in_the_older_way_is_left_out(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")

    def mark(info: dict[str, Any]) -> None:
        info["features"][WRIST].pop("info")
        info["features"][WRIST]["video_info"] = {"video.is_depth_map": True}

    edit_info(root, mark)
    assert list(open_lerobot(root).spec.cameras) == ["top"]


def test_names_that_would_be_alike_stay_whole(tmp_path: Path) -> None:
    columns = {
        "observation.top": (
            {"dtype": "float32", "shape": [1], "names": None},
            pa.array(np.zeros(N, np.float32)),
        )
    }
    store = open_lerobot(make_set(tmp_path / "set", columns=columns))
    assert set(store.spec.cameras) == {TOP, "wrist"}
    assert "observation.top" in store.spec.state


def test_columns_whose_names_begin_alike_are_told_apart(tmp_path: Path) -> None:
    extra = np.full((N, 2), 9, np.float32)
    columns = {
        "observation": (
            {"dtype": "float32", "shape": [1], "names": None},
            pa.array(np.full(N, 3, np.float32)),
        ),
        "observation.state.more": (
            {"dtype": "float32", "shape": [2], "names": None},
            pa.array(extra.tolist()),
        ),
    }
    store = open_lerobot(make_set(tmp_path / "set", columns=columns))
    np.testing.assert_array_equal(store.all_rows("state"), state_of(N))
    np.testing.assert_array_equal(store.all_rows("observation")[:, 0], np.full(N, 3))


def test_tasks_under_the_older_name_of_their_column(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    write_tasks(root, {"task_index": [0, 1], "__index_level_0__": ["one", "two"]})
    assert open_lerobot(root).instructions == ["one", "two"]


def test_the_instruction_may_change_within_an_episode(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    edit_table(data_file(root), task_index=lambda v: [0, 0, 1, 1, 1, *v[5:]])
    store = open_lerobot(root)
    assert store.instruction_of(np.arange(5)).tolist() == [0, 0, 1, 1, 1]
    assert "the instruction changes within 1 episodes" in [f.text for f in store.findings()]


def test_a_set_without_videos_actions_and_tasks(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", cameras={})
    edit_info(root, lambda info: (info.update(video_path=None), info["features"].pop("action")))
    (root / "meta" / "tasks.parquet").unlink()
    store = open_lerobot(root)
    assert (store.spec.cameras, store.spec.action, store.spec.has_text) == ({}, None, False)


def test_a_camera_of_files_with_few_key_frames(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", cameras={TOP: (0, 0, 0, 0)})
    frames = np.concatenate([video(e, n, 0) for e, n in enumerate(LENGTHS)])
    encode(video_file(root), frames, g="250", bf="3")
    require_right(open_lerobot(root), ("top",))
    assert pq.read_table(data_file(root)).num_rows == 12


def test_a_path_out_of_the_set_is_refused(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    edit_info(root, lambda info: info.update(data_path="../{chunk_index}/{file_index}.parquet"))
    with pytest.raises(UserError, match=r"data_path in .*info\.json leads out of the set"):
        open_lerobot(root)


def test_a_set_is_copied_into_a_store(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    edit_table(data_file(root), task_index=lambda v: [0, 0, 1, 1, 1, *v[5:]])
    account = import_store(root, tmp_path / "s.zarr", progress=False)
    copy, store = open_store(tmp_path / "s.zarr"), open_lerobot(root)
    assert copy.spec == store.spec
    np.testing.assert_array_equal(
        copy.gather("top", np.arange(N)), store.gather("top", np.arange(N))
    )
    np.testing.assert_array_equal(copy.all_rows("action"), action_of(N))
    assert copy.info("text").tolist() == [TASKS[0], TASKS[1], TASKS[1], TASKS[0]]
    assert "The instruction changes within 1 episodes; the first one of each" in str(account)
