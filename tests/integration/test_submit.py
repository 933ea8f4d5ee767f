"""Jobs for SLURM: the sbatch file, and a job that is warned, stops at
a step, returns to the queue and finishes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import submitit
from support import training_toy as toy
from support.processes import Door
from support.training_toy import assert_close, log_of

from foreact.commands.submit import Job, Launch, command, submit
from foreact.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_dry_run_prints_one_task_per_gpu_and_the_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--nodes 8 --gpus-per-node 4 --hours 20 --partition big --requeue --dry-run "
        "--sbatch constraint h100"
    )
    command([*options.split(), "--logs", str(tmp_path), "--", "train", "uva", "--task", "pusht"])
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "nodes=8",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "time=1200",
        "partition=big",
        "requeue",
        "constraint=h100",
        "signal=USR2@300",
        "open-mode=append",
        "cpus-per-task=8",
    ):
        assert f"#SBATCH --{line}" in lines
    (run,) = (line for line in lines if line.startswith("srun"))
    assert "--kill-on-bad-exit=1" in run
    assert str(tmp_path) in run


def test_on_the_cpu_and_without_requeue_nothing_is_asked_for(tmp_path: Path) -> None:
    text = submit(Job(hours=1, gpus_per_node=0, logs=tmp_path, dry_run=True), ["train", "uva"])
    assert "--ntasks-per-node=1\n" in text
    assert "gpus" not in text
    assert "requeue" not in text


def test_mistakes_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"needs a command after --"):
        submit(Job(hours=1, logs=tmp_path), [])
    with pytest.raises(
        UserError, match=r"--save-minutes should be positive and less than the job's time"
    ):
        Job(hours=0.05, save_minutes=5)
    with pytest.raises(UserError, match=r"nodes should be at least 1, found 0"):
        Job(hours=1, nodes=0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no SLURM on this machine"):
        submit(Job(hours=1, logs=tmp_path / "slurm"), ["train", "uva"])


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start(folder: Path, steps: int, program: Door) -> submitit.Job[None]:
    """The toy's run in two processes, by submitit's executor for one machine."""
    executor = submitit.LocalExecutor(folder / "logs")
    executor.update_parameters(tasks_per_node=2, timeout_min=5, signal_delay_s=1)
    words = (str(folder / "run"), json.dumps({"steps": steps}))
    return executor.submit(Launch(program.command(*words), requeue=True))


def warn(job: submitit.Job[None], run: Path) -> None:
    """Once the run has made a step, send what SLURM sends to every process of the job."""
    while not log_of(run):
        assert not job.done(), job.stderr()
        time.sleep(0.05)
    for task in children(int(job.job_id)):
        os.kill(task, signal.SIGUSR2)


def finish(job: submitit.Job[None]) -> None:
    limit = time.monotonic() + 250
    while not job.done():
        assert time.monotonic() < limit, job.stderr()
        time.sleep(0.05)


def test_warned_job_returns_to_the_queue_and_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SLEEP", "0.05")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = start(tmp_path, 40, Door(toy.main))
    warn(job, tmp_path / "run")
    finish(job)
    steps = [entry["step"] for entry in log_of(tmp_path / "run")]
    assert steps == list(range(1, 41))
    (results,) = {
        line for line in (job.stdout() or "").splitlines() if '"interrupted": true' in line
    }
    stopped = json.loads(results)["step"]
    assert 1 <= stopped < 40
    assert '"step": 40, "interrupted": false, "finished": true' in (job.stdout() or "")
    monkeypatch.setenv("TOY_SLEEP", "0")
    whole = toy.run(tmp_path / "whole", steps=40, accumulate=2)
    assert_close(whole.checkpoint, tmp_path / "run" / "checkpoints" / "step-00000040")


SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("requeue", [True, False])
def test_warning_waits_until_the_run_is_saved(tmp_path: Path, requeue: bool) -> None:
    launch = Launch([sys.executable, "-c", SAVES, str(tmp_path / "file")], requeue=requeue)
    with subprocess.Popen(launch.command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        launch.pid = process.pid
        again = launch.checkpoint()
        assert (tmp_path / "file").read_text() == "saved"
        assert process.wait() == 130
    assert launch.checkpoint() is None or requeue  # nothing left to stop
    assert (again is not None) == requeue
    if requeue:
        assert again.function.command == launch.command


def test_training_that_fails_fails_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "JOB_ID": "1",
        "NTASKS": "1",
        "JOB_NUM_NODES": "1",
        "NODEID": "0",
        "GLOBALID": "0",
    }.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)
    monkeypatch.setenv("SUBMITIT_LOCAL_LOCALID", "0")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    Launch(
        [sys.executable, "-c", "import os; assert os.environ['WORLD_SIZE'] == '1'"], requeue=True
    )()
    with pytest.raises(RuntimeError, match=r"process 0 ended with status 3"):
        Launch([sys.executable, "-c", "raise SystemExit(3)"], requeue=True)()
