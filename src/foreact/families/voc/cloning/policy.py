"""Behaviour cloning as a policy: plays the mode of the cloned behaviour, or a draw from it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreact.checkpoints.format import Checkpoint, build, load_checkpoint
from foreact.errors import UserError
from foreact.families.voc.cloning.model import Cloning
from foreact.families.voc.stacks import CodeStacks, in_batches, open_stacks
from foreact.types import ActionChunk, Observation, StreamSpec


class CloningPolicy:
    """A cloned behaviour with its tokenizer and memory; meets `foreact.types.Policy`.

    Args:
        cloning: the network, on the device of `stacks`.
        stacks: memory of the frames, see there.
        spec: of the task.
        execute: actions played before looking again, 1..m.
        draw: play a draw from the distribution instead of its mode.
        weights: content hash of the weights, told by `describe`.

    Raises:
        UserError: `execute` is impossible, or network and spec differ in the number of actions.
    """

    def __init__(
        self,
        cloning: Cloning,
        stacks: CodeStacks,
        spec: StreamSpec,
        *,
        execute: int = 1,
        draw: bool = False,
        weights: str = "",
    ) -> None:
        config = cloning.config
        if spec.action is None or spec.action.dim != config.actions:
            found = "no actions" if spec.action is None else f"{spec.action.dim} action dims"
            raise UserError(
                f"The network predicts {config.actions} action dims, the spec has {found}."
            )
        if not 1 <= execute <= config.action_steps:
            raise UserError(
                f"execute is {execute}; the network predicts {config.action_steps} actions, "
                "choose 1 to that many."
            )
        self.spec, self.cloning, self.stacks = spec, cloning.eval(), stacks
        self.execute, self.draw, self.weights = execute, draw, weights

    def reset(self, seeds: Sequence[int]) -> None:
        self.stacks.reset(seeds)

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        self.stacks.observe(obs, ids)

    @torch.inference_mode()
    def act(self, ids: Sequence[int] | None = None) -> ActionChunk:
        began = time.perf_counter()
        batch = self.stacks.now(ids)

        def decide(stacks: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
            if self.draw:
                return self.cloning.propose(stacks, 1, rngs=rngs)[:, 0]
            return self.cloning.mode(stacks)

        decided = in_batches(decide, self.stacks.batch_size, batch.stacks, batch.rngs)
        actions = decided.cpu().numpy().astype(np.float32)
        elapsed_ms = (time.perf_counter() - began) * 1e3
        return ActionChunk(actions, self.execute, batch.step, elapsed_ms)

    def describe(self) -> dict[str, Any]:
        return {
            "policy": "cloning",
            "weights": self.weights,
            "tokenizer": self.stacks.tokenizer.hash,
            "context": self.stacks.frames,
            "horizon": self.cloning.config.action_steps,
            "execute": self.execute,
            "draw": self.draw,
            "batch_size": self.stacks.batch_size,
            "device": str(self.stacks.device),
        }


@dataclass(frozen=True, kw_only=True)
class CloningOptions:
    """How cloned behaviour acts."""

    draw: bool = False
    """Play draws from the distribution of actions instead of its mode."""
    batch_size: int | None = None
    """Rows of one network call; None: 1 on a CPU, which gains little from more, else 32."""
    tokenizer: str | None = None
    """Where its tokenizer lies, if it is not embedded."""


def open_policy(
    path: Path,
    options: CloningOptions | None = None,
    *,
    execute: int | None = None,
    device: torch.device | str = "cpu",
) -> CloningPolicy:
    """A policy from a checkpoint folder.

    Args:
        path: checkpoint of a "bc".
        options: how it acts.
        execute: actions played before looking again; None: 1.
        device: where to compute.

    Raises:
        UserError: a checkpoint is missing, broken, or does not fit.
    """
    options = options or CloningOptions()
    checkpoint = load_checkpoint(path, of="bc")
    cloning = build_cloning(checkpoint, device)
    stacks = open_stacks(checkpoint, cloning.config, options.tokenizer, options.batch_size, device)
    return CloningPolicy(
        cloning,
        stacks,
        stacks.spec,
        execute=1 if execute is None else execute,
        draw=options.draw,
        weights=checkpoint.hash,
    )


def build_cloning(checkpoint: Checkpoint, device: torch.device | str) -> Cloning:
    """The network of a checkpoint."""
    cloning = build(checkpoint, device)
    assert isinstance(cloning, Cloning)
    return cloning
