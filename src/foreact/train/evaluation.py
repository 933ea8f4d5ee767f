"""Measurements during training: evaluators, which are due, running them on averaged weights."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.train.config import TrainConfig
from foreact.train.ema import EMA


class Evaluator(Protocol):
    """A measurement during training, run on rank 0 alone while the other processes wait.

    Attributes:
        name: prefix of its metrics in the log, "<name>/<metric>".
        every: optimiser steps between calls, None for the config's `eval_every`; the last step is
            always measured.
    """

    name: str
    every: int | None

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measure `model`, which holds the averaged weights and is in eval mode, without gradients.

        Where the model in training is divided among processes, this is a whole copy for the
        occasion.
        """
        ...


def due(evaluators: Sequence[Evaluator], step: int, config: TrainConfig) -> list[Evaluator]:
    """The evaluators to run after `step` optimiser steps."""
    return [
        e for e in evaluators if step == config.steps or step % (e.every or config.eval_every) == 0
    ]


def require_known(metric: str | None, evaluators: Sequence[Evaluator]) -> None:
    """Raise a `UserError` if `metric` can come from none of the evaluators."""
    names = [e.name for e in evaluators]
    if metric is not None and metric.split("/")[0] not in names:
        raise UserError(
            f"--train.best-metric '{metric}' belongs to no evaluator; give <evaluator>/<metric> "
            f"with one of {names}, or leave it out."
        )


def hollow_copy(model: nn.Module) -> nn.Module:
    """A copy without the parameters' values (they are on "meta"), to be filled for evaluators.

    Where a model's tensors are divided among processes, rank 0 alone cannot run it.
    """
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def filled(hollow: nn.Module, state: dict[str, Tensor], device: torch.device) -> nn.Module:
    """A model on `device` with the values of `state`; `hollow` stays as it is."""
    model = copy.deepcopy(hollow)
    model.load_state_dict(state, assign=True)
    return model.to(device)


@torch.no_grad()
def measure(
    evaluators: Sequence[Evaluator], model: nn.Module, ema: EMA | None, step: int
) -> dict[str, float]:
    """Metrics as "<evaluator>/<metric>"; the model is left unchanged, in training mode."""
    metrics: dict[str, float] = {}
    model.eval()
    with ema.swapped(model) if ema is not None else nullcontext():
        for evaluator in evaluators:
            values = evaluator(model, step)
            metrics |= {f"{evaluator.name}/{name}": float(value) for name, value in values.items()}
    model.train()
    return metrics


def not_finite(metrics: Mapping[str, float]) -> str:
    """The metrics that are NaN or infinite, as part of a sentence; empty: none is."""
    return ", ".join(f"{name} is {v}" for name, v in metrics.items() if not math.isfinite(v))


def ranking_value(
    metrics: Mapping[str, float], wanted: str | None, evaluators: Sequence[Evaluator]
) -> float | None:
    """The metric that ranks checkpoints; None if unranked or its evaluator was not run.

    Warns when the evaluator ran and did not give that metric.
    """
    if wanted is None or wanted.split("/")[0] not in [e.name for e in evaluators]:
        return None
    if wanted not in metrics:
        warnings.warn(
            f"best_metric '{wanted}' was not measured; found {sorted(metrics)}.", stacklevel=2
        )
    return metrics.get(wanted)
