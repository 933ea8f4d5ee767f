"""Adversarial stage of an image tokenizer: autoencoder and discriminator side by side.

Published trainers step the autoencoder against the discriminator of the last step, then the
discriminator on pictures that were decoded before the autoencoder moved. Neither update sees the
other one's, so a single backward pass gives both gradients and a single optimiser makes both steps,
as long as every parameter sees its own loss only: the discriminator judges detached pictures, and
the autoencoder is judged by a discriminator whose weights are detached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from foreact.errors import UserError
from foreact.tokenizers.discriminator import PatchGAN, deceive_loss, judge_loss, smallest_side
from foreact.tokenizers.vq import VQTokenizer, kernels_decay
from foreact.types import Batch, LossOut


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The adversarial stage. LlamaGen was trained with weight 0.5 from step 20,000 on.

    Raises:
        UserError: a value is impossible.
    """

    weight: float = 0.0
    """Weight of the adversarial term in the autoencoder's loss; 0: no adversarial stage."""
    start: int = 0
    """Optimiser steps before both sides of the game begin."""
    adaptive: bool = False
    """Match the term's gradient at the last layer to the other losses' (2012.09841, eq. 7)."""
    channels: int = 64
    """Feature maps of the discriminator's first convolution."""
    layers: int = 3
    """Convolutions of stride 2 of the discriminator."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UserError(f"The adversarial weight should be a number >= 0, found {self.weight}.")
        for name, least in (("start", 0), ("channels", 1), ("layers", 1)):
            if getattr(self, name) < least:
                raise UserError(
                    f"The adversarial {name.replace('_', '-')} should be at least {least}, found "
                    f"{getattr(self, name)}."
                )


class AdversarialTraining(nn.Module):
    """A tokenizer together with its discriminator; meets `foreact.types.Trainable`.

    The wrapper is what is trained and resumed, `tokenizer` is what is kept: its weights and config
    know nothing of the discriminator. How far training is stands in the buffer `forwards`, because
    a module is not told the step and a resumed run must not begin the game anew. With several
    processes each normalises the discriminator's batches alone.

    Args:
        tokenizer: trained in place.
        config: the stage.
        accumulate: training forwards per optimiser step.

    Raises:
        UserError: the tokenizer's pictures are too small for the discriminator.
    """

    def __init__(
        self, tokenizer: VQTokenizer, config: AdversarialConfig, *, accumulate: int = 1
    ) -> None:
        super().__init__()
        if min(tokenizer.config.image_size) < smallest_side(config.layers):
            raise UserError(
                f"A discriminator of {config.layers} layers needs pictures of at least "
                f"{smallest_side(config.layers)} pixels along either side, found image-size "
                f"{tokenizer.config.image_size}; use fewer layers."
            )
        self.config = config
        self.tokenizer = tokenizer
        self.discriminator = PatchGAN(config.channels, config.layers)
        self.waiting = config.start * accumulate
        self.forwards: Tensor
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """The tokenizer's loss, plus both adversarial losses in training once they have begun.

        Args:
            batch: as the tokenizer takes it.
            rng: unused: nothing is drawn.

        Returns:
            The sum of the two losses, and the tokenizer's logs with "deceive" (the autoencoder's
            term), "judge" (the discriminator's loss) and "adaptive" (the factor on the former)
            where they count.
        """
        result = self.tokenizer.reconstruct(batch)
        if not self.training:
            return LossOut(result.loss, result.logs)
        begun = bool(self.forwards >= self.waiting)
        self.forwards += 1
        if not begun:
            return LossOut(result.loss, result.logs)
        # Frozen copies, so that deceiving trains the autoencoder alone.
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        deceive = deceive_loss(functional_call(self.discriminator, fixed, (result.decoded,)))
        judge = judge_loss(
            self.discriminator(result.images), self.discriminator(result.decoded.detach())
        )
        factor = torch.ones_like(deceive)
        if self.config.adaptive:
            factor = adaptive_factor(result.loss, deceive, self.tokenizer.last_layer)
        loss = result.loss + self.config.weight * factor * deceive + judge
        logs = {"deceive": deceive.detach(), "judge": judge.detach(), "adaptive": factor}
        return LossOut(loss, {**result.logs, **logs})

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The tokenizer's groups, then the discriminator's."""
        return [
            *self.tokenizer.param_groups(lr, weight_decay),
            *kernels_decay(self.discriminator, lr, weight_decay),
        ]


def adaptive_factor(loss: Tensor, deceive: Tensor, last_layer: Tensor) -> Tensor:
    """() ratio of the losses' gradient norms at the last layer, <= 1e4 (2012.09841, eq. 7)."""
    own, other = (
        torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm()
        for term in (loss, deceive)
    )
    return (own / (other + 1e-4)).clamp(max=1e4).detach()
