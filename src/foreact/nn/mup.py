"""Maximal update parametrisation (muP, arXiv 2203.03466): one learning rate for every width.

Widths are measured against a base width; `multiplier = width / base`. A weight that maps a width to
a width ("hidden") has its learning rate divided by the multiplier and its initial deviation by the
multiplier's square root. Weights with one finite side (embeddings, inputs, readouts) keep both, and
a readout divides its input by the multiplier. Attention scores are divided by the head's size
instead of its square root. The multipliers are plain floats on the modules, so they survive copies,
sharding and checkpoints.

One deviation from the published table, made by the authors of VaViM and kept: weight decay is not
multiplied back, so the effective decay of hidden weights (lr x weight decay in AdamW) falls with
the width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foreact.nn.products import linear


class HiddenLinear(nn.Linear):
    """A matrix without bias whose both sides grow with the model.

    Args:
        inputs, outputs: features.
        base_inputs: number of inputs at the base width.
    """

    def __init__(self, inputs: int, outputs: int, *, base_inputs: int) -> None:
        self.multiplier = inputs / base_inputs
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return linear(x, self.weight)

    def init_normal(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std * self.multiplier**-0.5)


def param_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: hidden weights by multiplier with lr / multiplier, then all others with lr.

    Args:
        model: holds `HiddenLinear` modules.
        lr: learning rate at the base width.
        weight_decay: the same for every group, embeddings included.
    """
    hidden = {id(m.weight): m.multiplier for m in model.modules() if isinstance(m, HiddenLinear)}
    by_multiplier: dict[float, list[nn.Parameter]] = {}
    others: list[nn.Parameter] = []
    for p in model.parameters():
        (by_multiplier.setdefault(hidden[id(p)], []) if id(p) in hidden else others).append(p)
    groups = [
        {"params": ps, "lr": lr / m, "weight_decay": weight_decay}
        for m, ps in by_multiplier.items()
    ]
    return [*groups, {"params": others, "lr": lr, "weight_decay": weight_decay}]
