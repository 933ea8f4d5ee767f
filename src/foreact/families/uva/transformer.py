"""UVA's joint transformer: its inputs -> features of every future token (arXiv 2503.00200)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from foreact.families.uva.config import UVAConfig
from foreact.nn.layers import Block, init_linear, spread


@dataclass(frozen=True, kw_only=True)
class TransformerInputs:
    """What the transformer is shown; a learned vector stands in for what is None.

    Attributes:
        context, wrist_context: float (B, N, d), tokens of the past frames.
        future, wrist_future: float (B, N, d), tokens of the future frames.
        hidden: bool (B, N), which of the future tokens (of both cameras) are hidden nevertheless.
        actions, past_actions: float (B, K, A), normalised.
        action_keep: bool (B,), whose actions are shown; None for all.
        past_keep: bool (B, K), which past actions are shown; None for all.
        text: float (B, L), features of the instruction.
        text_keep: bool (B,), which instructions are shown; None for all.
        proprioception: float (B, P, S).
    """

    context: Tensor | None = None
    future: Tensor | None = None
    hidden: Tensor | None = None
    actions: Tensor | None = None
    past_actions: Tensor | None = None
    action_keep: Tensor | None = None
    past_keep: Tensor | None = None
    text: Tensor | None = None
    text_keep: Tensor | None = None
    wrist_context: Tensor | None = None
    wrist_future: Tensor | None = None
    proprioception: Tensor | None = None


class UVATransformer(nn.Module):
    """Encoder and decoder over the F h w future tokens; other streams are joined by channels."""

    def __init__(self, config: UVAConfig) -> None:
        super().__init__()
        self.config = config
        width, decoder_width = config.width, config.decoder_width
        frames, places = config.frames, config.frame_tokens

        def vector(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(1, *shape))

        # Every parameter that lies directly in this module is a learned vector or a position
        # embedding.
        self.video_in = nn.Linear(config.token_channels, width)
        self.context_in = nn.Linear(config.token_channels, width)
        self.action_in = nn.Linear(config.action_dim, width)
        self.no_video, self.no_action = vector(width), vector(width)
        if config.predicts_wrist:
            self.wrist_in = nn.Linear(config.token_channels, width)
            self.no_wrist = vector(width)
        if config.shows_wrist:
            self.wrist_context_in = nn.Linear(config.token_channels, width)
        if config.past_actions:
            self.past_action_in = nn.Linear(config.action_dim, width)
            self.no_past_action = vector(width)
        if config.proprioception:
            self.proprioception_in = nn.Linear(sum(config.proprioception.values()), width)
        if config.text_dim is not None:
            self.text_in = nn.Linear(config.text_dim, width)
            self.no_text = vector(width)
            self.text_position = vector(config.text_tokens, width)
            self.decoder_text_position = vector(config.text_tokens, decoder_width)
        self.join = nn.Linear(len(config.streams) * width, width)
        self.time_position, self.space_position = vector(frames, width), vector(places, width)
        self.decoder_time_position = vector(frames, decoder_width)
        self.decoder_space_position = vector(places, decoder_width)
        self.head_time_position = vector(frames, decoder_width)
        self.head_space_position = vector(places, decoder_width)

        options = {
            "mlp_ratio": config.mlp_ratio,
            "dropout": config.dropout,
            "attention_dropout": config.attention_dropout,
        }
        self.input_norm = nn.LayerNorm(width, eps=1e-6)
        self.encoder = nn.ModuleList(
            Block(width, config.heads, **options) for _ in range(config.depth)
        )
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_in = nn.Linear(width, decoder_width)
        self.decoder = nn.ModuleList(
            Block(decoder_width, config.decoder_heads, **options)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)

        init_linear(self)
        for embedding in self.parameters(recurse=False):
            nn.init.normal_(embedding, std=0.02)

    def forward(self, inputs: TransformerInputs) -> Tensor:
        """Features of every future token, (B, N, decoder_width)."""
        return self.decode(self.encode(inputs))

    def encode(self, inputs: TransformerInputs) -> Tensor:
        """(B, text tokens + N, width); the text tokens, if any, come first."""
        # (B, N, width); the batch axis is 1 where every stream is hidden.
        x = self._joined(inputs) + _positions(self.time_position, self.space_position)
        if self.config.text_dim is not None:
            text = self.text_in(inputs.text)
            if inputs.text_keep is not None:
                text = torch.where(inputs.text_keep[:, None], text, self.no_text.to(text.dtype))
            # (B, text tokens, width): the same instruction on each
            text = text[:, None] + self.text_position
            x = torch.cat([text, x.expand(text.shape[0], -1, -1)], dim=1)
        return self.encoder_norm(self._run(self.encoder, self.input_norm(x)))

    def decode(self, encoded: Tensor) -> Tensor:
        """(B, text tokens + N, width) -> (B, N, decoder_width), without the text tokens."""
        x = self.decoder_in(encoded)
        position = _positions(self.decoder_time_position, self.decoder_space_position)
        if self.config.text_dim is not None:
            position = torch.cat([self.decoder_text_position, position], dim=1)
        x = self.decoder_norm(self._run(self.decoder, x + position))
        return x[:, -self.config.tokens :] + _positions(
            self.head_time_position, self.head_space_position
        )

    def _run(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            recompute = self.config.checkpointing and self.training
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x

    # --- one vector per token from all streams ----------------------------------------------------

    def _joined(self, inputs: TransformerInputs) -> Tensor:
        """`self.join` of all streams' concatenated projections, computed as a sum: (B, N, width).

        Both maps are linear, so a stream's two are multiplied first; nothing N x width is projected
        twice, and what is the same for several tokens is computed once.
        """
        tokens = self.config.tokens
        total = self.join.bias
        # The columns of the joining layer that read a stream: (width, width) for each.
        blocks = self.join.weight.split(self.config.width, dim=1)
        weights = dict(zip(self.config.streams, blocks, strict=True))

        def project(stream: str, into: nn.Linear, x: Tensor) -> Tensor:
            # W_s (W x + b) = (W_s W) x + W_s b; the bias of `join` is in `total` already.
            return functional.linear(x, weights[stream] @ into.weight, weights[stream] @ into.bias)

        def placeholder(stream: str, vector: Tensor) -> Tensor:
            return functional.linear(vector, weights[stream])

        def images(
            stream: str, into: nn.Linear, x: Tensor | None, no_image: Tensor, masked: Tensor | None
        ) -> Tensor:
            if x is None:
                return placeholder(stream, no_image)
            projected = project(stream, into, x)  # (B, N, width)
            if masked is None:
                return projected
            return torch.where(masked[..., None], placeholder(stream, no_image), projected)

        total = total + images("video", self.video_in, inputs.future, self.no_video, inputs.hidden)
        total = total + images("context", self.context_in, inputs.context, self.no_video, None)
        if "wrist" in weights:
            total = total + images(
                "wrist", self.wrist_in, inputs.wrist_future, self.no_wrist, inputs.hidden
            )
        if inputs.wrist_context is not None:
            total = total + project("wrist_context", self.wrist_context_in, inputs.wrist_context)
        # `spread` repeats K or P steps over the N tokens, in the order of time.
        no_action = placeholder("action", self.no_action)
        if inputs.actions is not None:
            projected = project("action", self.action_in, inputs.actions)
            if inputs.action_keep is not None:
                projected = torch.where(inputs.action_keep[:, None, None], projected, no_action)
            total = total + spread(projected, tokens)
        else:
            total = total + no_action
        if "past_action" in weights:
            past = placeholder("past_action", self.no_past_action)
            if inputs.past_actions is not None:
                projected = project("past_action", self.past_action_in, inputs.past_actions)
                if inputs.past_keep is not None:
                    projected = torch.where(inputs.past_keep[..., None], projected, past)
                past = spread(projected, tokens)
            total = total + past
        if inputs.proprioception is not None:
            total = total + spread(
                project("proprioception", self.proprioception_in, inputs.proprioception), tokens
            )
        return total


def _positions(time: Tensor, space: Tensor) -> Tensor:
    """(1, F, C) and (1, h w, C) -> (1, F h w, C), frame-major."""
    return (time[:, :, None] + space[:, None]).flatten(1, 2)
