"""The network of VOC: a GPT-2 over a present block of codes, a condition, a future block."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from foreact.nn.gpt import DrawsCache, KVCache
from foreact.nn.gpt2 import GPT2, GPT2Config


class OccupancyGPT(GPT2):
    """A GPT-2 over [context | condition | future]; blocks of codes are flat, int64 (B, L).

    Args:
        config: of the GPT-2.
        gammas: how many discounts it tells apart; with one, none is in the condition.
        actions: numbers of an action in the condition; 0: none.
    """

    def __init__(self, config: GPT2Config, *, gammas: int, actions: int) -> None:
        super().__init__(config)
        self.gamma_embedding = nn.Embedding(gammas, config.width) if gammas > 1 else None
        self.action_embedding = nn.Linear(actions, config.width) if actions else None
        if self.gamma_embedding is not None:
            nn.init.normal_(self.gamma_embedding.weight, std=0.02)

    def condition(self, gammas: Tensor, actions: Tensor | None) -> Tensor:
        """Gamma numbers int64 (...), actions float (..., m, A) -> (..., condition, width)."""
        parts = [self.token_embedding.weight.new_empty(*gammas.shape, 0, self.config.width)]
        if self.gamma_embedding is not None:
            parts.append(self.gamma_embedding(gammas)[..., None, :])
        if self.action_embedding is not None:
            assert actions is not None
            parts.append(self.action_embedding(actions))
        return torch.cat(parts, dim=-2)

    def code_logits(self, context: Tensor, condition: Tensor, future: Tensor) -> Tensor:
        """Logits (B, 2 L - 1, V) of all codes but the first; the last L predict the future."""
        # Each position predicts the code after it: [context: L | condition: m | future: L - 1].
        x = torch.cat([self.embed(context), condition, self.embed(future[:, :-1])], dim=1)
        features = self(x)
        if condition.shape[1]:
            # The m positions right before a token of the condition predict no code; the last one
            # of the condition predicts the first code of the future.
            before, after = context.shape[1] - 1, context.shape[1] - 1 + condition.shape[1]
            features = torch.cat([features[:, :before], features[:, after:]], dim=1)
        return self.readout(features)

    @torch.no_grad()
    def sample(
        self,
        context: Tensor,
        condition: Tensor,
        uniform: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        on_token: Callable[[], object] | None = None,
    ) -> Tensor:
        """Draw futures.

        Args:
            context: (B, L); each is read once.
            condition: (B, N, condition, width), N draws for each context.
            uniform: (B, N, L) in [0, 1), one number decides each code.
            temperature, top_k: see `draw_codes`.
            on_token: called after every code, for progress bars.

        Returns:
            int64 (B, N, L).
        """
        length, draws, condition_length = context.shape[1], uniform.shape[1], condition.shape[2]
        # A context that is drawn from once goes on in the cache it was read into, which takes fewer
        # operations.
        capacity = 2 * length + condition_length if draws == 1 else None
        context_caches = [KVCache(capacity) for _ in self.blocks]
        features = self.last(self.embed(context), context_caches).repeat_interleave(draws, dim=0)
        caches = context_caches
        if draws != 1:  # the context's keys and values are shared by its draws
            added = condition_length + length
            caches = [DrawsCache(cache, draws, added) for cache in context_caches]
        if condition_length:
            features = self.last(condition.flatten(0, 1), caches)
        uniform = uniform.flatten(0, 1)
        codes: list[Tensor] = []
        for i in range(length):
            logits = self.readout(features)
            code = draw_codes(logits, uniform[:, i], temperature=temperature, top_k=top_k)
            codes.append(code)
            if on_token is not None:
                on_token()
            if i < length - 1:
                features = self.last(self.embed(code[:, None]), caches)
        return torch.stack(codes, dim=1).unflatten(0, (-1, draws))


def draw_codes(
    logits: Tensor, uniform: Tensor, *, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """One code per row, the first at which the cumulated probabilities exceed `uniform`.

    Args:
        logits: (R, V).
        uniform: (R,) in [0, 1).
        temperature: divides the logits.
        top_k: keep the k likeliest codes only.

    Returns:
        int64 (R,).
    """
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -math.inf)
    cumulated = logits.softmax(-1).double().cumsum(-1)
    # Scaled by the total, since rounding leaves it a little off 1.
    return (cumulated <= uniform[:, None].double() * cumulated[:, -1:]).sum(-1)
