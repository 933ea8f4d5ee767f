"""VaViM, the video model of driving (arXiv 2502.15672): a GPT over the tokens of a few frames.

    frame 0: 18 x 32 tokens, row by row | frame 1 | ... | frame 7   each predicts the next

A token's input is the sum of three learned embeddings: its id, its place in the frame, its frame's
place in the window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.errors import UserError
from foreact.nn.gpt import CausalBlock, KVCache, init_blocks, norm
from foreact.nn.mup import param_groups
from foreact.nn.products import linear, rows_by_numpy
from foreact.types import Batch, LossOut


@dataclass(frozen=True, kw_only=True)
class VaViMConfig:
    """Shape of the network; the defaults are the published size S."""

    width: int = 768
    """Channels."""
    heads: int = 6
    """Attention heads; the published sizes have 128 channels per head."""
    layers: int = 24
    """Blocks."""
    mlp_ratio: int = 4
    """Hidden channels of the MLP over width."""
    vocab: int = 16385
    """Token ids; the published models count one more than their tokenizer's 16,384 codes."""
    frames: int = 8
    """Frames in the context window."""
    grid: tuple[int, int] = (18, 32)
    """Rows and columns of tokens in a frame."""
    base_width: int = 256
    """Width at which learning rate and init_std were tuned (muP)."""
    init_std: float = 0.0289
    """Deviation of initial weights at the base width; the published tuning."""
    scale_residual_init: bool = False
    """Divide the initial deviation of the projections into the residual stream by sqrt(2 layers).

    The authors meant to and their code does not, so the published training is without.
    """
    tied: bool = True
    """Whether the readout shares the token embedding; else it has its own, zero at first."""
    output_scale: float = 1.0
    """Factor on the logits."""
    attention_scale: float = 1.0
    """Factor on the attention scores."""
    camera: str = "front"
    """Stream of the batch to learn from."""

    def __post_init__(self) -> None:
        for name in ("width", "heads", "layers", "mlp_ratio", "vocab", "frames", "base_width"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--model.{name.replace('_', '-')} should be at least 1, found "
                    f"{getattr(self, name)}."
                )
        if self.width % self.heads:
            raise UserError(
                f"VaViM's width ({self.width}) should be a multiple of heads ({self.heads})."
            )
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise UserError(f"VaViM's grid should be (rows, columns), found {self.grid}.")

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]


SIZES = {
    "debug": VaViMConfig(width=128, heads=2, layers=4, frames=4),
    "S": VaViMConfig(width=768, heads=6),
    "B": VaViMConfig(width=1024, heads=8),
    "L": VaViMConfig(width=2048, heads=16),
}
"""Published sizes, and a small one to debug with."""


class VaViM(nn.Module):
    """Next-token model of video."""

    used_parameters = "all"

    def __init__(self, config: VaViMConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.width)
        self.position_embedding = nn.Embedding(config.tokens_per_frame, config.width)
        self.frame_embedding = nn.Embedding(config.frames, config.width)
        self.blocks = nn.ModuleList(
            CausalBlock(
                config.width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                base_width=config.base_width,
                scale=config.attention_scale,
            )
            for _ in range(config.layers)
        )
        self.head = None if config.tied else nn.Linear(config.width, config.vocab, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        std = self.config.init_std
        for embedding in (self.token_embedding, self.position_embedding, self.frame_embedding):
            nn.init.normal_(embedding.weight, std=std)
        depth = math.sqrt(2 * self.config.layers) if self.config.scale_residual_init else 1.0
        init_blocks(self.blocks, std, residual_std=std / depth)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """muP's groups for AdamW."""
        return param_groups(self, lr, weight_decay)

    # --- training ---------------------------------------------------------------------------------

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """Mean cross-entropy in nats of every token but the first, given those before it.

        Args:
            batch: `tokens[camera]` int64 (B, T, h, w) with T <= frames; frames marked invalid do
                not count as targets.
            rng: unused; nothing is drawn.
        """
        tokens = batch.tokens[self.config.camera]
        losses = self.token_losses(tokens)
        valid = batch.valid.get(self.config.camera)
        if valid is None:
            loss = losses.mean()
        else:
            # (B, T) per frame -> (B, T h w - 1) per target: nothing predicts the first token.
            weight = valid.repeat_interleave(self.config.tokens_per_frame, dim=1)[:, 1:].float()
            loss = (losses * weight).sum() / weight.sum().clamp_min(1.0)
        return LossOut(loss=loss, logs={"nats_per_token": loss.detach()})

    def token_losses(self, tokens: Tensor) -> Tensor:
        """Nats of each token but the first: int64 (B, T, h, w) -> float32 (B, T h w - 1)."""
        logits = self._logits(tokens.flatten(1)[:, :-1], tokens)
        targets = tokens.flatten(1)[:, 1:]
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
        ).view_as(targets)

    # --- looking ----------------------------------------------------------------------------------

    def logits(self, tokens: Tensor) -> Tensor:
        """int64 (B, T, h, w) -> (B, T h w, vocab); row n predicts token n + 1."""
        return self._logits(tokens.flatten(1), tokens)

    def features(self, tokens: Tensor, layer: int) -> Tensor:
        """The residual stream after a block, normalised after the last one only.

        Args:
            tokens: int64 (B, T, h, w); of more than `frames` frames the last ones are taken.
            layer: 0-based and inclusive: layer 12 has seen 13 blocks.

        Returns:
            (B, T, h, w, width).
        """
        if not 0 <= layer < self.config.layers:
            raise UserError(
                f"The model has layers 0..{self.config.layers - 1}; layer {layer} was asked for."
            )
        tokens = tokens[:, -self.config.frames :]
        self._require_grid(tokens)
        x = self._embed(tokens.flatten(1), 0)
        for block in self.blocks[: layer + 1]:
            x = block(x)
        if layer == self.config.layers - 1:
            x = norm(x)
        return x.unflatten(1, tokens.shape[1:])

    def watch(self, tokens: Tensor) -> list[KVCache]:
        """Every layer's keys and values for int64 (B, T, h, w): all an action expert needs."""
        self._require_window(tokens)
        caches = [KVCache() for _ in self.blocks]
        x = self._embed(tokens.flatten(1), 0)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache)
        return caches

    # --- imagining --------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        context: Tensor,
        *,
        frames: int,
        temperature: float = 1.0,
        top_k: int | None = 1,
        rng: torch.Generator | None = None,
        on_token: Callable[[], object] | None = None,
    ) -> Tensor:
        """Imagine what follows, token by token.

        Once the window is full it slides: before each further frame the last `config.frames - 1`
        frames are read anew from place 0 on, since places in the window are learned. (The reference
        code kept the first ones.)

        Args:
            context: int64 (B, T, h, w), T >= 1.
            frames: how many frames to imagine.
            temperature: divides the logits.
            top_k: draw among the k likeliest tokens; 1 takes the likeliest, None draws among all.
            rng: needed unless top_k is 1, on the device of `context`.
            on_token: called after every token, for progress bars.

        Returns:
            int64 (B, frames, h, w).

        Raises:
            UserError: a grid or token ids of another tokenizer, or draws without a generator.
        """
        self._require_grid(context)
        self.require_ids(context)
        if self.config.frames == 1:
            raise UserError(
                "This model's window is one frame, so it has no room for context and "
                "cannot imagine."
            )
        if top_k != 1 and rng is None:
            raise UserError(
                "Drawing tokens needs a generator; give rng, or top_k=1 for the likeliest ones."
            )
        if not temperature > 0:
            raise UserError(f"--temperature should be positive, found {temperature}.")
        if top_k is not None and not 1 <= top_k <= self.config.vocab:
            raise UserError(
                f"--top-k should be in 1..{self.config.vocab}, or None for all, found {top_k}."
            )

        per_frame, longest_context = self.config.tokens_per_frame, self.config.frames - 1
        video = context.flatten(2)  # (B, T, h w), grows by the frames imagined
        caches: list[KVCache] = []
        for imagined in range(frames):
            # The last token of a frame is drawn, but read only when the next frame begins: a cache
            # that lacks one token of the window is full.
            if not caches or caches[0].length + 1 == self.config.frames * per_frame:
                window = video[:, -longest_context:]
                reach = min(window.shape[1] + frames - imagined, self.config.frames)
                caches = [KVCache(reach * per_frame - 1) for _ in self.blocks]
                logits = self._step(window.flatten(1), caches)
            else:
                logits = self._step(video[:, -1, -1:], caches)
            frame: list[Tensor] = []
            with rows_by_numpy(context, self.token_embedding.weight):
                while True:
                    frame.append(draw_token(logits, temperature, top_k, rng))
                    if on_token is not None:
                        on_token()
                    if len(frame) == per_frame:
                        break
                    logits = self._step(frame[-1][:, None], caches)
            video = torch.cat([video, torch.stack(frame, dim=1)[:, None]], dim=1)
        return video[:, context.shape[1] :].unflatten(2, self.config.grid)

    def _step(self, tokens: Tensor, caches: list[KVCache]) -> Tensor:
        """Read N further tokens (B, N); returns the logits of the next one (B, vocab)."""
        x = self._embed(tokens, caches[0].length)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache)
        return self._readout(x[:, -1])

    # --- parts ------------------------------------------------------------------------------------

    def _logits(self, sequence: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, N, vocab) of `sequence` (B, N), the first N of `tokens` (B, T, h, w)."""
        self._require_window(tokens)
        x = self._embed(sequence, 0)
        for block in self.blocks:
            x = block(x)
        return self._readout(x)

    def _embed(self, sequence: Tensor, start: int) -> Tensor:
        """Input of tokens (B, N) at places start, start + 1, ... of the window: (B, N, width)."""
        place = torch.arange(start, start + sequence.shape[1], device=sequence.device)
        per_frame = self.config.tokens_per_frame
        frame = self.frame_embedding(place // per_frame)
        position = self.position_embedding(place % per_frame)
        return self.token_embedding(sequence) + (frame + position)

    def _readout(self, x: Tensor) -> Tensor:
        weight = self.token_embedding.weight if self.head is None else self.head.weight
        # muP: logits shrink with width over base width.
        factor = self.config.output_scale * self.config.base_width / self.config.width
        return linear(norm(x) * factor, weight)

    def _require_grid(self, tokens: Tensor) -> None:
        if (
            tokens.ndim != 4
            or tokens.shape[1] < 1
            or tuple(tokens.shape[2:]) != tuple(self.config.grid)
        ):
            raise UserError(
                f"The model reads tokens of shape (B, T, {self.config.grid[0]}, "
                f"{self.config.grid[1]}), found {tuple(tokens.shape)}; use the tokenizer and "
                "picture size that it was trained with."
            )

    def _require_window(self, tokens: Tensor) -> None:
        self._require_grid(tokens)
        if tokens.shape[1] > self.config.frames:
            raise UserError(
                f"The model reads at most {self.config.frames} frames at once, found "
                f"{tokens.shape[1]}."
            )

    def require_ids(self, tokens: Tensor) -> None:
        """Raise a `UserError` for ids outside the vocabulary (costs a wait for the device)."""
        if tokens.numel():
            low, high = (int(bound) for bound in torch.aminmax(tokens))
            if low < 0 or high >= self.config.vocab:
                raise UserError(
                    f"Token ids should lie in 0..{self.config.vocab - 1}, found {low}..{high}; "
                    "use the tokenizer that the model was trained with."
                )


def draw_token(
    logits: Tensor, temperature: float, top_k: int | None, rng: torch.Generator | None
) -> Tensor:
    """One token id per row: (B, vocab) -> int64 (B,)."""
    if top_k == 1:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1)
    if top_k is None:
        return torch.multinomial(probabilities, 1, generator=rng)[:, 0]
    likeliest, ids = probabilities.topk(top_k, sorted=False)
    choice = torch.multinomial(likeliest / likeliest.sum(-1, keepdim=True), 1, generator=rng)
    return ids.gather(-1, choice)[:, 0]
