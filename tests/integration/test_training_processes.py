"""Two processes train as one does at the same global batch, and stop, fail and resume together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import training_toy as toy
from support.processes import Together
from support.training_toy import Interrupting, assert_close, log_of, state_of

from foreact.errors import UserError
from foreact.train import train

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def start(run_dir: Path, *, env: dict[str, str] | None = None, **changes: Any) -> Together:
    """Two processes of the toy's run with the given settings."""
    return Together(toy.main, run_dir, json.dumps(changes), env=env)


def two_processes(run_dir: Path, **changes: Any) -> None:
    start(run_dir, **changes).finish()


def test_two_processes_equal_one_with_twice_the_micro_batches_also_when_resumed_with_fewer(
    tmp_path: Path,
) -> None:
    one = toy.run(tmp_path / "one", steps=6, accumulate=4)
    two_processes(tmp_path / "two", steps=6, accumulate=2)
    assert_close(one.checkpoint, tmp_path / "two" / "checkpoints" / "step-00000006")
    alone, both = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [e["step"] for e in alone] == [e["step"] for e in both]
    for a, b in zip(alone, both, strict=True):
        assert set(a) == set(b)  # every mode's loss is logged, whichever process drew it
        assert all(b[k] == pytest.approx(a[k], rel=1e-4) for k in a)
    longer = toy.run(tmp_path / "one", steps=8, accumulate=4)
    moved = toy.run(tmp_path / "two", steps=8, accumulate=4)
    assert_close(longer.checkpoint, moved.checkpoint)


def test_a_mode_that_no_process_drew_leaves_its_head_untouched(tmp_path: Path) -> None:
    two_processes(tmp_path, steps=1, warmup=0)
    state = state_of(tmp_path / "checkpoints" / "step-00000001")
    used = [int(state[f"optimizer.heads.{i}.weight.step"]) for i in range(3)]
    assert sorted(used) in ([0, 0, 1], [0, 1, 1])
    before = toy.toy_model().state_dict()
    for i in range(3):
        assert torch.equal(state[f"model.heads.{i}.weight"], before[f"heads.{i}.weight"]) == (
            not used[i]
        )
        assert bool(state[f"optimizer.heads.{i}.weight.exp_avg"].any()) == bool(used[i])


def test_ctrl_c_stops_all_processes_at_one_step_and_the_run_resumes(tmp_path: Path) -> None:
    # The one start of processes by torchrun itself; to the others it makes no difference who starts
    # them.
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            toy.__file__,
            str(tmp_path),
            json.dumps({"steps": 10_000}),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOY_SLEEP": "0.02"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "log.jsonl").exists() or not (tmp_path / "log.jsonl").stat().st_size:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to its processes
    _, errors = process.communicate(timeout=200)
    (newest, *_) = sorted((tmp_path / "checkpoints").iterdir(), reverse=True)
    step = json.loads((newest / "train.json").read_text())["step"]
    assert step == log_of(tmp_path)[-1]["step"], errors
    assert toy.run(tmp_path, accumulate=2, steps=step + 1).step == step + 1


def test_an_error_on_the_first_process_ends_all_with_its_sentence(tmp_path: Path) -> None:
    toy.run(tmp_path, steps=1)
    both = start(tmp_path, steps=4)
    assert any(both.wait())
    assert "error: The run to resume takes 1 micro-batches per step" in both.errors
    assert "now it would be 2 (1 x 2)" in both.errors


def test_a_full_disk_ends_all_processes_and_leaves_nothing_unfinished(tmp_path: Path) -> None:
    both = start(tmp_path, env={"TOY_LARGEST_FILE": "15000"}, steps=2)
    assert any(both.wait())
    assert "(File too large); earlier checkpoints are whole: make room" in both.errors
    assert "Traceback" not in both.errors
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_process_that_hangs_is_named(tmp_path: Path) -> None:
    both = start(tmp_path, env={"TOY_HANG": "1"}, timeout_minutes=0.05)
    assert any(both.wait())
    assert "error: Training stopped because process 1 did not answer" in both.errors


def test_a_run_that_starts_from_another_takes_weights_and_moments_and_nothing_else(
    tmp_path: Path,
) -> None:
    rate = {"schedule": "wsd", "warmup": 0}
    first = toy.run(tmp_path / "first", steps=6, **rate)
    second = toy.run(
        tmp_path / "second", steps=3, drop=3, lr=5e-3, start_from=tmp_path / "first", **rate
    )
    (log, *_) = log_of(tmp_path / "second")
    assert (log["step"], log["lr"], second.step) == (1, 5e-3, 3)
    state, before = (state_of(r.checkpoint) for r in (second, first))
    assert state["optimizer.body.weight.step"] == before["optimizer.body.weight.step"] + 3
    assert state["ema_step"] == 3
    still = toy.run(tmp_path / "still", steps=1, lr=1e-12, start_from=first.checkpoint, **rate)
    after = state_of(still.checkpoint)
    for name in ("model.body.weight", "ema.body.weight"):
        torch.testing.assert_close(after[name], before["model.body.weight"])
    assert log_of(tmp_path / "first")[-1]["step"] == 6  # the other run is left as it was


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    first = toy.run(tmp_path / "first", steps=1)
    with pytest.raises(
        UserError,
        match=r"--train.start-from should be a run folder or one of its checkpoints; .*empty holds",
    ):
        toy.run(tmp_path / "second", start_from=tmp_path / "empty")
    frozen = toy.toy_model()
    frozen.body.requires_grad_(False)
    with pytest.raises(
        UserError, match=r"'body\.bias' is trained there and frozen here .*step-00000001 is there"
    ):
        toy.run(tmp_path / "second", model=frozen, start_from=first.checkpoint)
    toy.run(tmp_path / "second", steps=1)
    with pytest.raises(UserError, match=r"has --train.start-from None, now it is"):
        toy.run(tmp_path / "second", steps=2, start_from=first.checkpoint)


def test_chosen_steps_and_the_last_one_before_the_drop_are_kept(tmp_path: Path) -> None:
    toy.run(tmp_path, steps=9, schedule="wsd", drop=4, keep_at=(2,), keep=1, save_every=3)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        f"step-0000000{n}" for n in (2, 5, 9)
    ]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_schedulers_warning_stops_the_run_after_a_step(tmp_path: Path, number: int) -> None:
    stopped = train(
        toy.toy_model(), Interrupting(1, number), toy.config(steps=6), tmp_path, device="cpu"
    )
    assert (stopped.step, stopped.interrupted) == (2, True)
