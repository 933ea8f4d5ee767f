"""GPT-2 as Video Occupancy Models use it: learned positions, pre-norm, tied readout.

A block of its own beside VaViM's in `gpt`: biases, learned norms, the tanh form of GELU, dropout
and the usual scale of the scores, where VaViM's has muP and none of these. What they share is the
cache and how a token is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.errors import UserError
from foreact.nn.gpt import DrawsCache, KVCache
from foreact.nn.products import Linear, linear

INIT_STD = 0.02
CPU_ELEMENTS = 2**23
"""Most elements of a hidden layer to make at once on the CPU.

Memory for larger tensors (32 MiB in float32) is requested from the operating system every time,
page by page, which took a tenth of a training step.
"""


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Shape of the network.

    Attributes:
        vocab: token ids, V.
        positions: longest sequence.
        width: channels.
        heads: attention heads; divides width.
        layers: blocks.
        dropout: on embeddings and on what each half of a block adds.
        attention_dropout: on attention weights.

    Raises:
        UserError: a value is impossible.
    """

    vocab: int
    positions: int
    width: int = 768
    heads: int = 8
    layers: int = 4
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab", "positions", "width", "heads", "layers"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"The GPT's {name.replace('_', '-')} should be at least 1, found "
                    f"{getattr(self, name)}."
                )
        if self.width % self.heads:
            raise UserError(
                f"The GPT's width ({self.width}) should be a multiple of its heads ({self.heads})."
            )
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(
                    f"The GPT's {name.replace('_', '-')} should be in [0, 1), found "
                    f"{getattr(self, name)}."
                )


class GPT2Block(nn.Module):
    """Causal pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        width = config.width
        self.heads, self.attention_dropout = config.heads, config.attention_dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = Linear(width, 4 * width)
        self.down = Linear(4 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cache: KVCache | DrawsCache | None = None, *, last: bool = False
    ) -> Tensor:
        """(B, N, width) -> (B, N, width); with a cache, x follows the tokens held in it.

        With `last`, only the last token's output (B, 1, width) is computed.
        """
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        if isinstance(cache, DrawsCache):
            mixed = cache.attend(q, k, v, dropout=dropout)
            if last:
                mixed, x = mixed[:, :, -1:], x[:, -1:]
        else:
            past = 0 if cache is None else cache.length
            if cache is not None:
                k, v = cache.extend(k, v)
            if last:  # keys and values of all tokens, the query of the last alone
                q, x = q[:, :, -1:], x[:, -1:]
            n, mask = q.shape[2], None
            if past and n > 1:
                mask = torch.ones(n, past + n, dtype=torch.bool, device=x.device).tril(past)
            mixed = functional.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=not past and n > 1
            )
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(-2)))
        hidden = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.dropout(self.down(hidden))


class GPT2(nn.Module):
    """Token ids -> embeddings -> features -> logits, as callers mix in own embeddings."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.width)
        self.position_embedding = nn.Embedding(config.positions, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(GPT2Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal weights, std 0.02; residual projections are divided by sqrt(2 layers)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, GPT2Block)
            for into_stream in (block.out, block.down):
                nn.init.normal_(
                    into_stream.weight, std=INIT_STD / math.sqrt(2 * self.config.layers)
                )

    def forward(self, x: Tensor, caches: Sequence[KVCache | DrawsCache] | None = None) -> Tensor:
        """Embedded inputs (B, N, width) -> normalised features (B, N, width).

        Args:
            x: embeddings without positions, of the first N positions, or of the N that follow those
                held in the caches.
            caches: one per block.
        """
        parts = 1
        if x.device.type == "cpu" and caches is None:
            parts = math.ceil(4 * x.numel() / CPU_ELEMENTS)  # hidden layers are 4 x as wide
        if parts <= 1:
            return self._run(x, caches)
        return torch.cat([self._run(part, None) for part in x.tensor_split(min(parts, len(x)))])

    def _run(self, x: Tensor, caches: Sequence[KVCache | DrawsCache] | None) -> Tensor:
        x = self._place(x, caches[0].length if caches else 0)
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches else None)
        return self.norm(x)

    def last(self, x: Tensor, caches: Sequence[KVCache | DrawsCache]) -> Tensor:
        """`forward(x, caches)[:, -1]`, (B, width), without computing the other features."""
        x = self._place(x, caches[0].length)
        for block, cache in zip(self.blocks[:-1], caches[:-1], strict=True):
            x = block(x, cache)
        return self.norm(self.blocks[-1](x, caches[-1], last=True)[:, 0])

    def _place(self, x: Tensor, start: int) -> Tensor:
        return self.dropout(x + self.position_embedding.weight[start : start + x.shape[1]])

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 (B, N) -> (B, N, width)."""
        return self.token_embedding(tokens)

    def readout(self, features: Tensor) -> Tensor:
        """(..., width) -> logits (..., V)."""
        return linear(features, self.token_embedding.weight)

    def logits(self, tokens: Tensor) -> Tensor:
        """int64 (B, N) -> (B, N, V); row n predicts token n + 1."""
        return self.readout(self(self.embed(tokens)))

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Matrices and embeddings decay; biases and norms do not."""
        return matrices_decay(self, lr, weight_decay)


def matrices_decay(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: trainable tensors of two or more axes decay, others do not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
    ]
