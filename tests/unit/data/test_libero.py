"""LIBERO's files: upright, each picture with the action done after it, instructions in words."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.manipulation_files import (
    ENV_ARGS,
    LIBERO_FILES,
    SIZE,
    arm_actions,
    hand,
    libero_demo,
    picture,
    stamps,
    write_demos,
    write_libero,
    write_robomimic,
)

from foreact.data.formats.libero import LiberoStore, is_libero, open_libero
from foreact.data.formats.libero_cache import is_libero_cache
from foreact.data.formats.robomimic import is_robomimic
from foreact.data.formats.robomimic_actions import to_poses
from foreact.data.formats.robomimic_file import read_demo_file
from foreact.data.formats.robomimic_spec import resolve_flip
from foreact.data.stores.opening import open_episodes
from foreact.errors import UserError
from foreact.runs.stores import open_task_store
from foreact.tasks import find_task

TASK = find_task("libero10")
SPEC = dataclasses.replace(TASK.spec, cameras=dict.fromkeys(TASK.spec.cameras, (SIZE, SIZE)))
FRONT, WRIST = "agentview_rgb", "eye_in_hand_rgb"
WORDS = ["turn on the stove", "put the mug on the plate"]
WITH_SCENE = ["KITCHEN SCENE3 turn on the stove", "LIVING ROOM SCENE10 put the mug on the plate"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files with goals as actions, of 5 and 7 steps each."""
    return write_libero(tmp_path / "libero_10", mode="absolute")


def test_each_picture_goes_with_the_action_done_after_it(folder: Path) -> None:
    store = open_episodes(folder, SPEC)
    assert isinstance(store, LiberoStore)
    assert store.lengths.tolist() == [4, 6, 4, 6]
    for episode, length in enumerate((5, 7, 5, 7)):
        read = store.read(episode, 0, length - 1, store.streams)
        # Frame t + 1 is what action t led to; action t + 1 was done after it.
        assert stamps(read[FRONT]) == [(episode, t, 0) for t in range(1, length)]
        assert stamps(read[WRIST]) == [(episode, t, 1) for t in range(1, length)]
        np.testing.assert_allclose(
            read["action"], to_poses(arm_actions(episode, length, "absolute"))[1:], atol=1e-6
        )
        positions = hand(episode, length + 1)[0]
        np.testing.assert_allclose(read["ee_pos"], positions[1:length], atol=1e-6)


def test_the_reference_pairs_rows_as_they_are_stored(folder: Path) -> None:
    store = open_libero(folder, SPEC, pairing="reference")
    assert store.lengths.tolist() == [5, 7, 5, 7]
    read = store.read(1, 0, 7, [FRONT, "action"])
    assert stamps(read[FRONT]) == [(1, t, 0) for t in range(1, 8)]
    np.testing.assert_allclose(read["action"], to_poses(arm_actions(1, 7, "absolute")), atol=1e-6)


def test_states_are_from_before_the_first_action_of_the_episode(folder: Path) -> None:
    # Row t of `states` counts t: it is from before action t.
    assert open_libero(folder, SPEC).initial_state(2)[0] == 201.0
    assert open_libero(folder, SPEC, pairing="reference").initial_state(2)[0] == 200.0
    states = open_libero(folder, SPEC).info("initial_state")
    assert (states.dtype, states.shape) == (np.float64, (4, 4))


def test_states_of_several_lengths_are_read_one_by_one(folder: Path) -> None:
    demo = libero_demo(0, 5, mode="absolute")
    demo["states"] = np.ones((5, 9))
    write_demos(folder / "KITCHEN_SCENE9_open_the_door_demo.hdf5", {"demo_0": demo})
    store = open_libero(folder, SPEC)
    assert "initial_state" not in store.info_names
    assert [len(store.initial_state(episode)) for episode in range(5)] == [4, 4, 9, 4, 4]
    with pytest.raises(UserError, match="no 'initial_state' per episode"):
        store.info("initial_state")


@pytest.mark.parametrize("instruction", [True, False], ids=["attribute", "name"])
def test_instructions_leave_out_the_scene(tmp_path: Path, instruction: bool) -> None:
    store = open_libero(write_libero(tmp_path / "a", instruction=instruction, mode="absolute"))
    assert store.instructions == WORDS
    assert store.instruction_of(np.array([0, 9, 10, 19])).tolist() == [0, 0, 1, 1]
    assert store.attrs["text_source"] == "task"


def test_the_reference_reads_instructions_off_the_names_of_files(folder: Path) -> None:
    store = open_libero(folder, SPEC, text="file")
    assert store.instructions == WITH_SCENE
    assert store.attrs["text_source"] == "file"
    assert pickle.loads(pickle.dumps(store)).instructions == WITH_SCENE


def test_letters_of_an_instruction_are_put_together(tmp_path: Path) -> None:
    attrs = {
        "env_args": json.dumps(ENV_ARGS),
        "problem_info": json.dumps({"language_instruction": list("close it")}),
    }
    path = tmp_path / "a_demo.hdf5"
    write_demos(path, {"demo_0": libero_demo(0, 3)}, attrs=attrs)
    assert open_libero(path).instructions == ["close it"]


@pytest.mark.parametrize("text", ["file", "task"])
def test_a_name_without_words_is_refused(tmp_path: Path, text: Any) -> None:
    path = write_demos(tmp_path / "demo.hdf5", {"demo_0": libero_demo(0, 3)})
    with pytest.raises(UserError, match=r"demo.hdf5 holds no instruction; call it as LIBERO does"):
        open_libero(path, text=text)


def test_files_come_by_name_and_episodes_are_called_after_them(folder: Path) -> None:
    (folder / f"._{LIBERO_FILES[0]}").write_bytes(bytes(100))  # of a Mac
    store = open_libero(folder, SPEC)
    assert [name.rsplit("/")[0] for name in store.names[::2]] == [n[:-5] for n in LIBERO_FILES]
    assert store.names[1].endswith("turn_on_the_stove_demo/demo_1")


def test_half_a_turn_is_an_option_and_mirrors(folder: Path) -> None:
    shown = open_libero(folder, SPEC, flip="turn").read(0, 0, 1, [FRONT])[FRONT][0]
    np.testing.assert_array_equal(shown, picture(0, 1, 0)[:, ::-1])
    stored = open_libero(folder, SPEC, flip="none").read(0, 0, 1, [FRONT])[FRONT][0]
    np.testing.assert_array_equal(stored, picture(0, 1, 0)[::-1])


@pytest.mark.parametrize(
    ("convention", "flip"), [("opengl", "vertical"), ("opencv", "none"), (None, "vertical")]
)
def test_the_convention_of_the_file_comes_before_the_usual_one(
    tmp_path: Path, convention: str | None, flip: str
) -> None:
    attrs = {} if convention is None else {"macros_image_convention": convention}
    path = write_demos(tmp_path / "x_demo.hdf5", {"demo_0": libero_demo(0, 3)}, attrs=attrs)
    assert resolve_flip("auto", read_demo_file(path), is_libero=True) == flip


def test_deltas_are_not_taken_for_goals(tmp_path: Path) -> None:
    original = write_libero(tmp_path / "original")
    with pytest.raises(
        UserError, match=r"KITCHEN.* are delta by their values, those of the task are abs"
    ):
        open_libero(original, SPEC)
    store = open_libero(original)
    assert store.spec.action is not None
    assert (store.spec.action.mode, store.spec.action.dim) == ("delta", 7)
    assert store.spec.has_text


def test_a_demonstration_of_one_step_has_no_pair(folder: Path) -> None:
    write_demos(folder / "x_demo.hdf5", {"demo_0": libero_demo(0, 1, mode="absolute")})
    with pytest.raises(UserError, match="has 1 step, whose action was done before its picture"):
        open_libero(folder, SPEC)


def test_what_is_libero_is_seen_by_its_marks(folder: Path, tmp_path: Path) -> None:
    other = write_robomimic(tmp_path / "other" / "a.hdf5")
    for path in (folder, folder / LIBERO_FILES[0]):
        assert is_libero(path)
    for path in (other, other.parent, tmp_path, tmp_path / "none"):
        assert not is_libero(path)
    assert is_robomimic(other)


def test_a_task_says_how_its_files_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREACT_CACHE", str(tmp_path / "cache"))
    released = dataclasses.replace(find_task("libero10-released"), spec=SPEC)
    store = open_task_store(released, folder)
    assert (store.instructions, store.lengths.tolist()) == (WITH_SCENE, [5, 7, 5, 7])
    assert open_task_store(dataclasses.replace(TASK, spec=SPEC), folder).instructions == WORDS
    with pytest.raises(
        UserError, match=r"'libero', as .* without an option 'texts'; did you mean 'text'"
    ):
        open_episodes(folder, SPEC, options={"libero": {"texts": "file"}})
    with pytest.raises(UserError, match=r"'text' should be one of \('task', 'file'\), found 'x'"):
        open_episodes(folder, SPEC, options={"libero": {"text": "x"}, "robomimic": {"mask": "a"}})


def test_empty_folders_and_files_cut_short_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.hdf5 file"):
        open_libero(tmp_path)
    second = folder / LIBERO_FILES[1]
    os.truncate(second, second.stat().st_size // 2)
    with pytest.raises(UserError, match=rf"{LIBERO_FILES[1]} is no whole HDF5 file"):
        open_episodes(folder, SPEC)


def test_the_cache_of_the_reference_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libero_10_clip.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/language/.zarray", "{}")
    folder = tmp_path / "unpacked.zarr"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    for cache in (path, folder):
        with pytest.raises(UserError, match=r"is UVA's cache .* give the folder of HDF5 files"):
            open_episodes(cache, SPEC)


def test_a_zip_that_no_reader_knows_is_no_cache(tmp_path: Path) -> None:
    """Recognising a format is not the place to refuse a damaged file."""
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 148  # needs version 14.8 of the format
    path.write_bytes(data)
    assert not is_libero_cache(path)
