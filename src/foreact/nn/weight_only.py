"""Weights in bfloat16 or int8 rows with a scale each, as decoding is bound by reading them."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.nn.mup import HiddenLinear

WeightPrecision = Literal["fp32", "bf16", "int8"]

M = TypeVar("M", bound=nn.Module)


class Int8Linear(nn.Module):
    """A bias-free matrix as int8 rows, each with a scale that maps its largest weight to 127."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        weight = weight.float()
        scale = (weight.abs().amax(dim=1).clamp_min(1e-12) / 127.0).to(torch.bfloat16)
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer(
            "weight", (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        )
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """bfloat16 (..., inputs) -> bfloat16 (..., outputs)."""
        # torch's kernel reads int8, 16 inputs at a time and past the end of others; else weights
        # are widened first.
        if x.device.type == "cpu" and x.shape[-1] % 16 == 0:
            rows = x.reshape(-1, x.shape[-1]).contiguous()
            # torch has no public name for it.
            product = torch._weight_int8pack_mm  # pyright: ignore[reportPrivateImportUsage]
            return product(rows, self.weight, self.scale).view(*x.shape[:-1], -1)
        return functional.linear(x, self.weight.to(x.dtype)) * self.scale


def reduce_weights(model: M, precision: WeightPrecision) -> M:
    """Quantise weights in place for inference; embeddings and readouts stay at least bfloat16.

    Args:
        model: a GPT of `HiddenLinear` modules, in evaluation mode.
        precision: "fp32" leaves it as it is.
    """
    if precision == "fp32":
        return model
    if precision == "int8":
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, HiddenLinear):
                    setattr(module, name, Int8Linear(child.weight.detach()))
    return model.to(torch.bfloat16)
