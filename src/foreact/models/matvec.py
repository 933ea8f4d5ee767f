"""A linear layer's product with a single row, the whole work of decoding token by token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T: (..., inputs), (outputs, inputs) -> (..., outputs).

    For one float32 row on the CPU numpy multiplies instead of torch: its matrix-vector product reads the weights at
    the speed of memory, torch's takes about 2.5 times as long (`benchmarks/decode.py`).
    """
    single = x.numel() == x.shape[-1] and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if not single or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return functional.linear(x, weight)
    row = weight.detach().numpy() @ x.detach().reshape(-1).numpy()
    return torch.from_numpy(row).view(*x.shape[:-1], -1)
