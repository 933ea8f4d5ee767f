"""Behaviour cloning on codes: a stack of frames -> a mixture of Gaussians over actions.

    codes (T h w) -> rows of the codebook -> a few channels each -> MLP -> M diagonal Gaussians over
    m actions

A mixture, since different behaviours may follow from one picture: its mean would be none of them
(Bishop, 1994).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.errors import UserError
from foreact.nn.gpt2 import matrices_decay
from foreact.types import Batch, LossOut


@dataclass(frozen=True, kw_only=True)
class CloningConfig:
    """Shape of the network, and what goes in and out."""

    vocab: int = 1024
    """Codes, V."""
    code_dim: int = 256
    """Length of a row of the codebook, c."""
    grid: tuple[int, int] = (5, 5)
    """Rows and columns of codes in a frame."""
    frames: int = 2
    """Frames in a stack, T."""
    low: tuple[float, ...] = (-1.0,)
    """Least value of every action dimension, (A,), in the units of the action spec."""
    high: tuple[float, ...] = (1.0,)
    """Greatest values, likewise."""
    action_steps: int = 1
    """Actions that one look predicts, m."""
    camera: str = "pixels"
    """Stream of the batch to learn from."""
    channels: int = 16
    """Channels of a code after the first layer."""
    width: int = 256
    """Channels of the hidden layers."""
    layers: int = 2
    """Hidden layers."""
    components: int = 5
    """Gaussians of the mixture, M."""
    min_std: float = 0.05
    """Least deviation of a Gaussian, where the bounds are 2 apart.

    It keeps the likelihood finite where actions sit on the bounds.
    """
    dropout: float = 0.1
    """After every hidden layer."""

    def __post_init__(self) -> None:
        for name in (
            "vocab",
            "code_dim",
            "frames",
            "action_steps",
            "channels",
            "width",
            "layers",
            "components",
        ):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--model.{name.replace('_', '-')} should be at least 1, found "
                    f"{getattr(self, name)}."
                )
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise UserError(f"Cloning's grid should be (rows, columns), found {self.grid}.")
        paired = len(self.low) == len(self.high) > 0
        if not paired or not all(a < b for a, b in zip(self.low, self.high, strict=True)):
            raise UserError(
                f"Cloning needs bounds low < high for every action, found {self.low} "
                f"and {self.high}."
            )
        if not self.min_std > 0.0 or not 0.0 <= self.dropout < 1.0:
            raise UserError(
                "--model.min-std should be positive and --model.dropout in [0, 1), found "
                f"{self.min_std} and {self.dropout}."
            )

    @property
    def actions(self) -> int:
        """Action dimensions, A."""
        return len(self.low)


class Cloning(nn.Module):
    """Distribution of the actions after a stack, with its `mode` and draws from it (`propose`).

    Attributes:
        codebook: float32 (V, c), the tokenizer's rows, which do not learn; see `set_codebook`.
    """

    used_parameters = "all"
    codebook: Tensor
    middle: Tensor
    reach: Tensor

    def __init__(self, config: CloningConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codebook", torch.zeros(config.vocab, config.code_dim))
        self.register_buffer("middle", (torch.tensor(config.high) + torch.tensor(config.low)) / 2)
        self.register_buffer("reach", (torch.tensor(config.high) - torch.tensor(config.low)) / 2)
        self.code = nn.Linear(config.code_dim, config.channels)
        inputs = config.frames * config.grid[0] * config.grid[1] * config.channels
        widths = [inputs, *[config.width] * config.layers]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(
            config.width, config.components * (1 + 2 * config.action_steps * config.actions)
        )

    @torch.no_grad()
    def set_codebook(self, rows: Tensor) -> None:
        """Take over the rows (V, c) of the tokenizer's codebook.

        Raises:
            UserError: they are of another size than the config says.
        """
        if rows.shape != self.codebook.shape:
            raise UserError(
                f"Cloning expects a codebook of {self.config.vocab} codes of length "
                f"{self.config.code_dim}, the tokenizer has {rows.shape[0]} of length "
                f"{rows.shape[1]}; use the tokenizer it was made for."
            )
        self.codebook.copy_(rows)

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Matrices decay, biases do not."""
        return matrices_decay(self, lr, weight_decay)

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """Mean negative log-likelihood in nats per window, of actions scaled to [-1, 1].

        Args:
            batch: `tokens[camera]` int64 (B, >= T, h, w), of which the first T frames are the
                stack; `actions` float (B, >= m, A) from the stack's last frame on, in the units of
                the action spec.
            rng: unused; nothing is drawn.
        """
        assert batch.actions is not None, "cloning learns from actions"
        tokens = batch.tokens[self.config.camera][:, : self.config.frames]
        loss = -self.log_prob(tokens, batch.actions[:, : self.config.action_steps]).mean()
        return LossOut(loss=loss, logs={"nats": loss.detach()})

    def log_prob(self, tokens: Tensor, actions: Tensor) -> Tensor:
        """Log-density of actions (B, m, A) after stacks int64 (B, T, h, w): float32 (B,).

        The density is that of the actions scaled to [-1, 1].
        """
        log_weight, mean, std = self._mixture(tokens)
        scaled = (actions - self.middle) / self.reach
        z = (scaled.flatten(1)[:, None].float() - mean) / std
        log_density = -0.5 * (z.square() + math.log(2 * math.pi)) - std.log()
        return (log_weight + log_density.sum(-1)).logsumexp(-1)

    @torch.no_grad()
    def mode(self, tokens: Tensor) -> Tensor:
        """Centre of the likeliest Gaussian: int64 (B, T, h, w) -> float32 (B, m, A) in bounds."""
        log_weight, mean, _ = self._mixture(tokens)
        rows = torch.arange(len(mean), device=mean.device)
        return self._bounded(mean[rows, log_weight.argmax(-1)])

    @torch.no_grad()
    def propose(self, tokens: Tensor, samples: int, *, rngs: Sequence[torch.Generator]) -> Tensor:
        """Draw actions.

        Args:
            tokens: int64 (B, T, h, w).
            samples: draws per row, S.
            rngs: a generator on the CPU for every row, so that no row's draws depend on its
                neighbours.

        Returns:
            float32 (B, S, m, A) within the bounds.
        """
        log_weight, mean, std = self._mixture(tokens)
        size = mean.shape[-1]
        uniform = torch.stack([torch.rand(samples, generator=rng) for rng in rngs]).to(mean.device)
        normal = torch.stack([torch.randn(samples, size, generator=rng) for rng in rngs])
        normal = normal.to(mean.device)  # (B, S, m A)
        # Inverse of the cumulative weights; rounding may leave their sum a little below a draw.
        component = torch.searchsorted(log_weight.exp().cumsum(-1), uniform)
        component = component.clamp_max(self.config.components - 1)  # (B, S)
        index = component[..., None].expand(-1, -1, size)
        return self._bounded(mean.gather(1, index) + std.gather(1, index) * normal)

    def _mixture(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (B, M), means and deviations (B, M, m A), for actions scaled to [-1, 1]."""
        config = self.config
        if tokens.ndim != 4 or tuple(tokens.shape[1:]) != (config.frames, *config.grid):
            raise UserError(
                f"Cloning reads stacks of shape (B, {config.frames}, {config.grid[0]}, "
                f"{config.grid[1]}), found {tuple(tokens.shape)}; use the tokenizer and the stack "
                "that it was trained with."
            )
        # Every code's channels are computed once, not at every place where it stands; tokenizers
        # differ in scale.
        scale = self.codebook.std(0, unbiased=False).clamp_min(1e-6)
        rows = (self.codebook - self.codebook.mean(0)) / scale
        x = functional.embedding(tokens.flatten(1), self.code(rows)).flatten(1)
        for layer in self.hidden:
            x = self.dropout(functional.gelu(layer(x)))
        out = self.head(x).float().unflatten(-1, (config.components, -1))
        mean, std = out[..., 1:].chunk(2, dim=-1)
        return out[..., 0].log_softmax(-1), mean, config.min_std + functional.softplus(std)

    def _bounded(self, scaled: Tensor) -> Tensor:
        """(..., m A) scaled to [-1, 1] -> (..., m, A) in the spec's units, within the bounds."""
        shape = (self.config.action_steps, self.config.actions)
        return scaled.clamp(-1.0, 1.0).unflatten(-1, shape) * self.reach + self.middle
