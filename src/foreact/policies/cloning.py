"""Behaviour cloning as a policy: does what the data's behaviour most likely would do, or a draw from it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreact.models.cloning import Cloning
from foreact.policies.stacks import Stacks, in_batches
from foreact.types import ActionChunk, Observation, StreamSpec, UserError
from foreact.weights.format import Checkpoint, build, load_checkpoint
from foreact.weights.tokenizers import tokenizer_of


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
        self, cloning: Cloning, stacks: Stacks, spec: StreamSpec, *, execute: int = 1, draw: bool = False,
        weights: str = "",
    ) -> None:  # fmt: skip
        config = cloning.config
        if spec.action is None or spec.action.dim != config.actions:
            found = "no actions" if spec.action is None else f"{spec.action.dim} action dims"
            raise UserError(f"The network predicts {config.actions} action dims, the spec has {found}.")
        if not 1 <= execute <= config.action_steps:
            raise UserError(
                f"execute is {execute}; the network predicts {config.action_steps} actions, choose 1 to that many."
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
        now = self.stacks.now(ids)

        def decide(stacks: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
            return self.cloning.propose(stacks, 1, rngs=rngs)[:, 0] if self.draw else self.cloning.mode(stacks)

        actions = in_batches(decide, self.stacks.batch_size, now.stacks, now.rngs).cpu().numpy()
        return ActionChunk(actions.astype(np.float32), self.execute, now.step, (time.perf_counter() - began) * 1e3)

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


def load_cloning_policy(
    path: Path,
    *,
    tokenizer: str | Path | None = None,
    execute: int = 1,
    draw: bool = False,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
) -> CloningPolicy:
    """A policy from a checkpoint folder.

    Args:
        path: checkpoint of a "bc".
        tokenizer: where its tokenizer lies, if it is not embedded.
        execute, draw: see `CloningPolicy`.
        batch_size: rows of one network call, see `Stacks`.
        device: where to compute.

    Raises:
        UserError: a checkpoint is missing, broken, or does not fit.
    """
    checkpoint = load_checkpoint(path)
    cloning = build_cloning(checkpoint, device)
    if checkpoint.spec is None:
        raise UserError(f"{path} has no spec, so it cannot act; export it again with the task it was trained on.")
    found = tokenizer_of(checkpoint, tokenizer, device)
    config = cloning.config
    stacks = Stacks(
        found, checkpoint.spec, camera=config.camera, frames=config.frames, grid=config.grid, batch_size=batch_size,
        device=device,
    )  # fmt: skip
    return CloningPolicy(cloning, stacks, checkpoint.spec, execute=execute, draw=draw, weights=checkpoint.hash)


def build_cloning(checkpoint: Checkpoint, device: torch.device | str) -> Cloning:
    """The network of a checkpoint.

    Raises:
        UserError: it is of another family.
    """
    if checkpoint.family != "bc":
        raise UserError(f"{checkpoint.path} holds a '{checkpoint.family}'; behaviour cloning is of the family 'bc'.")
    cloning = build(checkpoint, device)
    assert isinstance(cloning, Cloning)
    return cloning
