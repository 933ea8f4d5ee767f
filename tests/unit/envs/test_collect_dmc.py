"""Collections of DeepMind Control: what a row means, prefixes that are
mixed, runs that go on, processes that agree.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foreact.cli import main
from foreact.data.stores.store import ZarrStore, open_store
from foreact.envs import collect_dmc
from foreact.envs.collect import FIRST_TEST_SEED
from foreact.envs.collect_dmc import Demonstrator, Job, Played, collect_store, grades, play
from foreact.envs.dmc import CHEETAH_RUN_SPEC, DMCEnv
from foreact.envs.mppi import MPPIConfig
from foreact.errors import UserError

STEPS = 8
QUIET = {"shadows": False, "workers": 1, "progress": False}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> DMCEnv:
    """Episodes of STEPS decisions, and planners that think little."""
    env = DMCEnv("cheetah", "run", shadows=False)
    env._env._step_limit = STEPS * env.action_repeat
    monkeypatch.setattr(collect_dmc, "_env", lambda name, shadows: env)
    for grade in ("medium", "expert"):
        little = Demonstrator(plan=MPPIConfig(samples=4, horizon=2), noise=0.1)
        monkeypatch.setitem(collect_dmc.DEMONSTRATORS, ("cheetah_run", grade), little)
    return env


def assert_same(a: ZarrStore, b: ZarrStore) -> None:
    np.testing.assert_array_equal(a.lengths, b.lengths)
    for name in ("seed", "grade", "noise", "score"):
        np.testing.assert_array_equal(a.info(name), b.info(name))
    for episode, length in enumerate(a.lengths):
        x, y = (s.read(episode, 0, length, ["pixels", "action", "reward"]) for s in (a, b))
        for stream in x:
            np.testing.assert_array_equal(
                x[stream], y[stream], err_msg=f"{stream} of episode {episode}"
            )


def test_a_row_holds_the_reward_that_led_to_it_and_the_action_that_follows(
    short: DMCEnv, tmp_path: Path
) -> None:
    store = open_store(
        collect_store("dmc/cheetah_run", "mixed", 3, tmp_path / "s.zarr", first_seed=5, **QUIET)
    )
    assert store.spec == CHEETAH_RUN_SPEC
    assert store.attrs["shadows"] is False
    np.testing.assert_array_equal(store.lengths, [STEPS + 1] * 3)
    np.testing.assert_array_equal(store.info("seed"), [5, 6, 7])
    np.testing.assert_array_equal(store.info("grade"), ["random", "medium", "expert"])
    np.testing.assert_allclose(store.info("noise"), [0.0, 0.1, 0.1])
    for episode in range(3):
        rows = store.read(episode, 0, STEPS + 1, ["pixels", "action", "reward"])
        np.testing.assert_array_equal(rows["pixels"][0], short.reset(5 + episode)["pixels"])
        assert rows["reward"][0] == 0
        for step in range(STEPS):
            out = short.step(rows["action"][step])
            np.testing.assert_array_equal(rows["pixels"][step + 1], out.obs["pixels"])
            assert rows["reward"][step + 1, 0] == pytest.approx(out.reward, rel=1e-6)
        np.testing.assert_array_equal(rows["action"][-1], np.zeros(6))
        assert store.info("score")[episode] == pytest.approx(rows["reward"].sum())


def test_any_prefix_of_a_mixed_set_is_mixed() -> None:
    assert grades("mixed", 5) == ["random", "medium", "expert", "random", "medium"]
    assert grades("expert", 2) == ["expert", "expert"]


def test_stopped_collection_goes_on_and_can_be_extended(
    short: DMCEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect_store("dmc/cheetah_run", "mixed", 4, tmp_path / "whole.zarr", **QUIET)
    path = tmp_path / "parts.zarr"

    def dies_at_2(job: Job) -> Played:
        if job.seed == 2:
            raise KeyboardInterrupt
        return play(job)

    monkeypatch.setattr(collect_dmc, "play", dies_at_2)
    with pytest.raises(KeyboardInterrupt):
        collect_store("dmc/cheetah_run", "mixed", 3, path, **QUIET)
    monkeypatch.setattr(collect_dmc, "play", play)
    assert len(open_store(path)) == 2
    collect_store("dmc/cheetah_run", "mixed", 3, path, **QUIET)
    collect_store("dmc/cheetah_run", "mixed", 4, path, **QUIET)
    assert_same(open_store(path), open_store(whole))


@pytest.mark.parametrize("other", [{"policy": "random"}, {"first_seed": 9}, {"shadows": True}])
def test_store_of_another_collection_is_left_alone(
    short: DMCEnv, tmp_path: Path, other: dict
) -> None:
    asked = {"policy": "mixed", "episodes": 1, "path": tmp_path / "s.zarr", **QUIET}
    collect_store("dmc/cheetah_run", **asked)
    with pytest.raises(UserError, match="holds another collection"):
        collect_store("dmc/cheetah_run", **{**asked, "episodes": 2, **other})
    assert len(open_store(tmp_path / "s.zarr")) == 1


def play_shortly(job: Job) -> Played:
    """`play` cut to STEPS decisions; at the top of the module, where worker processes find it."""
    env = collect_dmc._env(job.name, job.shadows)
    env._env._step_limit = STEPS * env.action_repeat
    return play(job)


def test_processes_and_threads_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_dmc, "play", play_shortly)
    how = {"shadows": False, "progress": False}
    stores = [
        open_store(
            collect_store("dmc/cheetah_run", "mixed", 3, tmp_path / f"{n}.zarr", workers=n, **how)
        )
        for n in (1, 2)
    ]
    assert_same(*stores)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["--env", "dmc/cheetah_run", "--first-seed", str(FIRST_TEST_SEED)],
            "Seeds from 100000 on are test seeds",
        ),
        (["--env", "dmc/cheetah_run", "--episodes", "0"], "Expected episodes >= 1"),
        (
            ["--env", "dmc/cheetah_jump"],
            "dm_control's suite has no task 'cheetah_jump'; try cheetah_run",
        ),
        (
            ["--env", "dmc/cartpole_balance"],
            "Only cheetah_run and walker_walk have planners (expert, medium); play ",
        ),
        (["--env", "dmc/cheetah_run", "--workers", "0"], "Expected at least one worker"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_store(
    argv: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["data", "collect", "--out", str(tmp_path / "s.zarr"), *argv])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"foreact: {sentence}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv",
    [
        ["--env", "dmc/cheetah_run", "--noise", "3"],
        ["--env", "pusht", "--policy", "expert"],
        ["--env", "pusht", "--no-shadows"],
    ],
)
def test_options_of_another_simulator_are_unknown(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["data", "collect", "--out", str(tmp_path / "s.zarr"), *argv])
    assert exit_.value.code == 2
    assert f"Unrecognized options: {argv[2]}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_command_reports_the_scores_of_each_grade(
    short: DMCEnv, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.zarr"
    argv = [
        "--env",
        "dmc/cheetah_run",
        "--episodes",
        "3",
        "--out",
        str(out),
        "--no-shadows",
        "--workers",
        "1",
    ]
    main(["data", "collect", *argv])
    printed = capsys.readouterr().out
    for grade in ("expert", "medium", "random"):
        assert f"{grade}: 1 episodes, mean score " in printed
    assert printed.endswith(f"3 episodes: {out}\n")


def test_task_stores_have_their_name_only_when_whole(
    short: DMCEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_dmc, "HELD_OUT_EPISODES", 2)
    monkeypatch.setattr(collect_dmc.os, "cpu_count", lambda: 1)
    collect_dmc.cheetah_run_held_out_to_store(tmp_path / "h.zarr")
    store = open_store(tmp_path / "h.zarr")
    np.testing.assert_array_equal(store.info("seed"), [80_000, 80_001])
    assert [p.name for p in tmp_path.iterdir()] == ["h.zarr"]
