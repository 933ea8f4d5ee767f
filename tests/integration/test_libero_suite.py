"""LIBERO's tasks, sentences and initial states, in files laid out by hand."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.libero_worlds import CAN, LIFT, write_states, write_suite

from foreact.envs import libero
from foreact.envs.libero import LiberoEnv, rotation_vector
from foreact.envs.libero_states import read_initial_states
from foreact.envs.libero_suite import LIBERO10, installed_suite, read_tasks, task_told
from foreact.errors import UserError
from foreact.plugs import load_object
from foreact.tasks.libero10 import RELEASED, SINGLE, TASK

STATES = np.arange(12.0).reshape(3, 4) / 7


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(
        tmp_path, {LIFT: STATES, CAN: STATES[:, :3], **dict.fromkeys(LIBERO10, STATES)}
    )


# --- tasks ----------------------------------------------------------------------------------------


def test_tasks_say_what_to_do_in_two_forms(suite: Path) -> None:
    lift, can = read_tasks(suite, [LIFT, CAN])
    assert (lift.problem, lift.instruction("task")) == ("LIBERO_Lift", "lift the cube")
    assert lift.instruction("file") == "KITCHEN SCENE1 lift the cube"
    assert can.instruction("file") == "LIVING ROOM SCENE12 put the can into its bin"
    np.testing.assert_array_equal(lift.initial_states, STATES)
    assert can.initial_states.shape == (3, 3)
    for form in ("task", "file"):
        assert task_told([lift, can], can.instruction(form)) is can


def test_the_ten_tasks_are_in_order_and_each_has_a_world(suite: Path, monkeypatch) -> None:
    assert list(LIBERO10) == sorted(set(LIBERO10))
    assert len(LIBERO10) == len(SINGLE) == 10
    monkeypatch.setattr(libero, "installed_suite", lambda: suite)
    for short, name in zip(SINGLE, LIBERO10, strict=True):
        env = load_object(TASK.variants[short], "The environment")()
        assert [task.name for task in env.tasks] == [name]
        assert all(word in name for word in short.split("-") if word not in ("two", "mugs"))
    made = {
        (task.name, variant): load_object(path, "The environment")()
        for task in (TASK, RELEASED)
        for variant, path in {"": task.env, **task.variants}.items()
        if variant not in SINGLE
    }
    assert {key: (env.text, env.starts, len(env.tasks)) for key, env in made.items()} == {
        ("libero10", ""): ("task", "official", 10),
        ("libero10", "official"): ("task", "official", 10),
        ("libero10", "seeds"): ("task", "seeds", 10),
        ("libero10-released", ""): ("file", "seeds", 10),
        ("libero10-released", "official"): ("file", "official", 10),
        ("libero10-released", "seeds"): ("file", "seeds", 10),
    }


def test_no_tasks_and_unknown_ones_are_refused(suite: Path) -> None:
    with pytest.raises(UserError, match="at least one task, found none"):
        LiberoEnv(tasks=(), suite=suite)
    with pytest.raises(UserError, match=f"has no task '{LIFT}s'; did you mean '{LIFT}'"):
        LiberoEnv(tasks=(f"{LIFT}s",), suite=suite)
    with pytest.raises(UserError, match="told 'lift a cube'; did you mean 'lift the cube'"):
        task_told(read_tasks(suite, [LIFT, CAN]), "lift a cube")
    with pytest.raises(UserError, match=r"'starts' should be one of .*, found 'random'"):
        LiberoEnv(suite=suite, starts="random")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"'text' should be one of .*, found 'scene'"):
        LiberoEnv(suite=suite, text="scene")  # pyright: ignore[reportArgumentType]
    (suite / "bddl_files" / "libero_10" / f"{LIFT}.bddl").write_text("(define (problem A))")
    with pytest.raises(UserError, match=r"should say \(problem ...\) and \(:language ...\)"):
        read_tasks(suite, [LIFT])


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(UserError, match=r"LIBERO, which is not installed; .* constraints-libero"):
        installed_suite()
    root = tmp_path / "libero" / "libero"
    (root / "bddl_files").mkdir(parents=True)
    (tmp_path / "libero" / "__init__.py").write_text("raise RuntimeError('it was imported')")
    with pytest.raises(UserError, match="scenes and meshes are missing: they should lie in"):
        installed_suite()
    (root / "assets").mkdir()
    assert installed_suite() == root


# --- initial states -------------------------------------------------------------------------------


def test_states_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = write_states(tmp_path / "a.pruned_init", np.asfortranarray(STATES))
    np.testing.assert_array_equal(read_initial_states(path), STATES)
    np.save(tmp_path / "a.npy", STATES)
    np.testing.assert_array_equal(read_initial_states(tmp_path / "a.npy"), STATES)


class Mischief:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    path = write_states(tmp_path / "a.pruned_init", Mischief(tmp_path / "touched"))
    with pytest.raises(UserError, match="which no table of states needs"):
        read_initial_states(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (STATES.astype(np.float32), "numbers of type f4"),
        (STATES.astype(">f8"), "numbers in byte order >"),
        (np.array([{}], object), "numbers of type O8"),
        (STATES[0], r"should hold states float64 \(N, D\), found float64 \(4,\)"),
        (STATES.reshape(3, 2, 2), r"found float64 \(3, 2, 2\)"),
        (np.full((2, 3), np.nan), "holds NaN or infinite states"),
        ({"a": 1}, "damaged .*; install hf-libero again"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, sentence: str) -> None:
    path = write_states(tmp_path / "a.pruned_init", content)
    with pytest.raises(UserError, match=sentence):
        read_initial_states(path)


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There are no initial states at"):
        read_initial_states(tmp_path / "absent.pruned_init")
    whole = write_states(tmp_path / "a.pruned_init", STATES).read_bytes()
    (tmp_path / "cut.pruned_init").write_bytes(whole[:-40])
    with pytest.raises(UserError, match=r"cut\.pruned_init are damaged"):
        read_initial_states(tmp_path / "cut.pruned_init")
    body = pickle.dumps(STATES, protocol=2)
    with zipfile.ZipFile(tmp_path / "short.pruned_init", "w") as archive:
        archive.writestr("archive/data.pkl", body.replace(b"K\x03K\x04", b"K\x03K\x05"))
    with pytest.raises(UserError, match=r"96 bytes for an array of shape \(3, 5\)"):
        read_initial_states(tmp_path / "short.pruned_init")


# --- rotations ------------------------------------------------------------------------------------


def test_rotations_keep_their_sign_beyond_half_a_turn() -> None:
    axis = np.array([0.6, 0.0, 0.8])
    for angle in (0.3, np.pi - 0.01, np.pi + 0.01, 2 * np.pi - 0.3):
        quaternion = np.array([*(np.sin(angle / 2) * axis), np.cos(angle / 2)])
        np.testing.assert_allclose(rotation_vector(quaternion), angle * axis, atol=1e-6)
    np.testing.assert_array_equal(rotation_vector(np.array([0.0, 0.0, 0.0, 1.0])), np.zeros(3))
