"""Every random number of a training step of UVA, and the law of its mask ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Mask ratios follow a normal distribution around 1 with this scale, cut off outside
# [mask_ratio_min, 1].
RATIO_SCALE = 0.25


@dataclass(frozen=True, kw_only=True)
class HeadDraw:
    """Time and noise of one head.

    Attributes:
        t: (B, n), as the head's objective draws it.
        noise: float (B, n, C).

    Rows are the masked tokens in token order (video heads) or the K steps (action and
    proprioception heads).
    """

    t: Tensor
    noise: Tensor


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What is random in one training step.

    Attributes:
        mode: the question, one for the batch.
        order: int64 (B, h w), a permutation of a frame's places for each sample.
        masked: how many places, the first ones of `order`, are masked in every frame.
        past_keep: bool (B, K), which past actions are shown.
        text_keep: bool (B,), which instructions are shown.
        context_steps: int64 (B, F), which of the K past steps are shown; None for all that the
            batch holds.
        heads: head -> its draws; exactly the heads that the mode trains.
    """

    mode: str
    order: Tensor
    masked: int
    past_keep: Tensor | None = None
    text_keep: Tensor | None = None
    context_steps: Tensor | None = None
    heads: Mapping[str, HeadDraw] = field(default_factory=dict)


def mask_ratio(u: float, minimum: float) -> float:
    """Quantile of the mask ratio.

    Args:
        u: level in [0, 1]; uniform draws give ratios of the distribution.
        minimum: smallest ratio, in (0, 1).

    Returns:
        Ratio in [minimum, 1].
    """
    # CDF at the minimum of a normal around 1; at 1, the other end, it is 0.5.
    low = 0.5 * math.erfc((1.0 - minimum) / RATIO_SCALE / math.sqrt(2.0))
    level = torch.tensor(low + u * (0.5 - low), dtype=torch.float64, device="cpu")
    return min(1.0, max(minimum, 1.0 + RATIO_SCALE * float(torch.special.ndtri(level))))


def masked_places(ratio: float, places: int) -> int:
    """Places masked of a frame's `places`."""
    return math.ceil(places * ratio)


def pick_mode(u: float, modes: Mapping[str, float]) -> str:
    """The mode at level u in [0, 1) of the cumulated weights."""
    names = [name for name, weight in modes.items() if weight > 0]
    remaining = u * sum(modes[name] for name in names)
    for name in names:
        remaining -= modes[name]
        if remaining < 0:
            return name
    return names[-1]
