"""The processes of one torchrun run: join, communicate, share the work (DDP, FSDP2), leave."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from foreact.errors import UserError

# One rank may evaluate for hours while the others wait, so messages between processes have their
# own patient group; a stuck process is found by `World.align` and by the gradient group, which are
# not patient.
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
            dist.monitored_barrier(
                self.control, timeout=self.timeout, wait_all_ranks=self.rank == 0
            )
        except RuntimeError as error:
            raise lost_process(error, self.timeout) from error

    def gather(self, value: Any) -> list[Any]:
        """Every process's small, picklable `value` in rank order, on every process."""
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

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Add up each tensor over all processes, in place; they lie where the model does."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

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
        """The module to call in training: `model`, or a wrapper that averages gradients.

        Unused parameters are looked for unless the model says that it has none; one that no process
        used keeps no gradient, as in a single process.
        """
        if self.size == 1 or isinstance(model, FSDPModule):
            return model
        module = nn.parallel.DistributedDataParallel(
            model,
            find_unused_parameters=used_parameters(model) != "all",
            gradient_as_bucket_view=True,  # else every gradient is held twice
        )
        # Not as an argument, which would keep rank 0's buffers from the other processes at the
        # start as well.
        module.broadcast_buffers = False
        return module

    def shard(self, model: nn.Module, *, half: bool) -> None:
        """Shard the model's parameters in place (FSDP2), before its optimiser is built.

        Each block is gathered when it runs and let go again; what belongs to no block (embeddings,
        readouts) is gathered for the whole forward and backward. The last block of a list stays
        until its backward, which comes next; besides, a block of which only side results are used
        (keys and values for another model) gets no signal to gather itself again.

        Args:
            model: on this process's device; rank 0's values count.
            half: whether training runs under bfloat16 autocast. Blocks of matrices alone then
                gather bfloat16 copies, as autocast makes for every product: gathered in float32,
                each of those copies would live until the backward, and with them the whole model on
                every process. Blocks with vectors (norms, biases), which autocast partly leaves in
                float32, are gathered in float32; gradients are always summed in it.

        Raises:
            UserError: processes may run different parts of the model, so they cannot gather them
                together; or this torch would compute wrong gradients.
        """
        if self.device.type == "cpu" and torch.__version__ < "2.9":  # as versions, not as text
            # Older gloo returns the sum when asked for the mean, so that gradients are too large by
            # the number of processes. NCCL, on GPUs, does not.
            raise UserError(
                f"parallel fsdp on the CPU needs torch 2.9 or newer, found {torch.__version__}; "
                "use parallel ddp."
            )
        if used_parameters(model) == "varying":
            raise UserError(
                "parallel fsdp needs a model that uses the same parameters in every forward, and "
                f"{type(model).__name__} does not say that it does (`used_parameters`); use "
                "parallel ddp."
            )
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for blocks in block_lists(model):
            for block in blocks:
                low = half and all(p.ndim > 1 for p in block.parameters())
                policy = MixedPrecisionPolicy(
                    param_dtype=torch.bfloat16 if low else None,
                    reduce_dtype=torch.float32,
                    cast_forward_inputs=False,
                )
                fully_shard(
                    block,
                    mesh=mesh,
                    mp_policy=policy,
                    reshard_after_forward=block is not blocks[-1],
                )
        fully_shard(model, mesh=mesh)

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole state dict of `model` on rank 0's CPU, empty elsewhere; a collective call.

        Divided tensors are gathered one at a time, so no process holds the whole model on its
        device.
        """
        state: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            full = whole(tensor.detach())
            if self.rank == 0:
                state[name] = full.to("cpu", copy=not isinstance(tensor, DTensor))
        return state

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch: gradients are exchanged only with the last one of a step."""
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
        elif isinstance(module, nn.parallel.DistributedDataParallel) and not last:
            return module.no_sync()
        return nullcontext()


def used_parameters(model: nn.Module) -> str:
    """The model's `used_parameters` (`foreact.types.Trainable`), by default the safest."""
    return getattr(model, "used_parameters", "varying")


def block_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Outermost non-empty ModuleLists of a model: its repeated blocks, called as modules."""
    for child in module.children():
        if not isinstance(child, nn.ModuleList):
            yield from block_lists(child)
        elif len(child):
            yield child


def whole(tensor: Tensor) -> Tensor:
    """`tensor`, gathered from all processes if it is divided; then every process calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def lost_process(error: RuntimeError, timeout: timedelta) -> UserError:
    ranks = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
    who = f"process {ranks.group(1)}" if ranks else "another process"
    return UserError(
        f"Training stopped because {who} did not answer (waited up to "
        f"{timeout.total_seconds() / 60:g} minutes); look for the first error among the other "
        "processes, or raise timeout_minutes if it was just slow."
    )


def pick_device(device: torch.device | str | None, local_rank: int) -> torch.device:
    """The given device, else this process's GPU, else the CPU."""
    if device is not None:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", local_rank)
    else:
        chosen = (
            torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        )
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "Device 'cuda' was asked for, but no GPU is available; use --device cpu."
            )
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"Process {local_rank} wants GPU {chosen.index}, but there are "
                f"{torch.cuda.device_count()}; start one process per GPU."
            )
        torch.cuda.set_device(chosen)
    return chosen


@contextmanager
def world(
    device: torch.device | str | None = None, *, timeout_minutes: float = 10.0
) -> Iterator[World]:
    """Join torchrun's processes, or be the only one, until the end of the block.

    A process group that the caller has set up already is used and left as it is.

    Raises:
        UserError: the device does not exist, or the processes do not find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device, local_rank)
    timeout = timedelta(minutes=timeout_minutes)
    owns_group = not dist.is_initialized()
    if owns_group and size == 1:
        yield World(device=chosen, timeout=timeout)
        return
    if owns_group:
        try:
            dist.init_process_group(
                "cuda:nccl,cpu:gloo" if chosen.type == "cuda" else "gloo", timeout=timeout
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"The {size} processes did not find each other; start them with torchrun ({error})."
            ) from error
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    process = World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        device=chosen,
        timeout=timeout,
        control=control,
    )
    try:
        yield process
        # Without a last meeting, a process that leaves first can make the others abort at exit.
        process.align()
    finally:
        if owns_group:
            dist.destroy_process_group()
