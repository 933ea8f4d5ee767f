"""The optimiser (AdamW) over a model's own parameter groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.train.parallel import whole
from foreact.types import Trainable


def build_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Fused AdamW over `model.param_groups(lr, weight_decay)`, frozen parameters left out.

    Every group keeps its base rate under "base_lr". State exists for every parameter from the
    start, with the values that lazy creation would give, so the structure of a checkpoint does not
    depend on which parts of the model have had a gradient so far (a task mode may be drawn late).
    Parameters without a gradient are skipped by the optimiser: neither their moments nor, by weight
    decay, their values change.

    Args:
        model: a `foreact.types.Trainable` module, already on its device.
        lr: base learning rate.
        weight_decay: decoupled decay for the groups that want it.
        betas: decay of the first and second moment.

    Raises:
        UserError: nothing is trainable.
    """
    assert isinstance(model, Trainable)
    groups = []
    for group in model.param_groups(lr, weight_decay):
        params = [p for p in group["params"] if p.requires_grad]
        if params:
            groups.append({**group, "params": params, "base_lr": group.get("lr", lr)})
    if not groups:
        raise UserError("The model has no trainable parameter; unfreeze some before training.")
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to its base rate times `factor`; returns the rate of the first group.

    A group with "scheduled": False keeps its base rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * (factor if group.get("scheduled", True) else 1.0)
    return optimizer.param_groups[0]["lr"]


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
    """() norm of the gradient before clipping; scales it down to `max_norm`, where given.

    Where gradients are divided among processes, the norm is that of all shares; every process calls
    this.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = whole(nn.utils.get_total_norm(gradients))
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(list(parameters), max_norm, norm)
    return norm
