"""The pre-norm transformer block and small pieces that several networks share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.nn.products import Linear


class Attention(nn.Module):
    """Multi-head self-attention over all tokens.

    Args:
        width: channels, a multiple of `heads`.
        heads: attention heads.
        dropout: on the output.
        attention_dropout: on the attention weights.
    """

    def __init__(
        self, width: int, heads: int, *, dropout: float = 0.0, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        # (B, N, 3 width) -> (B, N, 3, heads, head size) -> three of (B, heads, N, head size)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        p = self.attention_dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=p)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(-2)))


class MLP(nn.Module):
    """Linear, GELU, Linear; dropout after each."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.dropout(self.down(self.dropout(functional.gelu(self.up(x)))))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        width: channels.
        heads: attention heads.
        mlp_ratio: hidden channels of the MLP over `width`.
        dropout: on the outputs of attention and MLP and inside the MLP.
        attention_dropout: on the attention weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(
            width, heads, dropout=dropout, attention_dropout=attention_dropout
        )
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, int(width * mlp_ratio), dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def sinusoid(t: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of `t` at geometric frequencies: (...) -> float32 (..., channels).

    The number of channels is even.
    """
    half = channels // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(max_period) / half)
    )
    angles = t[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def spread(items: Tensor, count: int) -> Tensor:
    """Repeat K items along axis 1 to `count` tokens: token j gets item floor(j K / count).

    Args:
        items: (B, K, C).
        count: number of tokens, at least K.

    Returns:
        (B, count, C).
    """
    k = items.shape[1]
    if count % k == 0:
        return items.repeat_interleave(count // k, dim=1)
    return items[:, torch.arange(count, device=items.device) * k // count]


def init_linear(module: nn.Module) -> None:
    """Initialise every Linear (Xavier uniform, zero bias) and LayerNorm (ones, zeros) inside."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.LayerNorm) and m.elementwise_affine:
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
