"""A linear layer whose float32 products on the CPU are oneDNN's instead of MKL's, the same sums at more speed.

Torch multiplies float32 matrices by MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN, which comes
with torch too, uses AVX-512 wherever it is and takes half the time there (`benchmarks/occupancy.py`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

WORTHWHILE = 2**20
"""Multiplications from which on the product is faster, its call being slower by 10 microseconds."""


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias: (..., inputs), (outputs, inputs), (outputs,) -> (..., outputs); differentiable once."""
    if not _suits(x, weight):
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Product.apply(x, weight, bias)
    return _product(x, weight, bias)


def _suits(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if x.numel() * weight.shape[0] < WORTHWHILE or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled and _has_product()


@cache
def _has_product() -> bool:
    """Whether this build of torch has the operators, which it does not document."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.aten, "mkldnn_linear_backward_weights")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """y = x W^T + b, so that dx = dy W, dW = dy^T x and db = sum dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        dx = _product(dy, weight.t().contiguous()) if for_x else None
        rows, dweight = dy.flatten(0, -2), None
        if for_weight:
            operands = rows.to_mkldnn(), x.flatten(0, -2).to_mkldnn()
            dweight, _ = torch.ops.aten.mkldnn_linear_backward_weights(*operands, weight, False)
        return dx, dweight, rows.sum(0) if for_bias else None
