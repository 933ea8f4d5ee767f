"""The processes of one run, as torchrun starts them: join, talk, wrap with DDP, leave. Nothing else does that."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from foreact.types import UserError

# One rank may evaluate for hours while the others wait, so messages between processes have their own patient group;
# a stuck process is found by `World.align` and by the gradient group, which are not patient.
PATIENCE = timedelta(hours=48)


@dataclass(frozen=True)
class World:
    """This process's place among the processes of the run.

    Attributes:
        rank: 0 .. size - 1; rank 0 logs, evaluates and names checkpoints.
        size: number of processes.
        device: where this process computes.
        timeout: how long a process may wait for another at a step.
        control: group for small messages between processes, None for a single process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout: timedelta = timedelta(minutes=10)
    control: Any = None

    def align(self) -> None:
        """Wait for every process.

        Raises:
            UserError: a process did not come in time; it is named.
        """
        if self.size == 1:
            return
        try:
            dist.monitored_barrier(self.control, timeout=self.timeout, wait_all_ranks=self.rank == 0)
        except RuntimeError as error:
            raise lost_process(error, self.timeout) from error

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, in rank order, on every process. Values are small and picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self.control)
        except RuntimeError as error:
            raise lost_process(error, self.timeout) from error
        return values

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any process."""
        if self.size == 1:
            return flags
        merged = torch.tensor(flags, dtype=torch.uint8)
        try:
            dist.all_reduce(merged, op=dist.ReduceOp.MAX, group=self.control)
        except RuntimeError as error:
            raise lost_process(error, self.timeout) from error
        return tuple(bool(f) for f in merged.tolist())

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` on every process."""
        if self.size == 1:
            return value
        box = [value]
        try:
            dist.broadcast_object_list(box, src=0, group=self.control, device=torch.device("cpu"))
        except RuntimeError as error:
            raise lost_process(error, self.timeout) from error
        return box[0]

    def ddp(self, model: nn.Module) -> nn.Module:
        """The module to call in training: `model` itself, or wrapped so that gradients are averaged over processes.

        Ranks may run different graphs (each draws its own task mode), so unused parameters are looked for; one that
        no rank used keeps no gradient, as in a single process.
        """
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True, forward_sync_buffers=False)

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch: gradients are exchanged only with the last one of a step."""
        if last or not isinstance(module, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return module.no_sync()


def lost_process(error: RuntimeError, timeout: timedelta) -> UserError:
    ranks = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
    who = f"process {ranks.group(1)}" if ranks else "another process"
    return UserError(
        f"Training stopped because {who} did not answer (waited up to {timeout.total_seconds() / 60:g} minutes); "
        "look for the first error among the other processes, or raise timeout_minutes if it was just slow."
    )


def pick_device(device: torch.device | str | None, local_rank: int) -> torch.device:
    """The given device, else this process's GPU, else the CPU."""
    if device is not None:
        chosen = torch.device(device)
    else:
        chosen = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError("Device 'cuda' was asked for, but no GPU is available; use --device cpu.")
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"Process {local_rank} wants GPU {chosen.index}, but there are {torch.cuda.device_count()}; "
                "start one process per GPU."
            )
        torch.cuda.set_device(chosen)
    return chosen


@contextmanager
def world(device: torch.device | str | None = None, *, timeout_minutes: float = 10.0) -> Iterator[World]:
    """Join the processes that torchrun started, or be the only one; leave them at the end of the block.

    A process group that the caller has set up already is used and left as it is.

    Raises:
        UserError: the device does not exist, or the processes do not find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device, local_rank)
    timeout = timedelta(minutes=timeout_minutes)
    ours = not dist.is_initialized()
    if ours and size == 1:
        yield World(device=chosen, timeout=timeout)
        return
    if ours:
        try:
            dist.init_process_group("cuda:nccl,cpu:gloo" if chosen.type == "cuda" else "gloo", timeout=timeout)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"The {size} processes did not find each other; start them with torchrun ({error})."
            ) from error
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    here = World(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen, timeout=timeout, control=control)
    try:
        yield here
        # Without a last meeting, a process that leaves first can make the others abort at exit.
        here.align()
    finally:
        if ours:
            dist.destroy_process_group()
