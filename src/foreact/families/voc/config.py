"""Sizes of a Video Occupancy Model, and what it is conditioned on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foreact.errors import UserError
from foreact.nn.gpt2 import GPT2Config


@dataclass(frozen=True, kw_only=True)
class VOCConfig:
    """Shape of the network and of its target; the defaults are what published runs trained."""

    width: int = 768
    """Channels."""
    heads: int = 8
    """Attention heads."""
    layers: int = 4
    """Blocks."""
    dropout: float = 0.2
    """On embeddings and on what each half of a block adds."""
    attention_dropout: float = 0.1
    """On attention weights."""
    positions: int | None = None
    """Rows of the position table; None: as many as are used."""
    vocab: int = 1024
    """Codes, V."""
    code_dim: int = 256
    """Length of a row of the codebook, c."""
    grid: tuple[int, int] = (5, 5)
    """Rows and columns of codes in a frame."""
    frames: int = 3
    """Frames in a stack, T."""
    gammas: tuple[float, ...] = (0.8,)
    """Discounts in [0, 1); with several the model is told which. 0 is the plain one-step model."""
    bootstrap_steps: int = 1
    """Observed steps before a sample of the target network stands in for the rest, n."""
    actions: int = 0
    """Action dimensions of the condition, A; 0: none, the future of the data's behaviour."""
    action_steps: int = 1
    """First actions of the condition, m."""
    camera: str = "pixels"
    """Stream of the batch to learn from."""
    feature_order: Literal["channels_first", "tokens_first"] = "channels_first"
    """How the reward head reads a frame's code vectors: as (c, h, w) or as (h, w, c).

    The published VQ-VAE runs have the first.
    """
    reward_hidden: int = 256
    """Width of the reward head."""
    context_loss: bool = True
    """Count the context's own codes in the loss, as published; False: only the future's."""
    target_decay: float = 0.9
    """Share of the target network that stays after an optimiser step."""
    target_top_k: int | None = None
    """Draw targets among the k likeliest codes, which biases them; None: among all.

    The published runs did so with 50, unknowingly.
    """
    target_dropout: bool = False
    """Keep dropout on in the target network, as the published runs did, unknowingly."""

    def __post_init__(self) -> None:
        for name in (
            "vocab",
            "code_dim",
            "frames",
            "bootstrap_steps",
            "action_steps",
            "reward_hidden",
        ):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--model.{name.replace('_', '-')} should be at least 1, found "
                    f"{getattr(self, name)}."
                )
        if self.actions < 0:
            raise UserError(f"VOC's actions should be 0 or more, found {self.actions}.")
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise UserError(f"VOC's grid should be (rows, columns), found {self.grid}.")
        if not self.gammas or not all(0.0 <= g < 1.0 for g in self.gammas):
            raise UserError(
                f"VOC's gammas should be one or more numbers in [0, 1), found {self.gammas}."
            )
        if len(set(self.gammas)) < len(self.gammas):
            raise UserError(f"VOC's gammas should differ from one another, found {self.gammas}.")
        if not 0.0 <= self.target_decay < 1.0:
            raise UserError(f"--model.target-decay should be in [0, 1), found {self.target_decay}.")
        if self.target_top_k is not None and not 1 <= self.target_top_k <= self.vocab:
            raise UserError(
                f"--model.target-top-k should be in 1..{self.vocab} or None for all, found "
                f"{self.target_top_k}."
            )
        if self.feature_order not in ("channels_first", "tokens_first"):
            raise UserError(
                "--model.feature-order should be channels_first or tokens_first, found "
                f"'{self.feature_order}'."
            )
        if self.positions is not None and self.positions < self.sequence:
            raise UserError(
                f"VOC's positions should be at least {self.sequence}, found {self.positions}."
            )

    @property
    def block(self) -> int:
        """Codes in a stack, L."""
        return self.frames * self.grid[0] * self.grid[1]

    @property
    def condition(self) -> int:
        """Tokens between context and future."""
        return (len(self.gammas) > 1) + (self.action_steps if self.actions else 0)

    @property
    def sequence(self) -> int:
        return 2 * self.block + self.condition

    @property
    def gpt(self) -> GPT2Config:
        return GPT2Config(
            vocab=self.vocab,
            positions=self.positions or self.sequence,
            width=self.width,
            heads=self.heads,
            layers=self.layers,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
        )
