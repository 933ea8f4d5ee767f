"""LIBERO's route in closed loop and replay, on robosuite's scenes dressed as its tasks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.libero_worlds import (
    CAN,
    LIFT,
    SUITE,
    TASK,
    Reciter,
    build,
    make,
    physical_suite,
    write_demonstrations,
)

from foreact.commands.replay import replay
from foreact.data.formats.libero import open_libero
from foreact.envs.libero import LiberoEnv
from foreact.errors import UserError
from foreact.evals.closed_loop import closed_loop
from foreact.evals.replay import play_again

pytestmark = [
    pytest.mark.robosuite,
    pytest.mark.timeout(200),
    # Not by importing it: how to draw is chosen first.
    pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="no robosuite"),
]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = physical_suite(tmp_path_factory.mktemp("suite"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SUITE, str(folder))
        yield folder


@pytest.fixture(scope="module")
def files(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lift to its end and 12 steps of Can, controllers as after a reset to the first state."""
    folder = tmp_path_factory.mktemp("files") / "libero"
    return write_demonstrations(folder, suite, restored=True, lengths=(None, 12))


@pytest.fixture(scope="module")
def env(suite: Path) -> Iterator[LiberoEnv]:
    env = make()
    yield env
    env.close()


@pytest.mark.parametrize("pairing", ["seen", "reference"])
def test_recorded_actions_lead_where_they_led(env: LiberoEnv, files: Path, pairing) -> None:
    store = open_libero(files, TASK.spec, pairing=pairing)
    replayed = play_again(env, store, [0, 1], progress=False)
    for r in replayed:
        assert r.steps == r.recorded_steps
        assert set(r.drift) == {"ee_pos", "ee_ori", "gripper_states"}
        assert r.drift["ee_pos"].max() < 1e-3  # cm
        assert r.drift["ee_ori"].max() < 1e-2  # degrees
        assert min(db.min() for db in r.pictures.values()) > 50.0
        for camera in ("agentview_rgb", "eye_in_hand_rgb"):
            own = {view[1:]: db for view, db in r.first_picture.items() if view[0] == camera}
            assert max(own, key=lambda view: own[view]) == (camera, "upright")
    assert [r.score for r in replayed] == [r.recorded_score for r in replayed] == [1.0, 0.0]


def test_free_joints_cost_less_than_half_a_centimetre(
    env: LiberoEnv, suite: Path, tmp_path: Path
) -> None:
    folder = write_demonstrations(tmp_path / "a", suite, restored=False, lengths=(None, 12))
    store = open_libero(folder, TASK.spec)
    for r in play_again(env, store, [0, 1], progress=False):
        print(r.name, {name: (d.mean(), d.max()) for name, d in r.drift.items()})
        assert r.drift["ee_pos"].mean() < 0.5
        assert r.score == r.recorded_score


def test_the_command_replays_a_folder_of_tasks(suite: Path, files: Path, tmp_path: Path) -> None:
    replayed = replay(task="support.libero_worlds", data=files, out=tmp_path / "out")
    assert [r.score for r in replayed] == [1.0, 0.0]


def test_a_policy_is_told_what_to_do_and_scored(files: Path, suite: Path) -> None:
    # From the official states after settling, as the demonstrations; physics repeats itself.
    store = open_libero(files, TASK.spec)
    known = {str(store.info("text")[e]): store.recording(e)[1] for e in range(2)}
    result = closed_loop(
        "support.libero_worlds:make", Reciter(known), [0, 1], workers=0, videos=0, max_steps=40,
        progress=False,
    )  # fmt: skip
    assert [e.score for e in result.episodes] == [1.0, 0.0]
    swapped = dict(zip(known, reversed(known.values()), strict=True))
    wrong = closed_loop(
        "support.libero_worlds:make", Reciter(swapped), [0], workers=0, videos=0, max_steps=20,
        progress=False,
    )  # fmt: skip
    assert wrong.score.mean == 0.0


def test_seeds_decide_task_and_initial_state(suite: Path) -> None:
    env = LiberoEnv(tasks=(LIFT, CAN), suite=suite, simulator=build, image=False)
    first = env.reset(0)
    assert env.instruction == "lift the cube"
    env.step(env._world.hold(1.0))
    other = env.reset(2)
    assert env.instruction == "lift the cube"
    assert np.abs(other["ee_pos"] - first["ee_pos"]).max() > 1e-4
    env.reset(1)
    assert env.instruction == "put the can into its bin"
    again, cycled = env.reset(0), env.reset(6)  # of 3 states, the fourth is the first
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(first[name], cycled[name])
    # The hand is where the official state has it, up to what settling does.
    state = env.tasks[0].initial_states[0]
    env.reset(0)
    np.testing.assert_allclose(env.state()[1:8], state[1:8], atol=0.01)
    env.close()


def test_seeds_of_the_simulator_begin_new_episodes(suite: Path) -> None:
    env = LiberoEnv(
        tasks=(LIFT,), suite=suite, simulator=build, image=False, text="file", starts="seeds"
    )
    starts = [env.reset(seed)["ee_pos"] for seed in (7, 8, 7)]
    assert env.instruction == "KITCHEN SCENE1 lift the cube"
    np.testing.assert_array_equal(starts[0], starts[2])
    assert np.abs(starts[0] - starts[1]).max() > 1e-4
    env.close()


def test_the_robot_is_seen_as_libero_writes_it(env: LiberoEnv) -> None:
    seen = env.reset(0)
    assert {name: seen[name].shape for name in seen} == {
        "agentview_rgb": (128, 128, 3), "eye_in_hand_rgb": (128, 128, 3),
        "ee_pos": (3,), "ee_ori": (3,), "gripper_states": (2,),
    }  # fmt: skip
    assert abs(np.linalg.norm(seen["ee_ori"]) - np.pi) < 0.2  # the hand points down
    left, right = seen["gripper_states"]
    assert left > 0.02
    assert abs(left + right) < 1e-3
    closing = env._world.hold(1.0)
    for _ in range(6):
        seen = env.step(closing).obs
    assert seen["gripper_states"][0] < left - 0.005


def test_a_state_of_another_task_is_refused(env: LiberoEnv) -> None:
    env.choose("lift the cube")
    with pytest.raises(UserError, match="is it of another task"):
        env.restore(env.tasks[1].initial_states[0])
