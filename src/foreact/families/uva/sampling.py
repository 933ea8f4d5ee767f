"""Inference of UVA: tokens are unmasked in a few rounds, actions are drawn once at the end (arXiv 2503.00200)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from foreact.families.uva.config import MODES
from foreact.families.uva.draws import first_places, take, token_mask
from foreact.families.uva.transformer import Shown

if TYPE_CHECKING:
    from foreact.families.uva.model import UVA


@dataclass(frozen=True)
class Sample:
    """What was drawn.

    Attributes:
        latents: camera -> float32 (B, F, c, h, w), the future frames; None in modes that foresee none.
        actions: float32 (B, K, A), normalised; None in modes that predict none.
    """

    latents: dict[str, Tensor] | None
    actions: Tensor | None


class Noise(Protocol):
    """Source of a sample's random numbers, one row per sample."""

    def permutation(self, n: int) -> Tensor:
        """int64 (B, n)."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 (B, *shape)."""
        ...


class GeneratorNoise:
    """Numbers from one generator for all rows, or from one generator per row.

    With one per row, what is drawn for a row does not depend on the other rows. Numbers are drawn on the device of the
    generators and moved to `device`.
    """

    def __init__(self, rng: torch.Generator | Sequence[torch.Generator], rows: int, device: torch.device) -> None:
        if not isinstance(rng, torch.Generator) and len(rng) != rows:
            raise ValueError(f"{len(rng)} generators for {rows} rows")
        self.shared: torch.Generator | None = rng if isinstance(rng, torch.Generator) else None
        self.own: list[torch.Generator] = [] if isinstance(rng, torch.Generator) else list(rng)
        self.rows, self.device = rows, device

    def permutation(self, n: int) -> Tensor:
        if self.shared is not None:
            drawn = torch.rand(self.rows, n, generator=self.shared, device=self.shared.device).argsort(dim=1)
        else:
            drawn = torch.stack([torch.randperm(n, generator=g, device=g.device) for g in self.own])
        return drawn.to(self.device)

    def normal(self, *shape: int) -> Tensor:
        if self.shared is not None:
            drawn = torch.randn(self.rows, *shape, generator=self.shared, device=self.shared.device)
        else:
            drawn = torch.stack([torch.randn(shape, generator=g, device=g.device) for g in self.own])
        return drawn.to(self.device)


def masked_after(iteration: int, iterations: int, masked: int, places: int) -> int:
    """Places still masked after a round of unmasking: a cosine schedule that unmasks at least one place per round.

    Args:
        iteration: round, 0..iterations-1.
        iterations: number of rounds, at most `places`.
        masked: places masked before it.
        places: places of a frame.
    """
    if iteration == iterations - 1:
        return 0
    wanted = math.floor(places * math.cos(math.pi / 2 * (iteration + 1) / iterations))
    return max(1, min(wanted, masked - 1))


def draw_sample(
    model: UVA,
    shown: Shown,
    noise: Noise,
    *,
    mode: str,
    actions: bool,
    iterations: int,
    temperature: float,
    guidance: float,
    video_steps: str,
    action_steps: str,
) -> Sample:
    """Draw from the model.

    Args:
        model: UVA.
        shown: what is known, with everything that the mode hides set to None.
        noise: where random numbers come from, in this order: a permutation (if video is foreseen), then per round the
            actions (in the last one), video and wrist video.
        mode: the question.
        actions: also draw actions.
        iterations: rounds of unmasking.
        temperature: of the heads' noise.
        guidance: weight of the instruction; grows linearly to this over the rounds.
        video_steps, action_steps: sampling steps of the heads.
    """
    config = model.config
    places, frames, channels = config.frame_tokens, config.frames, config.token_channels

    def draw_actions(features: Tensor) -> Tensor:
        return model.heads["action"].sample(
            features,
            lambda: noise.normal(config.horizon, config.action_dim),
            temperature=temperature,
            steps=action_steps,
        )

    if not MODES[mode].video:
        return Sample(None, draw_actions(model.transformer(shown)))

    order = noise.permutation(places)
    views = {"video": config.camera} | ({"wrist": str(config.wrist_camera)} if config.predicts_wrist else {})
    tokens = {view: torch.zeros(order.shape[0], config.tokens, channels, device=order.device) for view in views}
    drawn_actions = None
    masked = places
    for iteration in range(iterations):
        left = masked_after(iteration, iterations, masked, places)
        hidden = token_mask(first_places(order, 0, masked, frames, places), config.tokens)
        now = replace(shown, future=tokens["video"], wrist_future=tokens.get("wrist"), hidden=hidden)
        features = model.transformer(now)
        if actions and iteration == iterations - 1:
            drawn_actions = draw_actions(features)
        chosen = first_places(order, left, masked, frames, places)
        strength = 1.0 + (guidance - 1.0) * (places - left) / places
        unguided = None
        if guidance != 1.0:
            nothing = torch.zeros(order.shape[0], dtype=torch.bool, device=order.device)
            unguided = take(model.transformer(replace(now, text_keep=nothing)), chosen)
        for view in views:
            values = model.heads[view].sample(
                take(features, chosen),
                lambda: noise.normal(chosen.shape[1], channels),  # noqa: B023 - called before the next round
                temperature=temperature,
                steps=video_steps,
                unconditional=unguided,
                guidance=strength,
            )
            tokens[view] = tokens[view].scatter(1, chosen[..., None].expand_as(values), values)
        masked = left
    return Sample({camera: model.unpatchify(tokens[view]) for view, camera in views.items()}, drawn_actions)
