"""VOC trained from pixels, together with the tokenizer whose codes it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.families.voc.model import VOC
from foreact.types import Batch, Codes, LossOut, Trainable


class TrainableCodes(Codes, Trainable, Protocol):
    """A tokenizer that learns from batches of pixels, and is made of its config alone."""

    config: Any

    def __call__(self, batch: Batch, *, rng: torch.Generator) -> LossOut: ...


class JointVOC(nn.Module):
    """An occupancy model together with the tokenizer it reads; meets `foreact.types.Trainable`.

    The losses are added, but codes are integers: no gradient of VOC reaches the tokenizer. What VOC
    has learned of codes that have moved since is stale, in its target network above all;
    `freeze_after` puts an end to that.

    Args:
        voc: the occupancy model.
        tokenizer: learns on the whole batch, by a loss of its own.
        prepare: uint8 (B, T, 3, H, W) -> float, as the tokenizer's `encode` takes frames.
        freeze_after: optimiser steps after which the tokenizer stays as it is; None: it learns to
            the end.

    Raises:
        UserError: VOC was made for other codes.
    """

    steps: Tensor

    def __init__(
        self,
        voc: VOC,
        tokenizer: TrainableCodes,
        prepare: Callable[[Tensor], Tensor],
        *,
        freeze_after: int | None = None,
    ) -> None:
        super().__init__()
        assert isinstance(tokenizer, nn.Module)
        if freeze_after is not None and freeze_after < 0:
            raise UserError(
                "--freeze-after should be a number of steps >= 0 or None for never, found "
                f"{freeze_after}."
            )
        if tuple(voc.config.grid) != tuple(tokenizer.grid):
            raise UserError(
                f"The model expects {voc.config.grid} codes a frame, the tokenizer makes "
                f"{tokenizer.grid}; use the tokenizer it was made for."
            )
        voc.set_codebook(tokenizer.codebook)
        self.voc = voc
        self.tokenizer = tokenizer
        self.prepare, self.freeze_after = prepare, freeze_after
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def used_parameters(self) -> str:
        """See `foreact.types.Trainable`; a frozen tokenizer's parameters are not used."""
        if self.freeze_after is not None:
            return "varying"
        parts = [getattr(part, "used_parameters", "varying") for part in (self.voc, self.tokenizer)]
        return max(parts, key=("all", "same", "varying").index)

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """Both losses; VOC learns on the codes that the tokenizer gives now.

        Args:
            batch: `video[camera]`, uint8 (B, F, 3, H, W), begins with the T frames of the present
                stack and the n that follow; `rewards`, and `actions` where they are wanted, as for
                `VOC.learn`. What the tokenizer needs besides may stand behind.
            rng: of all draws.

        Returns:
            The sum, and the logs of both with "codes_in_use", the share of the codebook in the
            codes VOC learns on.
        """
        config = self.voc.config
        video = batch.video[config.camera][:, : config.frames + config.bootstrap_steps]
        # In float32, since those who read VOC later encode in it too.
        with torch.no_grad(), torch.autocast(video.device.type, enabled=False):
            codes = self.tokenizer.encode(self.prepare(video))
            self.voc.set_codebook(self.tokenizer.codebook)
        voc_out = self.voc(dataclasses.replace(batch, tokens={config.camera: codes}), rng=rng)
        in_use = (torch.bincount(codes.flatten(), minlength=config.vocab) > 0).float().mean()
        logs = {**voc_out.logs, "codes_in_use": in_use}
        if self.frozen:
            return LossOut(voc_out.loss, logs)
        tokenizer_out = self.tokenizer(batch, rng=rng)
        return LossOut(voc_out.loss + tokenizer_out.loss, {**tokenizer_out.logs, **logs})

    @property
    def frozen(self) -> bool:
        """Whether the tokenizer has stopped learning."""
        return self.freeze_after is not None and bool(self.steps >= self.freeze_after)

    def after_step(self) -> None:
        """See `foreact.types.Trainable`; calls the tokenizer's own, if any, while it learns."""
        tokenizer_step = getattr(self.tokenizer, "after_step", None)
        if tokenizer_step is not None and not self.frozen:
            tokenizer_step()
        self.voc.after_step()
        self.steps += 1

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """VOC's groups, then the tokenizer's."""
        return [
            *self.voc.param_groups(lr, weight_decay),
            *self.tokenizer.param_groups(lr, weight_decay),
        ]

    def split_state(
        self, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Two checkpoints from the state dict of this module, its own weights or averaged ones.

        Returns:
            VOC's state, with the codebook of that very tokenizer, and the tokenizer's.
        """
        voc, tokenizer = (
            {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            for prefix in ("voc.", "tokenizer.")
        )
        with torch.device("meta"):
            rebuilt: Any = type(self.tokenizer)(self.tokenizer.config)
        rebuilt.load_state_dict(tokenizer, assign=True)
        return {**voc, "codebook": rebuilt.codebook.detach().clone()}, tokenizer
