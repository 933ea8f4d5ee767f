"""x weight^T + bias by the kernel that is fastest here for the number of rows: one, a few, or many.

Torch's own product is `functional.linear`. In float32 on the CPU it is not always the fastest there
is, and which one is depends on the processor, so each of the others is timed against it once per
process (see `foreact.machine`) and taken only where it is clearly faster:

    one row     numpy's matrix-vector product, while torch keeps to one thread: decoding
    a few rows  weight x^T, transposed, when nothing is learned: a denoiser's step for the actions
    of one robot
    many rows   oneDNN's instead of MKL's, which on some processors makes no use of AVX-512
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from foreact import machine

FEW = 32
"""Rows up to which weight x^T is faster; with more, every kernel is near the peak."""
HEAVY = 2**18
"""Least elements of a weight for that; a smaller one does not pay for copying the result."""
WORTHWHILE = 2**20
"""Multiplications from which oneDNN can be faster; its call takes 10 microseconds longer."""


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., inputs), (outputs, inputs), (outputs,) -> (..., outputs); differentiable once."""
    if not _float32_on_cpu(x, weight):
        return functional.linear(x, weight, bias)
    rows = x.numel() // max(1, x.shape[-1])
    learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if (
        rows == 1
        and bias is None
        and torch.get_num_threads() == 1
        and not learning
        and numpy_is_faster()
    ):
        return _by_numpy(x, weight)
    if 1 < rows <= FEW and weight.numel() >= HEAVY and not learning and transposed_is_faster():
        return _transposed(x, weight, bias)
    if rows > FEW and x.numel() * weight.shape[0] >= WORTHWHILE and onednn_is_faster():
        return _OneDNN.apply(x, weight, bias) if learning else _by_onednn(x, weight, bias)
    return functional.linear(x, weight, bias)


@contextmanager
def rows_by_numpy(x: Tensor, weight: Tensor) -> Iterator[None]:
    """Within the block, `linear` multiplies single rows like x by numpy, if that is faster.

    Torch computes with one thread in it: the threads of torch and of numpy's BLAS spin for a while
    after each piece of work, so with both in use each waits for the other's at every layer.

    Args:
        x: (B, ...), of which each step multiplies B rows.
        weight: one of the matrices.
    """
    if x.shape[0] > 1 or not _float32_on_cpu(weight, weight) or not numpy_is_faster():
        yield
        return
    with machine.one_thread():
        yield


def _float32_on_cpu(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    return not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _ones(*shape: int) -> Tensor:
    # Explicit, whatever the caller's default dtype and device are.
    return torch.ones(shape, dtype=torch.float32, device="cpu")


# --- one row --------------------------------------------------------------------------------------


def _by_numpy(x: Tensor, weight: Tensor) -> Tensor:
    # By DLPack: `Tensor.numpy` makes a storage unresizable, which FSDP frees and fills again.
    row = np.matmul(np.from_dlpack(weight.detach()), np.from_dlpack(x.detach().reshape(-1)))
    return torch.from_numpy(row).view(*x.shape[:-1], -1)


def numpy_is_faster() -> bool:
    """Whether numpy reads a matrix beyond the caches faster than torch with its threads."""
    return _numpy_is_faster(torch.get_num_threads())


@cache
def _numpy_is_faster(threads: int) -> bool:
    x, weight = _ones(1, 2048), _ones(2048, 2048)
    return machine.clearly_faster(
        lambda: functional.linear(x, weight), lambda: _by_numpy(x, weight)
    )


# --- a few rows -----------------------------------------------------------------------------------


def _transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    columns = x.reshape(-1, x.shape[-1]).t()  # (inputs, rows)
    out = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)
    return out.t().contiguous().view(*x.shape[:-1], -1)


@cache
def transposed_is_faster() -> bool:
    """Whether the product with x as the second operand is faster."""
    x, weight, bias = _ones(8, 1024), _ones(1024, 1024), _ones(1024)
    return machine.clearly_faster(
        lambda: functional.linear(x, weight, bias), lambda: _transposed(x, weight, bias)
    )


# --- many rows ------------------------------------------------------------------------------------


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def onednn_is_faster() -> bool:
    """Whether torch has oneDNN's undocumented operators and they multiply faster."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if not hasattr(torch.ops.aten, "mkldnn_linear_backward_weights"):
        return False
    x, weight = _ones(256, 512), _ones(512, 512)
    with machine.one_thread():
        return machine.clearly_faster(
            lambda: functional.linear(x, weight), lambda: _by_onednn(x, weight)
        )


class _OneDNN(torch.autograd.Function):
    """y = x W^T + b, so that dx = dy W, dW = dy^T x and db = sum dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        dx = _by_onednn(dy, weight.t().contiguous()) if for_x else None
        rows, dweight = dy.flatten(0, -2), None
        if for_weight:
            operands = rows.to_mkldnn(), x.flatten(0, -2).to_mkldnn()
            dweight, _ = torch.ops.aten.mkldnn_linear_backward_weights(*operands, weight, False)
        return dx, dweight, rows.sum(0) if for_bias else None
