"""Training on a SLURM cluster: one task per GPU, requeued on a time limit or preemption.

SLURM starts every process of the run and ends them all when one fails; each finds the others by the
variables that torchrun would set. Before the end of its time, or when it is pre-empted, a job is
warned by a signal: the run saves the current step and ends, the job returns to the queue, and the
same command goes on from there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreact.errors import UserError

STOPPED = (0, 130, -signal.SIGTERM, -signal.SIGUSR2)
"""How a training ends that is done, or was warned: saved, or not yet begun."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Submit a command to SLURM: foreact submit [options] -- train vavim --size B ..."""

    hours: float
    """Wall time to ask for."""
    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 8
    """GPUs on each, one process per GPU; 0: one process per node, on the CPU."""
    cpus_per_task: int = 8
    """CPU cores per process."""
    partition: str | None = None
    """SLURM partition; None: the cluster's default."""
    account: str | None = None
    """SLURM account to charge."""
    requeue: bool = False
    """Return to the queue when time is up or the place is taken, until the run is finished."""
    save_minutes: float = 5.0
    """How long before the end of its time the job is warned, to finish a step and save."""
    name: str = "foreact"
    """Name in the queue."""
    logs: Path = Path("slurm")
    """Folder for the output of the processes, seen by all nodes."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Further sbatch options, such as constraint h100."""
    dry_run: bool = False
    """Print the sbatch file instead of submitting it."""

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus_per_task"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--{name.replace('_', '-')} should be at least 1, found {getattr(self, name)}."
                )
        if self.gpus_per_node < 0:
            raise UserError(f"--gpus-per-node should be 0 or more, found {self.gpus_per_node}.")
        if not 0 < 60 * self.save_minutes < 3600 * self.hours:
            raise UserError(
                "--save-minutes should be positive and less than the job's time, found "
                f"{self.save_minutes} minutes of {self.hours} hours."
            )

    def slurm(self) -> dict[str, Any]:
        """The job as submitit's parameters for SLURM."""
        options: dict[str, Any] = {
            "job_name": self.name,
            "time": max(1, round(60 * self.hours)),
            "nodes": self.nodes,
            "ntasks_per_node": max(1, self.gpus_per_node),
            "cpus_per_task": self.cpus_per_task,
            "signal_delay_s": round(60 * self.save_minutes),
            # One process that fails takes the others along, which would wait for it in vain.
            "srun_args": ["--kill-on-bad-exit=1"],
            "additional_parameters": {**self.sbatch, **({"requeue": True} if self.requeue else {})},
        }
        if self.gpus_per_node:
            options["gpus_per_node"] = self.gpus_per_node
        for name in ("partition", "account"):
            if getattr(self, name) is not None:
                options[name] = getattr(self, name)
        return options


class Launch:
    """A task of the job: run `command` as one process of the training; pickled by submitit.

    Args:
        command: program and arguments; it saves itself and exits when it gets SIGTERM, and resumes
            when run again.
        requeue: whether to go on in a further job after a warning.
    """

    def __init__(self, command: Sequence[str], *, requeue: bool) -> None:
        self.command = list(command)
        self.requeue = requeue
        self.pid: int | None = None

    def __call__(self) -> None:
        from submitit.helpers import TorchDistributedEnvironment

        place = TorchDistributedEnvironment()
        variables = {
            "MASTER_ADDR": place.master_addr,
            "MASTER_PORT": str(place.master_port),
            "WORLD_SIZE": str(place.world_size),
            "RANK": str(place.rank),
            "LOCAL_RANK": str(place.local_rank),
            "LOCAL_WORLD_SIZE": str(place.local_world_size),
        }
        process = subprocess.Popen(self.command, env={**os.environ, **variables})
        self.pid = process.pid
        # Not wait(): its lock would be held when `checkpoint` interrupts.
        while process.poll() is None:
            time.sleep(0.2)
        if process.returncode not in STOPPED:
            raise RuntimeError(f"process {place.rank} ended with status {process.returncode}")

    def checkpoint(self) -> Any:
        """Called by submitit on rank 0 at the warning: stop all processes, then requeue.

        Returns:
            The submission to make, None to make none.
        """
        from submitit.helpers import DelayedSubmission

        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            with suppress(ChildProcessError):  # it has ended and been waited for
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Launch(self.command, requeue=True)) if self.requeue else None


def submit(job: Job, words: Sequence[str]) -> str:
    """Submit `foreact WORDS`.

    Returns:
        The job's number; for a dry run the text of the sbatch file.

    Raises:
        UserError: submitit is not installed, or this is no SLURM cluster.
    """
    try:
        from submitit.slurm import slurm
    except ImportError as error:
        raise UserError(
            "Submitting to SLURM needs submitit, which is not installed; run `pip install "
            "foreact[slurm]`."
        ) from error
    if not words:
        raise UserError(
            "submit needs a command after --, such as `foreact submit --hours 20 -- train vavim`."
        )
    command = [sys.executable, "-m", "foreact.cli", *words]
    if job.dry_run:
        shown = " ".join(["python", "-u", "-m", "submitit.core._submit", str(job.logs)])
        return slurm._make_sbatch_string(shown, job.logs, **job.slurm())
    try:
        # The number of times that a job may run into its limit, from the first one on.
        executor = slurm.SlurmExecutor(
            folder=job.logs, max_num_timeout=10_000 if job.requeue else 0
        )
    except RuntimeError:
        raise UserError(
            "There is no SLURM on this machine (srun was not found); submit from the cluster's "
            "login node, or look at the job with --dry-run."
        ) from None
    executor.update_parameters(**job.slurm())
    return executor.submit(Launch(command, requeue=job.requeue)).job_id


def command(args: Sequence[str]) -> None:
    """`foreact submit [options] -- WORDS`."""
    import tyro

    own, words = list(args), []
    if "--" in own:
        at = own.index("--")
        own, words = own[:at], own[at + 1 :]
    job = tyro.cli(Job, prog="foreact submit", args=own)
    result = submit(job, words)
    if job.dry_run:
        print(result)
    else:
        print(f"Submitted as job {result}: foreact {' '.join(words)}")
        print(f"  output      {job.logs}/{result}_0_log.out")
