"""What this machine computes fast: bfloat16 or float32, and which kernel; measured, not guessed.

A processor's name says little: one with bfloat16 instructions multiplies them several times as fast
as float32, one without emulates them twenty times as slowly, and both are sold under one name. So a
GPU is asked, and on the CPU small products of each kind are timed, once per process, in
milliseconds and with one thread, which other work on the machine disturbs least. Any other device
computes in float32.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from foreact.errors import UserError

Precision = Literal["bf16", "fp32"]
AnyPrecision = Literal["auto", "bf16", "fp32"]
Work = Literal["batches", "rows"]
"""Products of many rows (training, reading a context) or single rows (decoding by token)."""

CLEARLY = 1.25
"""How many times as fast as the plain way another one must be to take its place. A closer call
would be decided by whatever else the machine does just now, and a run that goes on tomorrow should
compute as it does today.
"""


def least_seconds(
    candidates: Mapping[str, Callable[[], object]], rounds: int = 5
) -> dict[str, float]:
    """Least time of each call, timed in turns, since disturbances only ever add time.

    Args:
        candidates: calls by name.
        rounds: turns that count, after one to warm up. A call that took five times as long as
            another in each of three turns is not repeated.
    """
    least = dict.fromkeys(candidates, float("inf"))
    for turn in range(rounds + 1):
        for name, call in candidates.items():
            if turn > 3 and least[name] > 5 * min(least.values()):
                continue
            start = time.perf_counter()
            call()
            if turn:
                least[name] = min(least[name], time.perf_counter() - start)
    return least


def gflops(device: torch.device, precision: Precision) -> float:
    """GFLOP/s of a matrix product of size 1,024 (8,192 on a GPU)."""
    side = 1024 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * side**3 / _least(lambda: x @ x, device) / 1e9


def gigabytes_per_second(device: torch.device) -> float:
    """How fast memory is read, by a sum over 256 MiB (on a GPU 1 GiB), which no cache holds."""
    x = torch.ones(2**26 if device.type == "cpu" else 2**28, device=device)
    return x.nbytes / _least(x.sum, device) / 1e9


def _least(call: Callable[[], object], device: torch.device) -> float:
    def done() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return least_seconds({"call": done}, rounds=3)["call"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block, torch computes with one thread on the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def clearly_faster(plain: Callable[[], object], other: Callable[[], object]) -> bool:
    """Whether a call is worth taking in the place of the plain one, on this machine.

    Timed twice, in many short turns: with several threads any one may wait long for a core that is
        busy elsewhere.
    """
    for _ in range(2):
        seconds = least_seconds({"plain": plain, "other": other}, rounds=10)
        if seconds["plain"] < CLEARLY * seconds["other"]:
            return False
    return True


@dataclass(frozen=True)
class BFloat16:
    """What a device makes of bfloat16.

    Attributes:
        possible: whether it computes it; a GPU by instructions of its own, a CPU at least by
            emulation.
        fast: whether it computes it clearly faster than float32.
        why: how that is known, for people.
    """

    possible: bool
    fast: bool
    why: str


def bfloat16(device: torch.device, work: Work = "batches") -> BFloat16:
    """Ask the GPU, or time the CPU (once per process)."""
    if device.type == "cuda":
        return _of_gpu(torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "cpu":
        return _of_cpu(work)
    return BFloat16(possible=True, fast=False, why=f"bf16 is not timed on '{device.type}'")


def choose_precision(
    asked: AnyPrecision, device: torch.device, work: Work = "batches"
) -> Precision:
    """The precision asked for; for "auto", bf16 only where the device is faster in it.

    Raises:
        UserError: bf16 was asked for and the device cannot compute it.
    """
    if asked == "fp32":
        return "fp32"
    found = bfloat16(device, work)
    if asked == "auto":
        return "bf16" if found.fast else "fp32"
    if not found.possible:
        raise UserError(f"bf16 was asked for, but {found.why}; give precision fp32 or auto.")
    return "bf16"


def explain_precision(chosen: Precision, device: torch.device, work: Work = "batches") -> str:
    """One line for people: what was chosen, and what is known of the device."""
    return f"{chosen} ({bfloat16(device, work).why})"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context of a forward pass in that precision; parameters stay as they are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def cores() -> int:
    """Processor cores this process may use: its affinity, capped by the container's quota."""
    bound = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, math.ceil(min(bound, _quota())))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """CPU quota of the control group (cgroup v2, then v1) in cores; infinite if unlimited."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = (root / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = (
            int((root / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        return limit / period if limit > 0 else math.inf
    return math.inf


def loader_processes(device: torch.device) -> int:
    """Data-loading processes for each of torchrun's processes on this machine."""
    if device.type == "cpu":
        return 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(8, cores() // beside - 1))


@cache
def _of_gpu(index: int) -> BFloat16:
    name = torch.cuda.get_device_name(index)
    capability = ".".join(str(n) for n in torch.cuda.get_device_capability(index))
    with torch.cuda.device(index):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    if native:
        return BFloat16(
            possible=True, fast=True, why=f"{name}, compute capability {capability}, computes bf16"
        )
    return BFloat16(
        possible=False,
        fast=False,
        why=f"{name}, compute capability {capability}, computes no bf16 (8.0 does)",
    )


@cache
def _of_cpu(work: Work) -> BFloat16:
    """Time a small product first, which finds out emulated bfloat16 in milliseconds."""
    with torch.inference_mode(False), one_thread():
        ratio = (
            _ratio(_product(1, 2048, 2048)) if work == "rows" else _ratio(_product(64, 256, 512))
        )
        if work == "batches" and ratio > 1:
            ratio = _ratio(_training_step)
    fast = ratio > CLEARLY
    return BFloat16(
        possible=True, fast=fast, why=f"bf16 has {ratio:.2g} x the speed of fp32 on this processor"
    )


def _ratio(work: Callable[[torch.dtype], Callable[[], object]]) -> float:
    """Speed of work in bfloat16 over its speed in float32."""
    seconds = least_seconds({"fp32": work(torch.float32), "bf16": work(torch.bfloat16)})
    return seconds["fp32"] / seconds["bf16"]


def _product(rows: int, inputs: int, outputs: int) -> Callable[[torch.dtype], Callable[[], object]]:
    def work(dtype: torch.dtype) -> Callable[[], object]:
        x = torch.ones(rows, inputs, dtype=dtype, device="cpu")
        weight = torch.ones(outputs, inputs, dtype=dtype, device="cpu")
        return lambda: functional.linear(x, weight)

    return work


def _training_step(dtype: torch.dtype) -> Callable[[], object]:
    """Forward and backward of a small MLP under autocast, which also times small operations."""
    x = torch.ones(512, 256, device="cpu")
    up = torch.full((1024, 256), 1e-2, requires_grad=True, device="cpu")
    down = torch.full((256, 1024), 1e-2, requires_grad=True, device="cpu")

    def step() -> Tensor:
        with (
            torch.enable_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            h = functional.gelu(functional.linear(functional.layer_norm(x, x.shape[-1:]), up))
            loss = (x + functional.linear(h, down)).float().square().mean()
        loss.backward()
        return loss

    return step
