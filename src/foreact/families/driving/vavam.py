"""VaVAM (arXiv 2502.15672): VaViM with an action expert that plans waypoints by flow matching.

The expert is a narrower transformer of the same depth. In layer l its tokens attend to the keys and
values of VaViM's layer l and to each other; the video never sees the actions, so it is read once,
whatever is asked of the expert.

What an action token may attend to, with 2 tokens per frame, 3 waypoints per frame and 2 frames (x:
may attend)::

                     video              actions
                 frame 0  frame 1   frame 0   frame 1
    frame 0         x x      . .      x x x     . . .
                    x x      . .      x x x     . . .
                    x x      . .      x x x     . . .
    frame 1         x x      x x      . . .     x x x
                    x x      x x      . . .     x x x
                    x x      x x      . . .     x x x

In training each frame of the context is a present for which a plan is learned. When acting, the
present is the last frame, and the rows are the samples asked for: each sees all video, and itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.errors import UserError
from foreact.families.driving.vavim import SIZES as VIDEO_SIZES
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.nn.flow import FlowMatching, TimeDistribution
from foreact.nn.gpt import MLP, Attention, KVCache, init_blocks, norm
from foreact.nn.mup import HiddenLinear, param_groups
from foreact.types import Batch, LossOut


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """Shape of the action expert; the defaults are the published size S."""

    width: int = 192
    """Channels."""
    mlp_ratio: int = 4
    """Hidden channels of the MLP over width."""
    horizon: int = 6
    """Waypoints per plan, K; the published models plan 3 s at 2 Hz."""
    action_dim: int = 2
    """Numbers per waypoint: x forward and y left, in metres, in the frame of the car."""
    commands: int = 3
    """High-level commands: 0 right, 1 left, 2 straight."""
    max_period: float = 10_000.0
    """Longest period of the time embedding."""
    base_width: int = 64
    """Width at which learning rate and init_std were tuned (muP)."""
    base_attention: int = 256
    """Attention channels of the base model."""
    init_std: float = 0.0086
    """Deviation of initial weights at the base width; the published tuning."""
    output_scale: float = 1.0
    """Factor on the velocity."""
    attention_scale: float = 1.0
    """Factor on the expert's attention scores; the video keeps its own."""


@dataclass(frozen=True, kw_only=True)
class VaVAMConfig:
    """VaViM, the expert beside it and the flow between noise and plans."""

    vavim: VaViMConfig = field(default_factory=VaViMConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    train_vavim: bool = False
    """Whether the video model learns too; the published models keep it frozen."""
    action_scale: float = 70.0
    """Metres that make 1 inside the model."""
    sigma: float = 0.001
    """Noise left at the end of the flow."""
    time: TimeDistribution = "beta"
    """How training draws the flow's time."""
    context: int | None = None
    """Frames to act from; None: as many as the video model's window holds."""
    steps: int = 10
    """Euler steps of a plan."""
    clip: float | None = None
    """Limit on each coordinate of a plan, in metres; None: none."""

    def __post_init__(self) -> None:
        if self.context is not None and not 1 <= self.context <= self.vavim.frames:
            raise UserError(
                f"--model.context should be in 1..{self.vavim.frames}, the video model's frames, "
                "not "
                f"{self.context}."
            )
        if self.steps < 1 or (self.clip is not None and not self.clip > 0):
            raise UserError(
                f"steps and clip should be positive, found {self.steps} and {self.clip}."
            )
        if self.expert.width % 2 or self.expert.width < 4:
            raise UserError(
                f"The expert's width should be even and at least 4, found {self.expert.width}."
            )
        if not self.action_scale > 0:
            raise UserError(f"--model.action-scale should be positive, found {self.action_scale}.")


SIZES = {
    "debug": VaVAMConfig(vavim=VIDEO_SIZES["debug"], expert=ExpertConfig(width=32)),
    "S": VaVAMConfig(vavim=VIDEO_SIZES["S"], expert=ExpertConfig(width=192)),
    "B": VaVAMConfig(vavim=VIDEO_SIZES["B"], expert=ExpertConfig(width=256)),
    "L": VaVAMConfig(vavim=VIDEO_SIZES["L"], expert=ExpertConfig(width=512)),
}
"""Published sizes, and a small one to debug with."""


class ActionEncoder(nn.Module):
    """Noisy waypoints, their command and the flow's time -> one token per waypoint."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        self.max_period = config.max_period
        width, base = config.width, config.base_width
        self.action = nn.Linear(config.action_dim, width, bias=False)
        self.command_embedding = nn.Embedding(config.commands, width)
        self.position_embedding = nn.Embedding(config.horizon, width)
        self.mix = HiddenLinear(2 * width, width, base_inputs=2 * base)
        self.out = HiddenLinear(width, width, base_inputs=base)

    def forward(self, actions: Tensor, commands: Tensor, t: Tensor) -> Tensor:
        """(B, G, K, A), int64 (B, G), float (B, G) -> (B, G, K, width)."""
        x = (
            self.action(actions)
            + self.command_embedding(commands)[:, :, None]
            + self.position_embedding.weight
        )
        # The K waypoints of a plan share its time.
        time = time_embedding(t, x.shape[-1], self.max_period)[:, :, None].expand_as(x).to(x.dtype)
        return self.out(functional.silu(self.mix(torch.cat([time, x], dim=-1))))


class ExpertBlock(nn.Module):
    """Pre-norm block whose tokens attend to one layer of the video model and to each other."""

    def __init__(self, config: ExpertConfig, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(
            config.width,
            heads,
            inner=inner,
            base_width=config.base_width,
            base_inner=config.base_attention,
            scale=config.attention_scale,
        )
        self.mlp = MLP(config.width, config.mlp_ratio, base_width=config.base_width)

    def forward(self, x: Tensor, video: KVCache, mask: Tensor) -> Tensor:
        """(B, G K, width), the video's keys and values, bool (G K, N + G K) -> (B, G K, width)."""
        q, k, v = self.attention.project(norm(x))
        video_k, video_v = video.kv
        # (B, heads, N + G K, head size): the video's tokens first, as in the columns of the mask.
        k = torch.cat([video_k.to(k.dtype), k], dim=2)
        v = torch.cat([video_v.to(v.dtype), v], dim=2)
        x = x + self.attention.mix(q, k, v, mask=mask)
        return x + self.mlp(norm(x))


class ActionExpert(nn.Module):
    """The narrow transformer that turns noise into plans.

    Args:
        config: its shape.
        video: shape of the video model, which gives depth, heads and the channels of attention.
    """

    def __init__(self, config: ExpertConfig, video: VaViMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ActionEncoder(config)
        self.blocks = nn.ModuleList(
            ExpertBlock(config, video.heads, video.width) for _ in range(video.layers)
        )
        self.decoder = nn.Linear(config.width, config.action_dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        std = self.config.init_std
        encoder = self.encoder
        for part in (encoder.action, encoder.command_embedding, encoder.position_embedding):
            nn.init.normal_(part.weight, std=std)
        encoder.mix.init_normal(std)
        encoder.out.init_normal(std)
        init_blocks(self.blocks, std, residual_std=std / math.sqrt(2 * max(1, len(self.blocks))))
        nn.init.zeros_(self.decoder.weight)

    def forward(
        self, actions: Tensor, commands: Tensor, t: Tensor, video: list[KVCache], mask: Tensor
    ) -> Tensor:
        """Velocity of G plans per sample.

        Args:
            actions: noisy plans (B, G, K, A).
            commands: int64 (B, G).
            t: time of the flow, (B, G).
            video: the video model's keys and values of N tokens, one cache per layer.
            mask: bool (G K, N + G K), True where an action token may attend.

        Returns:
            (B, G, K, A).
        """
        groups = actions.shape[1]
        x = self.encoder(actions, commands, t).flatten(1, 2)  # (B, G K, width)
        for block, cache in zip(self.blocks, video, strict=True):
            x = block(x, cache, mask)
        factor = self.config.output_scale * self.config.base_width / self.config.width
        return self.decoder(norm(x) * factor).unflatten(1, (groups, -1))


class VaVAM(nn.Module):
    """Video-action model: plans of waypoints from the tokens of the front camera and a command."""

    def __init__(self, config: VaVAMConfig) -> None:
        super().__init__()
        self.config = config
        # Of the video model's last block only keys and values are read.
        self.used_parameters = "same" if config.train_vavim else "all"
        self.vavim = VaViM(config.vavim).requires_grad_(config.train_vavim)
        self.expert = ActionExpert(config.expert, config.vavim)
        self.flow = FlowMatching(config.time, sigma=config.sigma, time_scale=1.0)

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """muP's groups for AdamW."""
        return param_groups(self, lr, weight_decay)

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """Flow-matching loss of the plans at every frame of the context.

        Args:
            batch: `tokens[camera]` int64 (B, T, h, w); `plans` float32 (B, T, K, A) in metres;
                `commands` int64 (B, T).
            rng: draws times and noise, on the batch's device.
        """
        if batch.plans is None or batch.commands is None:
            raise UserError(
                "VaVAM learns from plans and commands; open a store with "
                "trajectories, not video alone."
            )
        plans = batch.plans
        t = self.flow.draw_time(tuple(plans.shape[:2]), rng)
        noise = torch.randn(plans.shape, generator=rng, device=plans.device)
        loss = self.loss(batch.tokens[self.config.vavim.camera], batch.commands, plans, t, noise)
        return LossOut(loss=loss, logs={"flow": loss.detach()})

    def loss(
        self, tokens: Tensor, commands: Tensor, plans: Tensor, t: Tensor, noise: Tensor
    ) -> Tensor:
        """Mean squared error of the velocity, () float32, at times t (B, T), noise (B, T, K, A)."""

        def predict(x: Tensor, time: Tensor) -> Tensor:
            return self.velocity(tokens, commands, x, time[..., 0])

        # The flow counts a waypoint as one sample; those of a plan share its time: (B, T, K).
        t = t[..., None].expand(plans.shape[:-1])
        return self.flow.loss(predict, plans / self.config.action_scale, t, noise).mean()

    def velocity(self, tokens: Tensor, commands: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """One plan per frame, as in training.

        Args:
            tokens: int64 (B, T, h, w).
            commands: int64 (B, T).
            noisy: (B, T, K, A), in the model's units (metres / action_scale).
            t: (B, T) in [0, 1].

        Returns:
            (B, T, K, A).
        """
        config = self.config
        mask = frame_mask(
            tokens.shape[1], config.vavim.tokens_per_frame, config.expert.horizon, tokens.device
        )
        return self.expert(noisy, commands, t, self._watch(tokens), mask)

    @torch.no_grad()
    def act(
        self,
        tokens: Tensor,
        commands: Tensor,
        *,
        samples: int = 1,
        steps: int | None = None,
        clip: float | None = None,
        rng: torch.Generator | None = None,
        noise: Tensor | None = None,
        path: list[Tensor] | None = None,
    ) -> Tensor:
        """Plans from the last frame of the context, all from one reading of the video.

        Args:
            tokens: int64 (B, T, h, w) with 1 <= T <= frames.
            commands: int64 (B,).
            samples: plans per context, k.
            steps: Euler steps; None for the config's.
            clip: limit on each coordinate, in metres; None for the config's, math.inf for none.
            rng: draws the initial noise, on the device of `tokens`; needed unless `noise` is given.
            noise: standard normal (B, k, K, A) to use instead.
            path: receives the result as it would be after each step.

        Returns:
            float32 (B, k, K, A), metres in the frame of the car.
        """
        self.vavim.require_ids(tokens)
        self._require_commands(commands)
        steps = self.config.steps if steps is None else steps
        clip = self.config.clip if clip is None else clip
        if steps < 1 or samples < 1:
            raise UserError(f"samples and steps should be at least 1, found {samples} and {steps}.")
        expert = self.config.expert
        shape = (tokens.shape[0], samples, expert.horizon, expert.action_dim)
        if noise is None and rng is None:
            raise UserError("Plans are drawn from noise; give rng or noise.")
        if noise is not None and tuple(noise.shape) != shape:
            raise UserError(f"The noise should have shape {shape}, found {tuple(noise.shape)}.")
        if noise is None:
            noise = torch.randn(shape, generator=rng, device=tokens.device)
        else:
            noise = noise.float()
        video = self._watch(tokens)
        video_tokens = tokens.shape[1] * self.config.vavim.tokens_per_frame
        mask = sample_mask(samples, video_tokens, expert.horizon, tokens.device)
        sample_commands = commands[:, None].expand(-1, samples)  # (B, k)
        dtype = self.expert.decoder.weight.dtype

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return self.expert(x.to(dtype), sample_commands, t.expand(shape[:2]), video, mask)

        def metres(x: Tensor) -> Tensor:
            x = x * self.config.action_scale
            return x.clamp(-clip, clip) if clip is not None else x

        states = [metres(x) for x in self.flow.path(predict, noise, steps)]
        if path is not None:
            path.extend(states)
        return states[-1]

    def _watch(self, tokens: Tensor) -> list[KVCache]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_vavim):
            return self.vavim.watch(tokens)

    def _require_commands(self, commands: Tensor) -> None:
        low, high = (int(c) for c in torch.aminmax(commands))
        if low < 0 or high >= self.config.expert.commands:
            raise UserError(
                f"Commands should lie in 0..{self.config.expert.commands - 1} (0 right, 1 left, 2 "
                f"straight), found {low}..{high}."
            )


def time_embedding(t: Tensor, channels: int, max_period: float) -> Tensor:
    """Sines, then cosines, of t: (...) -> float32 (..., channels).

    The frequencies fall geometrically from 1 to 1 / max_period.
    """
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / max(half - 1, 1)
    angles = t.float()[..., None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def frame_mask(
    frames: int, tokens: int, horizon: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The drawing at the head of this file: bool (T K, T tokens + T K), True: may attend."""
    frame = torch.arange(frames, device=device)
    # Rows: the frame that each action token plans from. Columns: the frame of each video token.
    video = frame.repeat_interleave(horizon)[:, None] >= frame.repeat_interleave(tokens)
    return torch.cat([video, _same_plan(frames, horizon, device)], dim=1)


def sample_mask(
    samples: int, seen: int, horizon: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Every plan sees all `seen` video tokens and itself: bool (k K, seen + k K)."""
    video = torch.ones(samples * horizon, seen, dtype=torch.bool, device=device)
    return torch.cat([video, _same_plan(samples, horizon, device)], dim=1)


def _same_plan(plans: int, horizon: int, device: torch.device | str) -> Tensor:
    """Which waypoints belong to one plan: bool (plans K, plans K), K x K blocks."""
    plan = torch.arange(plans, device=device).repeat_interleave(horizon)
    return plan[:, None] == plan
