"""DeepMind Control: seeds, repeated actions, pictures, and what
happens where nothing can be drawn.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foreact.envs import rendering
from foreact.envs.dmc import DMCEnv, make_cheetah_run, split_name
from foreact.envs.rendering import CHECKED, choose_library, load_suite
from foreact.errors import UserError
from foreact.evals.env_pool import EnvPool, Start
from foreact.tasks import cheetah_run, walker_walk
from foreact.worlds import Task


def wave(steps: int, dim: int = 6) -> np.ndarray:
    """(steps, dim) float32 actions within the bounds."""
    return np.sin(np.arange(steps * dim).reshape(steps, dim)).astype(np.float32)


@pytest.fixture(scope="module")
def blind() -> DMCEnv:
    """Walker walk without pictures."""
    return DMCEnv("walker", "walk", image=False)


def test_environment_shows_what_dm_control_draws_and_sums_the_rewards_of_a_repeated_action() -> (
    None
):
    env, ours, total = make_cheetah_run(), [], []
    pixels = env.reset(7)["pixels"]
    theirs = load_suite().load("cheetah", "run", task_kwargs={"random": 7})
    theirs.reset()
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, theirs.physics.render(84, 84, camera_id=0))
    for action in wave(4):
        out = env.step(action)
        ours.append(out.reward)
        total.append(sum(theirs.step(action).reward for _ in range(2)))
        assert not out.terminated
    np.testing.assert_array_equal(out.obs["pixels"], theirs.physics.render(84, 84, camera_id=0))
    np.testing.assert_allclose(ours, total, rtol=1e-12)
    assert env.render().shape == (240, 240, 3)
    env.close()


@pytest.mark.parametrize("task", [cheetah_run.TASK, walker_walk.TASK], ids=lambda task: task.name)
def test_tasks_say_what_their_simulator_is(task: Task) -> None:
    domain, _, name = task.name.partition("-")
    env = DMCEnv(domain, name, image=False)
    assert task.spec == env.spec
    assert (env.max_steps, task.score) == (500, "sum")


def test_seed_alone_decides_whatever_ran_before() -> None:
    used, fresh = (DMCEnv("walker", "walk", size=16, shadows=False) for _ in range(2))
    used.reset(1)
    for action in wave(3):
        used.step(action)
    np.testing.assert_array_equal(used.reset(5)["pixels"], fresh.reset(5)["pixels"])
    for action in wave(3):
        a, b = used.step(action), fresh.step(action)
        np.testing.assert_array_equal(a.obs["pixels"], b.obs["pixels"])
        assert a.reward == b.reward
    assert not np.array_equal(used.reset(6)["pixels"], fresh.reset(5)["pixels"])


def test_shadows_change_the_picture_and_nothing_else() -> None:
    shaded, plain = (DMCEnv("walker", "walk", size=48, shadows=s) for s in (True, False))
    a, b = shaded.reset(0)["pixels"], plain.reset(0)["pixels"]
    assert 0 < np.abs(a.astype(int) - b).mean() < 20
    assert shaded.step(wave(1)[0]).reward == plain.step(wave(1)[0]).reward


def test_episode_ends_after_its_steps_and_has_to_be_begun_again(blind: DMCEnv) -> None:
    blind.reset(0)
    ends = [blind.step(action).terminated for action in np.zeros((blind.max_steps, 6))]
    assert ends == [False] * 499 + [True]
    with pytest.raises(UserError, match="is over or was not begun; call reset before step"):
        blind.step(np.zeros(6))


def test_actions_beyond_the_bounds_act_as_the_bounds(blind: DMCEnv) -> None:
    rewards = []
    for action in (np.full(6, 9.0), np.ones(6)):
        blind.reset(2)
        rewards.append([blind.step(action).reward for _ in range(3)])
    assert rewards[0] == rewards[1]


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (np.zeros(5), r"shape \(6,\), found \(5,\)"),
        (np.full(6, np.nan), "finite action, found .*check the policy"),
    ],
)
def test_impossible_actions_are_refused(blind: DMCEnv, action: np.ndarray, sentence: str) -> None:
    blind.reset(0)
    with pytest.raises(UserError, match=sentence):
        blind.step(action)


def test_any_task_of_the_suite_goes_by_its_name() -> None:
    assert split_name("dmc/cheetah_run") == ("cheetah", "run")
    assert split_name("cup_catch") == ("ball_in_cup", "catch")
    cup = DMCEnv(*split_name("dmc/ball_in_cup_catch"), size=8, shadows=False, action_repeat=4)
    assert cup.reset(0)["pixels"].shape == (8, 8, 3)
    assert cup.spec.action is not None
    assert (cup.spec.action.dim, cup.max_steps, cup.spec.fps) == (2, 250, pytest.approx(12.5))
    assert DMCEnv("lqr", "lqr_2_1", image=False).max_steps == 500, (
        "a task without a limit of its own"
    )
    with pytest.raises(UserError, match="no task 'cheetah_rum'; try cheetah_run"):
        split_name("dmc/cheetah_rum")
    with pytest.raises(UserError, match="no task 'cheetah_fly'; try cheetah_run"):
        DMCEnv("cheetah", "fly")
    with pytest.raises(UserError, match="has 2 cameras, found camera 2"):
        DMCEnv("cheetah", "run", camera=2)


def test_worker_processes_show_the_same() -> None:
    path = "foreact.envs.dmc:make_cheetah_run_plain"
    seen = []
    for workers in (0, 1):
        pool = EnvPool(path, workers=workers)
        first = pool.start({0: Start(3)})[0]["pixels"]
        played = pool.play({0: wave(2)})[0]
        seen.append((first, played.observations[-1]["pixels"], played.rewards))
        pool.close()
    for a, b in zip(*seen, strict=True):
        np.testing.assert_array_equal(a, b)


# --- where nothing can be drawn -------------------------------------------------------------------


def test_without_any_opengl_the_command_ends_in_one_sentence(tmp_path: Path) -> None:
    loader = tmp_path / "OpenGL" / "__init__.py"
    loader.parent.mkdir()
    loader.write_text("raise ImportError('Unable to load EGL library')\n")
    command = [
        str(Path(sys.executable).with_name("foreact")),
        "data",
        "collect",
        "--env",
        "dmc/cheetah_run",
    ]
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in {"MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY", CHECKED}
    }
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "foreact: MuJoCo cannot draw with MUJOCO_GL unset (egl: ImportError: Unable to load"
    )
    assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A fresh process without MUJOCO_GL and without a display."""
    for name in ("MUJOCO_GL", CHECKED, "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "dm_control._render", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    return monkeypatch


def works(*names: str) -> Callable[[str, str], str | None]:
    return lambda name, probe: None if name in names else "no such library"


def test_first_library_that_draws_is_chosen_and_inherited(undecided: pytest.MonkeyPatch) -> None:
    undecided.setattr(rendering, "_try", works("osmesa"))
    assert choose_library() == os.environ["MUJOCO_GL"] == "osmesa"
    undecided.setattr(
        rendering, "_try", works()
    )  # a worker that inherits the choice does not try again
    assert choose_library() == "osmesa"


def test_a_display_is_tried_first_and_left_where_it_is_stale(undecided: pytest.MonkeyPatch) -> None:
    undecided.setenv("DISPLAY", ":99")
    undecided.setattr(rendering, "_try", works("", "egl"))
    assert choose_library() == ""
    assert "MUJOCO_GL" not in os.environ
    undecided.setattr(rendering, "_try", works("egl"))
    assert choose_library() == os.environ["MUJOCO_GL"] == "egl"


def test_a_library_that_was_asked_for_is_not_replaced(undecided: pytest.MonkeyPatch) -> None:
    undecided.setenv("MUJOCO_GL", "osmesa")
    undecided.setattr(rendering, "_try", works("egl"))
    with pytest.raises(
        UserError, match=r"MUJOCO_GL set to osmesa \(no such library\); install an OpenGL library"
    ):
        choose_library()


def test_whoever_imported_dm_control_has_chosen(undecided: pytest.MonkeyPatch) -> None:
    undecided.setitem(sys.modules, "dm_control._render", rendering)
    undecided.setattr(rendering, "_try", works("egl"))
    with pytest.raises(UserError, match=r"MUJOCO_GL unset .* before dm_control is imported"):
        choose_library()


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r'dm_control is missing; run `pip install "foreact\[dmc\]"`'
    ):
        load_suite.__wrapped__()
