"""A linear layer's product with a single row, the whole work of decoding token by token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T: (..., inputs), (outputs, inputs) -> (..., outputs).

    For one float32 row on the CPU numpy multiplies instead of torch, whose product takes up to 2.5 times as long
    (`benchmarks/decode.py`), but only while torch keeps to one thread: see `rows_by_numpy`.
    """
    single = x.numel() == x.shape[-1] and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if not single or torch.get_num_threads() > 1 or torch.is_grad_enabled():
        return functional.linear(x, weight)
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return functional.linear(x, weight)
    row = weight.detach().numpy() @ x.detach().reshape(-1).numpy()
    return torch.from_numpy(row).view(*x.shape[:-1], -1)


@contextmanager
def rows_by_numpy(x: Tensor, weight: Tensor) -> Iterator[None]:
    """Within the block, `linear` multiplies single rows like those of x by numpy, where that is of use.

    Torch computes with one thread there: its threads and those of numpy's BLAS stay busy for a while after each piece
    of work, and with both in use each waits for the other's at every layer.

    Args:
        x: (B, ...), of which each step multiplies B rows.
        weight: one of the matrices.
    """
    threads = torch.get_num_threads()
    if x.shape[0] > 1 or weight.device.type != "cpu" or weight.dtype != torch.float32:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
