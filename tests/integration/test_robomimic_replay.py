"""robomimic's files in robosuite: replay from their states, and ToolHang in closed loop."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from support.robomimic_worlds import TASK, Holder, write_lift

from foreact.commands.replay import replay
from foreact.envs.robomimic import make_tool_hang_no_shadows
from foreact.evals.closed_loop import closed_loop
from foreact.tasks import find_task

pytestmark = [
    pytest.mark.robosuite,
    pytest.mark.timeout(200),
    # Not by importing it: how to draw is chosen first.
    pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="no robosuite"),
]


def test_a_file_with_old_settings_comes_back_exactly(tmp_path: Path, capsys) -> None:
    file = write_lift(tmp_path / "image_abs.hdf5", [0, 1])
    replayed = replay(task="support.robomimic_worlds", data=file, out=tmp_path / "out")
    for r in replayed:
        assert r.steps == r.recorded_steps
        assert r.drift["robot0_eef_pos"].max() < 1e-3  # cm
        assert r.drift["robot0_eef_quat"].max() < 1e-2  # degrees
        assert min(db.min() for db in r.pictures.values()) > 50.0
        assert r.score == r.recorded_score == 1.0
    assert "All 2 episodes score as recorded." in capsys.readouterr().out
    assert set(TASK.spec.cameras) == set(replayed[0].pictures)


def test_free_joints_that_the_file_does_not_tell_cost_little(tmp_path: Path) -> None:
    file = write_lift(tmp_path / "image_abs.hdf5", [0], joints_elsewhere=0.02)
    (r,) = replay(task="support.robomimic_worlds", data=file, out=tmp_path / "out")
    print(r.drift["robot0_eef_pos"].mean(), r.drift["robot0_eef_pos"].max())
    assert 1e-3 < r.drift["robot0_eef_pos"].mean() < 0.5
    assert r.score == r.recorded_score == 1.0


def test_tool_hang_is_the_world_of_its_task() -> None:
    task = find_task("tool-hang")
    assert set(task.variants) == {"shadows", "no-shadows"}
    env = make_tool_hang_no_shadows()
    seen = env.reset(3)
    task.spec.require_equal(env.spec, "the task", "the world")
    assert {name: seen[name].shape for name in task.spec.cameras} == {
        "sideview_image": (240, 240, 3), "robot0_eye_in_hand_image": (240, 240, 3)
    }  # fmt: skip
    assert seen["sideview_image"][:80].mean() != seen["sideview_image"][-80:].mean()
    policy = Holder(env.world.hold(-1.0))
    env.close()
    policy.spec = task.spec
    result = closed_loop(
        task.variants["no-shadows"], policy, [3], workers=0, videos=0, max_steps=2, progress=False
    )
    assert result.score.mean == 0.0
    assert np.isfinite(result.score.mean)
