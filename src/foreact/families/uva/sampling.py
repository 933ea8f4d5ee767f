"""Sampling of UVA: tokens unmasked in rounds, actions drawn last (arXiv 2503.00200)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.families.uva.config import MODES, Mode, UVAConfig
from foreact.families.uva.heads import VideoHead
from foreact.families.uva.tokens import first_places, take, token_mask, unpatchify
from foreact.families.uva.transformer import TransformerInputs, UVATransformer


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        iterations: rounds of unmasking of a foreseen video, 1..h w; more rounds make its tokens fit
            each other.
        temperature: scale of the heads' sampling noise, at least 0.
        guidance: 1 for none; above 1, video follows the instruction more strongly (two passes per
            round).
        steps: sampling steps of the heads; None for the config's.
        modalities: also draw the future of the model's `modalities`.
    """

    iterations: int = 1
    temperature: float = 0.95
    guidance: float = 1.0
    steps: int | str | None = None
    modalities: bool = False

    def check(self, mode: str, config: UVAConfig) -> None:
        """Raise a `UserError` unless a model can answer `mode` so."""
        asked = MODES[mode]
        if not asked.video and (self.iterations != 1 or self.guidance != 1.0):
            raise UserError(
                f"Mode '{mode}' foresees no video, so iterations and guidance should be 1."
            )
        if not 1 <= self.iterations <= config.frame_tokens:
            raise UserError(
                f"iterations should lie in 1..{config.frame_tokens}, found {self.iterations}."
            )
        if self.guidance != 1.0 and config.text_dim is None:
            raise UserError(
                "This UVA takes no instruction that guidance could strengthen; set guidance to 1."
            )
        if not self.temperature >= 0.0:
            raise UserError(f"--temperature should be at least 0, found {self.temperature}.")
        if self.steps is not None:
            for head in ("video", "action"):
                if getattr(asked, head):
                    config.check_sampling_steps(head, str(self.steps))

    def steps_of(self, head: str, config: UVAConfig) -> str:
        """Sampling steps of a head: these, or else the config's."""
        is_video = head in ("video", "wrist")
        configured = config.video_sampling_steps if is_video else config.action_sampling_steps
        return configured if self.steps is None else str(self.steps)


@dataclass(frozen=True)
class Sample:
    """What was drawn.

    Attributes:
        latents: camera -> float32 (B, F, c, h, w), the future frames; None in modes that foresee
            none.
        actions: float32 (B, K, A), normalised; None in modes that predict none.
        modalities: stream -> float32 (B, K, S), normalised, where they were asked for.
    """

    latents: dict[str, Tensor] | None
    actions: Tensor | None
    modalities: dict[str, Tensor] = field(default_factory=dict)


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

    With one per row, what is drawn for a row does not depend on the other rows. Numbers are drawn
    on the device of the generators and moved to `device`.
    """

    def __init__(
        self, rng: torch.Generator | Sequence[torch.Generator], rows: int, device: torch.device
    ) -> None:
        if not isinstance(rng, torch.Generator) and len(rng) != rows:
            raise ValueError(f"{len(rng)} generators for {rows} rows")
        self.shared: torch.Generator | None = rng if isinstance(rng, torch.Generator) else None
        self.per_row: list[torch.Generator] = [] if isinstance(rng, torch.Generator) else list(rng)
        self.rows, self.device = rows, device

    def permutation(self, n: int) -> Tensor:
        if self.shared is not None:
            rng = self.shared
            uniform = torch.rand(self.rows, n, generator=rng, device=rng.device)
            drawn = uniform.argsort(dim=1)
        else:
            drawn = torch.stack(
                [torch.randperm(n, generator=g, device=g.device) for g in self.per_row]
            )
        return drawn.to(self.device)

    def normal(self, *shape: int) -> Tensor:
        if self.shared is not None:
            drawn = torch.randn(self.rows, *shape, generator=self.shared, device=self.shared.device)
        else:
            drawn = torch.stack(
                [torch.randn(shape, generator=g, device=g.device) for g in self.per_row]
            )
        return drawn.to(self.device)


def masked_after(iteration: int, iterations: int, masked: int, places: int) -> int:
    """Places still masked after a round of unmasking, by a cosine schedule.

    Every round unmasks at least one place.

    Args:
        iteration: round, 0..iterations-1.
        iterations: number of rounds, at most `places`.
        masked: places masked before it.
        places: places of a frame.
    """
    if iteration == iterations - 1:
        return 0
    scheduled = math.floor(places * math.cos(math.pi / 2 * (iteration + 1) / iterations))
    return max(1, min(scheduled, masked - 1))


def draw_sample(
    transformer: UVATransformer,
    heads: Mapping[str, VideoHead],
    inputs: TransformerInputs,
    mode: Mode,
    sampling: Sampling,
    noise: Noise,
) -> Sample:
    """Draw what is asked, from UVA's networks.

    Args:
        transformer, heads: the networks.
        inputs: what is known, with everything that the mode hides set to None.
        mode: what is predicted.
        sampling: how; guidance grows linearly to its strength over the rounds.
        noise: where random numbers come from, in this order: a permutation (if video is foreseen),
            then per round the actions and modalities (in the last one), video and wrist video.
    """
    c = transformer.config

    def draw(head: str, features: Tensor, rows: int, channels: int, **guided: Any) -> Tensor:
        """From features (B, n, D): float32 (B, rows, channels)."""
        return heads[head].sample(
            features,
            lambda: noise.normal(rows, channels),
            temperature=sampling.temperature,
            steps=sampling.steps_of(head, c),
            **guided,
        )

    def draw_modalities(features: Tensor) -> dict[str, Tensor]:
        heads = c.modality_heads if sampling.modalities else {}
        return {
            stream: draw(head, features, c.horizon, c.modalities[stream])
            for head, stream in heads.items()
        }

    if not mode.video:
        features = transformer(inputs)
        actions = draw("action", features, c.horizon, c.action_dim)
        return Sample(None, actions, draw_modalities(features))

    places, frames, iterations = c.frame_tokens, c.frames, sampling.iterations
    # (B, h w), the same in every frame; the first `masked` places are still hidden
    order = noise.permutation(places)
    views = {view: camera for view, camera in c.views.items() if view in heads}
    tokens = {
        view: torch.zeros(order.shape[0], c.tokens, c.token_channels, device=order.device)
        for view in views
    }
    actions: Tensor | None = None
    modalities: dict[str, Tensor] = {}
    masked = places
    for iteration in range(iterations):
        masked_next = masked_after(iteration, iterations, masked, places)
        hidden = token_mask(first_places(order, 0, masked, frames, places), c.tokens)
        round_inputs = replace(
            inputs, future=tokens["video"], wrist_future=tokens.get("wrist"), hidden=hidden
        )
        features = transformer(round_inputs)  # (B, N, D)
        if mode.action and iteration == iterations - 1:
            actions = draw("action", features, c.horizon, c.action_dim)
        if iteration == iterations - 1:
            modalities = draw_modalities(features)
        # (B, n), the tokens of this round
        unmasked = first_places(order, masked_next, masked, frames, places)
        guided: dict[str, Any] = {}
        if sampling.guidance != 1.0:
            no_text = torch.zeros(order.shape[0], dtype=torch.bool, device=order.device)
            without_text = transformer(replace(round_inputs, text_keep=no_text))
            guided["unconditional"] = take(without_text, unmasked)
            # From 1 to `guidance`, with the share of places that are unmasked after this round.
            guided["guidance"] = 1.0 + (sampling.guidance - 1.0) * (places - masked_next) / places
        for view in views:
            n = unmasked.shape[1]
            values = draw(view, take(features, unmasked), n, c.token_channels, **guided)
            index = unmasked[..., None].expand_as(values)  # (B, n, d)
            tokens[view] = tokens[view].scatter(1, index, values)
        masked = masked_next
    latents = {camera: unpatchify(tokens[view], c) for view, camera in views.items()}
    return Sample(latents, actions, modalities)
