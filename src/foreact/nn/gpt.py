"""The GPTs' causal transformer block in muP form, and the key-value cache of one call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.nn.mup import HiddenLinear


class KVCache:
    """Keys and values of one attention layer, made by a call and gone with it.

    Args:
        capacity: tokens to make room for. None: keep the tensors of a single pass as they are (with
            their gradients).

    Attributes:
        length: tokens held.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.length = 0
        self._held: tuple[Tensor, Tensor] | None = None

    @property
    def kv(self) -> tuple[Tensor, Tensor]:
        """Keys and values held, each (B, heads, length, head size)."""
        assert self._held is not None, "the cache is empty"
        k, v = self._held
        return k.narrow(2, 0, self.length), v.narrow(2, 0, self.length)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append N tokens' (B, heads, N, head size); returns all keys and values held."""
        start, self.length = self.length, self.length + k.shape[2]
        if self.capacity is None:
            assert start == 0, "a cache without capacity serves one pass"
            self._held = k, v
            return k, v
        assert self.length <= self.capacity, (
            f"the cache has room for {self.capacity} tokens, not {self.length}"
        )
        if self._held is None:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self._held = k.new_empty(shape), v.new_empty(shape)
        for buffer, new in zip(self._held, (k, v), strict=True):
            buffer.narrow(2, start, self.length - start).copy_(new)
        return self.kv


class DrawsCache:
    """Keys and values of one layer for D continuations of each of B contexts, held once.

    Args:
        context: what every continuation of a context has seen.
        draws: D.
        capacity: tokens of a continuation to make room for.
    """

    def __init__(self, context: KVCache, draws: int, capacity: int) -> None:
        self.context, self.draws = context, draws
        self.own = KVCache(capacity)

    @property
    def length(self) -> int:
        return self.context.length + self.own.length

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Append N tokens to each continuation and attend to its context and what it has appended.

        Args:
            q, k, v: (B D, heads, N, head size), the continuations of a context one after another.
            dropout: on the attention weights.

        Returns:
            (B D, heads, N, head size).
        """
        n, past = q.shape[2], self.own.length
        k, v = self.own.extend(k, v)
        q = q * q.shape[-1] ** -0.5
        to_own = q @ k.transpose(-1, -2)  # (B D, heads, N, past + N)
        if n > 1:
            # Row i is token past + i, which sees columns 0..past + i.
            later = torch.ones(n, past + n, dtype=torch.bool, device=q.device).triu(past + 1)
            to_own = to_own.masked_fill(later, -torch.inf)
        context_k, context_v = self.context.kv
        heads = q.shape[1]
        # One product for all continuations of a context: (B, heads, D N, head size).
        by_context = q.unflatten(0, (-1, self.draws)).transpose(1, 2).flatten(2, 3)
        scores = by_context @ context_k.transpose(-1, -2)
        # (B, heads, D N, context) -> (B D, heads, N, context)
        to_context = scores.unflatten(2, (self.draws, n)).transpose(1, 2).flatten(0, 1)
        # One softmax over context and continuation together.
        weights = torch.cat([to_context, to_own], dim=-1).softmax(-1)
        weights = functional.dropout(weights, dropout)
        on_context, on_own = weights.split([context_k.shape[2], past + n], dim=-1)
        on_context = on_context.unflatten(0, (-1, self.draws)).transpose(1, 2).flatten(2, 3)
        from_context = (on_context @ context_v).view(-1, heads, self.draws, n, q.shape[-1])
        return from_context.transpose(1, 2).flatten(0, 1) + on_own @ v


class Attention(nn.Module):
    """Multi-head self-attention with scores q k / head size (muP) and no biases.

    Args:
        width: channels in and out.
        heads: number of heads.
        inner: heads x head size; the channels that queries, keys and values share.
        base_width, base_inner: those of the base model.
        scale: factor on the scores.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        inner: int,
        base_width: int,
        base_inner: int,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale * heads / inner
        self.qkv = HiddenLinear(width, 3 * inner, base_inputs=base_width)
        self.out = HiddenLinear(inner, width, base_inputs=base_inner)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, width) -> queries, keys, values, each (B, heads, N, head size)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend and project back: (B, heads, N, head size) queries -> (B, N, width)."""
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale
        )
        return self.out(mixed.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Linear, GELU (exact), Linear; no biases."""

    def __init__(self, width: int, ratio: int, *, base_width: int) -> None:
        super().__init__()
        self.up = HiddenLinear(width, ratio * width, base_inputs=base_width)
        self.down = HiddenLinear(ratio * width, width, base_inputs=ratio * base_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        return self.down(functional.gelu(self.up(x)))


class CausalBlock(nn.Module):
    """Causal pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, width: int, heads: int, *, mlp_ratio: int, base_width: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.attention = Attention(
            width, heads, inner=width, base_width=base_width, base_inner=base_width, scale=scale
        )
        self.mlp = MLP(width, mlp_ratio, base_width=base_width)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, N, width) -> (B, N, width); with a cache, x follows the tokens held in it."""
        # With a cache of `past` tokens, row i of the mask allows columns 0..past + i:
        #     1 1 | 1 0 0
        #     1 1 | 1 1 0      past = 2, n = 3
        #     1 1 | 1 1 1
        # A single new token sees everything and needs no mask.
        q, k, v = self.attention.project(norm(x))
        past = 0 if cache is None else cache.length
        if cache is not None:
            k, v = cache.extend(k, v)
        n = x.shape[1]
        mask = None
        if past and n > 1:
            mask = torch.ones(n, past + n, dtype=torch.bool, device=x.device).tril(past)
        x = x + self.attention.mix(q, k, v, mask=mask, causal=not past and n > 1)
        return x + self.mlp(norm(x))


def norm(x: Tensor) -> Tensor:
    """Layer normalisation without learned scale or shift."""
    return functional.layer_norm(x, x.shape[-1:])


def init_blocks(blocks: nn.ModuleList, std: float, *, residual_std: float) -> None:
    """muP initialisation: normal weights, zero queries, residual projections scaled separately.

    Args:
        blocks: modules with `attention` and `mlp` as here.
        std: deviation at the base width.
        residual_std: the same for `attention.out` and `mlp.down`.
    """
    for block in blocks:
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, Attention)
        assert isinstance(mlp, MLP)
        attention.qkv.init_normal(std)
        # The first third of the rows makes the queries: at the start attention is uniform.
        nn.init.zeros_(attention.qkv.weight[: attention.qkv.out_features // 3])
        mlp.up.init_normal(std)
        attention.out.init_normal(residual_std)
        mlp.down.init_normal(residual_std)
