"""Episodes that an expert plays in any simulator: which are kept, and with what."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.arm_world import LUCKY, ArmEnv

from foreact.commands import collect
from foreact.data.stores.store import open_store
from foreact.envs.demonstrate import demonstrate
from foreact.errors import UserError
from foreact.plugs import SIMULATORS


def seeds_of(path: Path) -> list[int]:
    return open_store(path).info("seed").tolist()


def test_failures_are_left_out_and_made_up_for(tmp_path: Path) -> None:
    demonstrate(LUCKY, 5, tmp_path / "a.zarr", workers=1, progress=False)
    assert seeds_of(tmp_path / "a.zarr") == [1, 2, 4, 5, 7]
    assert open_store(tmp_path / "a.zarr").info("score").tolist() == [1.0] * 5

    every = dataclasses.replace(LUCKY, success_at=None)
    demonstrate(every, 5, tmp_path / "b.zarr", workers=1, progress=False)
    assert seeds_of(tmp_path / "b.zarr") == [0, 1, 2, 3, 4]


def test_a_collection_goes_on_after_its_last_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    for episodes in (2, 4, 4, 3):
        demonstrate(LUCKY, episodes, path, first_seed=2, workers=1, progress=False)
    assert seeds_of(path) == [2, 4, 5, 7]
    with pytest.raises(UserError, match=r"holds another collection .* from seed 2"):
        demonstrate(LUCKY, 6, path, first_seed=1, workers=1, progress=False)


def test_episodes_keep_the_state_that_they_began_at(tmp_path: Path) -> None:
    demonstrate(LUCKY, 2, tmp_path / "a.zarr", workers=1, progress=False)
    store, env = open_store(tmp_path / "a.zarr"), ArmEnv()
    starts = store.info("initial_state")
    assert starts.dtype == np.float64
    for episode, seed in enumerate(seeds_of(tmp_path / "a.zarr")):
        seen = env.reset(seed)
        np.testing.assert_array_equal(starts[episode], env.state())
        first = store.read(episode, 0, 1, ["robot0_eef_pos", "front"])
        np.testing.assert_array_equal(first["robot0_eef_pos"][0], seen["robot0_eef_pos"])
        np.testing.assert_array_equal(first["front"][0], seen["front"])


def test_an_expert_that_hardly_ever_succeeds_ends_the_collection(tmp_path: Path) -> None:
    hopeless = dataclasses.replace(LUCKY, success_at=2.0)
    with pytest.raises(UserError, match="The expert of 'lucky' succeeded in 0 of 20 episodes"):
        demonstrate(hopeless, 10, tmp_path / "a.zarr", workers=1, progress=False)


def test_the_command_counts_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SIMULATORS.added, "lucky", LUCKY)
    collect.by_expert("lucky", episodes=4, out=tmp_path / "a.zarr", workers=1)
    said = capsys.readouterr().out
    assert "The expert failed in 2 of 6 episodes; they are left out." in said
    assert "4 episodes, mean sum of rewards 1.000" in said


def test_test_seeds_are_never_played(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Seeds from 100000 on are test seeds"):
        demonstrate(LUCKY, 3, tmp_path / "a.zarr", first_seed=99_997, workers=1, progress=False)
