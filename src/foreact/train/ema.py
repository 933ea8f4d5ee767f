"""Exponential moving average of the weights: its decay, its own tensors, and swapping them in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foreact.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Averaged weights: decay(s) = 1 - (1 + s / inv_gamma) ** -power after s averaged steps."""

    enabled: bool = True
    """Average the weights; evaluation and exported weights then use the average."""
    inv_gamma: float = 1.0
    """Time constant of the decay's rise; larger rises later."""
    power: float = 0.75
    """Exponent of the decay's rise; 2/3 to 0.75 suit runs of 10,000 steps and more."""
    min: float = 0.0
    """Least decay once averaging has begun."""
    max: float = 0.9999
    """Greatest decay."""
    update_after: int = 0
    """Steps during which the average is just the weights."""

    def __post_init__(self) -> None:
        if not (self.inv_gamma > 0 and self.power > 0):
            raise UserError(
                "ema.inv_gamma and ema.power should be positive, found "
                f"{self.inv_gamma} and {self.power}."
            )
        if not 0.0 <= self.min <= self.max <= 1.0:
            raise UserError(
                f"Expected 0 <= ema.min <= ema.max <= 1, found min {self.min} and max {self.max}."
            )
        if self.update_after < 0:
            raise UserError(f"ema.update_after should be 0 or more, found {self.update_after}.")

    def decay(self, step: int) -> float:
        """Decay of update number `step`, counted from 0; 0 (a copy) for the first updates."""
        s = step - self.update_after - 1
        if s <= 0:
            return 0.0
        # expm1/log1p keep the digits of 1 - (1 + s / inv_gamma) ** -power near 0.
        return min(
            max(-math.expm1(-self.power * math.log1p(s / self.inv_gamma)), self.min), self.max
        )


def averaged_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are averaged: trainable ones, except those of batch normalisation.

    The others are simply taken from the model (UVA's rule), as are all buffers when the average is
    swapped in.
    """
    batch_norm = {
        id(p)
        for m in model.modules()
        if isinstance(m, _BatchNorm)
        for p in m.parameters(recurse=False)
    }
    return {
        n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in batch_norm
    }


class EMA:
    """Averaged copies of a model's trainable parameters, held outside the model.

    Attributes:
        shadow: parameter name -> averaged tensor, in the parameter's shape, dtype and device.
        step: updates done so far; it belongs to the state, or a resumed run would restart the decay
            at 0.
    """

    def __init__(self, model: nn.Module, config: EMAConfig) -> None:
        self.config = config
        self.step = 0
        self.shadow = {name: p.detach().clone() for name, p in averaged_parameters(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one optimiser step."""
        weight = 1.0 - self.config.decay(self.step)
        parameters = averaged_parameters(model)
        # torch has no public name for one step over many tensors.
        lerp_ = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
        lerp_(list(self.shadow.values()), [parameters[n].detach() for n in self.shadow], weight)
        self.step += 1

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Within the block `model` holds the averaged weights; its own are always restored."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        parameters = averaged_parameters(model)
        for name, average in self.shadow.items():
            own_value = parameters[name].detach().clone()
            parameters[name].copy_(average)
            average.copy_(own_value)

    @torch.no_grad()
    def copy_to(self, target: nn.Module, source: nn.Module) -> None:
        """Write the average into `target`, another instance of the model; buffers are kept.

        Args:
            target: receives averaged parameters, and those of `source` where nothing is averaged.
            source: the model in training.
        """
        originals = dict(source.named_parameters())
        for name, p in target.named_parameters():
            p.copy_(self.shadow.get(name, originals[name]))

    def load(self, shadow: Mapping[str, Tensor], step: int) -> None:
        """Restore a saved average and its number of updates.

        Raises:
            UserError: the saved names or shapes are not those of this model.
        """
        if set(shadow) != set(self.shadow):
            odd = sorted(set(shadow) ^ set(self.shadow))
            raise UserError(
                f"The saved average has other parameters than the model: {odd[:3]}; "
                "use the same model."
            )
        for name, tensor in shadow.items():
            if tensor.shape != self.shadow[name].shape:
                raise UserError(
                    f"The saved average of '{name}' has shape {tuple(tensor.shape)}, the model "
                    f"expects {tuple(self.shadow[name].shape)}; use the same model."
                )
            self.shadow[name].copy_(tensor)
        self.step = step
