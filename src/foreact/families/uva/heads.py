"""UVA's heads: a denoiser for each token or action, and the readout of actions before it.

What is learned about noise (diffusion or flow) is an `Objective`; see diffusion.py and flow.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from foreact.errors import UserError
from foreact.nn.layers import init_linear, sinusoid
from foreact.nn.products import Linear

ReadoutKind = Literal["conv_fc", "conv_ori", "conv", "fc"]
TIME_CHANNELS = 256


class Objective(Protocol):
    """What a denoiser learns and how it is sampled: diffusion or flow.

    Attributes:
        outputs: network channels per data channel.
    """

    outputs: int

    def draw_time(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor: ...

    def loss(
        self, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, noise: Tensor
    ) -> Tensor: ...

    def sample(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        normal: Callable[[], Tensor],
        *,
        temperature: float = 1.0,
        clip: bool = False,
        steps: str | None = None,
    ) -> Tensor: ...


# --- denoiser -------------------------------------------------------------------------------------


class DenoiserBlock(nn.Module):
    """Residual MLP; the condition gives shift, scale and gate (adaLN-Zero, arXiv 2212.09748)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = Linear(width, width)
        self.down = Linear(width, width)
        self.modulation = Linear(width, 3 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x: (..., width); c: (..., width), after SiLU."""
        shift, scale, gate = self.modulation(c).chunk(3, dim=-1)
        h = self.norm(x) * (1.0 + scale) + shift
        return x + gate * self.down(functional.silu(self.up(h)))


class Denoiser(nn.Module):
    """MLP per row: noisy row, time and condition -> prediction (arXiv 2406.11838).

    Args:
        channels: C of the data.
        outputs: channels out.
        condition: channels of the condition.
        width: hidden channels.
        depth: residual blocks.
        checkpointing: recompute the blocks in the backward pass instead of keeping their
            activations.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        condition: int,
        *,
        width: int,
        depth: int,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.input = Linear(channels, width)
        self.condition = Linear(condition, width)
        self.time1 = Linear(TIME_CHANNELS, width)
        self.time2 = Linear(width, width)
        blocks = [DenoiserBlock(width) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.out_modulation = Linear(width, 2 * width)
        self.out = Linear(width, outputs)
        init_linear(self)
        for time in (self.time1, self.time2):
            nn.init.normal_(time.weight, std=0.02)
        # adaLN-Zero: blocks begin as the identity, the output as 0.
        for zeroed in (*(b.modulation for b in blocks), self.out_modulation, self.out):
            nn.init.zeros_(zeroed.weight)

    def embed_time(self, t: Tensor) -> Tensor:
        """(...) in 0..1000 -> (..., width)."""
        return self.time2(functional.silu(self.time1(sinusoid(t, TIME_CHANNELS))))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict.

        Args:
            x: (..., C).
            t: (...) or anything that broadcasts to it, in 0..1000.
            condition: (..., width), what `self.condition` made of the features.

        Returns:
            (..., outputs).
        """
        c = functional.silu(self.embed_time(t) + condition)  # (..., width)
        h = self.input(x)
        for block in self.blocks:
            recompute = self.checkpointing and self.training
            h = checkpoint(block, h, c, use_reentrant=False) if recompute else block(h, c)
        shift, scale = self.out_modulation(c).chunk(2, dim=-1)
        return self.out(functional.layer_norm(h, h.shape[-1:], eps=1e-6) * (1.0 + scale) + shift)


# --- heads ----------------------------------------------------------------------------------------


class VideoHead(nn.Module):
    """Distribution of every token given its features, independent between tokens.

    Args:
        denoiser: network.
        objective: diffusion or flow.
        clip: data lie in [-1, 1], and samples are kept there.
    """

    def __init__(self, denoiser: Denoiser, objective: Objective, *, clip: bool = False) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective = objective
        self.clip = clip

    def loss(self, features: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Loss per row. features: (..., D); x, noise: (..., C); t: (...) -> float32 (...)."""
        condition = self.denoiser.condition(features)
        return self.objective.loss(
            lambda x_t, time: self.denoiser(x_t, time, condition), x, t, noise
        )

    def sample(
        self,
        features: Tensor,
        normal: Callable[[], Tensor],
        *,
        temperature: float,
        steps: str,
        unconditional: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Draw one row per row of features.

        Args:
            features: (..., D).
            normal: draws standard normal noise of shape (..., C).
            temperature: see the objective.
            steps: see the objective.
            unconditional: (..., D), features without the instruction; needed if `guidance` is not
                1.
            guidance: s in f_u + s (f_c - f_u) for the predicted noise or velocity (not for the
                variance).

        Returns:
            float32 (..., C).
        """
        condition = self.denoiser.condition(features)
        if unconditional is None:
            return self.objective.sample(
                lambda x, t: self.denoiser(x, t, condition),
                normal,
                temperature=temperature,
                clip=self.clip,
                steps=steps,
            )
        conditions = torch.stack([condition, self.denoiser.condition(unconditional)])

        def guided(x: Tensor, t: Tensor) -> Tensor:
            with_text, without = self.denoiser(x.expand(2, *x.shape), t, conditions).float()
            channels = x.shape[-1]  # noise or velocity; what follows them is the variance
            base = without[..., :channels]
            predicted = base + guidance * (with_text[..., :channels] - base)
            return torch.cat([predicted, with_text[..., channels:]], dim=-1)

        return self.objective.sample(
            guided, normal, temperature=temperature, clip=self.clip, steps=steps
        )


class ActionHead(VideoHead):
    """Distribution of K vectors, such as actions: a readout of all tokens, then a `VideoHead`."""

    def __init__(self, readout: nn.Module, denoiser: Denoiser, objective: Objective) -> None:
        super().__init__(denoiser, objective, clip=True)
        self.readout = readout

    def loss(self, features: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """features: (B, N, D); x, noise: (B, K, A); t: (B, K) -> float32 (B, K)."""
        return super().loss(self.readout(features), x, t, noise)

    def sample(self, features: Tensor, normal: Callable[[], Tensor], **options) -> Tensor:
        """features: (B, N, D) -> float32 (B, K, A) in [-1, 1]; options as in `VideoHead.sample`."""
        return super().sample(self.readout(features), normal, **options)


# --- readouts: (B, F h w, D) -> (B, K, D) ---------------------------------------------------------


class ConvFCReadout(nn.Module):
    """Convolution, pooling and MLP per frame, then frames mixed into K vectors (arXiv 2503.00200).

    Args:
        width: D.
        frames: F.
        grid: (h, w), tokens per frame.
        horizon: K.
    """

    def __init__(self, width: int, frames: int, grid: tuple[int, int], horizon: int) -> None:
        super().__init__()
        self.frames, self.grid = frames, grid
        self.pooled = (min(4, grid[0]), min(4, grid[1]))
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.fc1 = Linear(width * self.pooled[0] * self.pooled[1], width)
        self.fc2 = Linear(width, width)
        self.mix = Linear(frames, horizon)
        self.refine1 = Linear(width, width)
        self.refine2 = Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        x = features.unflatten(1, (self.frames, *self.grid)).flatten(0, 1)  # (B F, h, w, D)
        x = functional.relu(self.conv(x.permute(0, 3, 1, 2)))
        x = functional.adaptive_avg_pool2d(x, self.pooled).flatten(1)
        x = self.fc2(functional.relu(self.fc1(x))).unflatten(0, (-1, self.frames))  # (B, F, D)
        x = self.mix(x.transpose(1, 2)).transpose(1, 2)  # (B, K, D)
        return self.refine2(functional.relu(self.refine1(x)))


class ConvOriReadout(nn.Module):
    """Every frame becomes K/F vectors by one linear map, averaged over its tokens."""

    def __init__(self, width: int, frames: int, grid: tuple[int, int], horizon: int) -> None:
        super().__init__()
        if horizon % frames:
            raise UserError(
                "The readout conv_ori gives every frame as many actions as any: --model.horizon "
                f"({horizon}) should be a multiple of --model.frames ({frames}); choose such a "
                "horizon or another readout."
            )
        self.frames = frames
        self.expand = nn.ConvTranspose3d(
            width, width, (horizon // frames, 1, 1), stride=(horizon // frames, 1, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        # Averaged before the map, which is linear in each token: the same, and cheaper.
        x = features.unflatten(1, (self.frames, -1)).mean(2).transpose(1, 2)  # (B, D, F)
        return self.expand(x[..., None, None]).flatten(2).transpose(1, 2)  # (B, K, D)


class ConvReadout(nn.Module):
    """Convolutions along the channels that mix all tokens into K vectors (reference: conv2)."""

    def __init__(self, width: int, frames: int, grid: tuple[int, int], horizon: int) -> None:
        super().__init__()
        tokens = frames * grid[0] * grid[1]
        hidden = max(horizon, tokens // 4)
        self.conv1 = nn.Conv1d(tokens, hidden, 7, padding=3)
        self.conv2 = nn.Conv1d(hidden, horizon, 7, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        # Tokens are the channels of the convolution, which runs along D.
        return self.conv2(functional.relu(self.conv1(features)))


class FCReadout(nn.Module):
    """Linear maps over the token axis that mix all tokens into K vectors (the reference's fc2)."""

    def __init__(self, width: int, frames: int, grid: tuple[int, int], horizon: int) -> None:
        super().__init__()
        tokens = frames * grid[0] * grid[1]
        hidden = max(horizon, tokens // 4)
        self.fc1 = Linear(tokens, hidden)
        self.fc2 = Linear(hidden, horizon)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(features.transpose(1, 2)))).transpose(1, 2)


READOUTS: dict[ReadoutKind, Callable[[int, int, tuple[int, int], int], nn.Module]] = {
    "conv_fc": ConvFCReadout,
    "conv_ori": ConvOriReadout,
    "conv": ConvReadout,
    "fc": FCReadout,
}
