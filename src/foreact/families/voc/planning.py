"""Search for the actions of the highest score: CEM, MPPI, or the best given candidate.

They know no model. All work on B problems at once, each with a generator of its own, so that no
plan depends on its neighbours:

    score      (B, N, m, A) -> (B, N)        what N candidates per problem promise; may be noisy
    mean, std  (B, m, A)                     where the search begins
    proposals  (B, P, m, A)                  of a prior, scored in every round beside N - P drawn
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foreact.errors import UserError

Score = Callable[[Tensor], Tensor]


def best_of(score: Score, candidates: Tensor) -> Tensor:
    """The candidate of the highest score: (B, N, m, A) -> (B, m, A)."""
    chosen = score(candidates).argmax(dim=1)
    return candidates[torch.arange(len(candidates), device=candidates.device), chosen]


def cem(
    score: Score,
    mean: Tensor,
    std: Tensor,
    *,
    samples: int,
    elites: int,
    iterations: int,
    rngs: Sequence[torch.Generator],
    low: Tensor,
    high: Tensor,
    proposals: Tensor | None = None,
) -> Tensor:
    """Cross-entropy method: draw around the mean, refit mean and deviation to the elites, repeat.

    Returns the last mean, not the best candidate: with noisy scores the best one is above all a
    lucky one.

    Args:
        score: see the head of this module.
        mean, std: float (B, m, A).
        samples: candidates per round, N, proposals included.
        elites: how many of them are kept, at most N.
        iterations: rounds.
        rngs: one generator on the CPU per problem.
        low, high: bounds (A,); candidates are clipped to them.
        proposals: (B, P, m, A) with P < N, or None.

    Returns:
        float (B, m, A) within the bounds.

    Raises:
        UserError: a number is impossible.
    """
    if not 1 <= elites <= samples:
        raise UserError(f"elites should be in 1..{samples}, the number of samples, found {elites}.")
    for _ in range(_checked(iterations)):
        candidates = _candidates(mean, std, samples, rngs, low, high, proposals)
        best = score(candidates).topk(elites, dim=1).indices[..., None, None]  # (B, E, 1, 1)
        elite = candidates.gather(1, best.expand(-1, -1, *candidates.shape[2:]))  # (B, E, m, A)
        mean, std = elite.mean(dim=1), elite.std(dim=1, unbiased=False)
    return mean


def mppi(
    score: Score,
    mean: Tensor,
    std: Tensor,
    *,
    samples: int,
    temperature: float,
    iterations: int,
    rngs: Sequence[torch.Generator],
    low: Tensor,
    high: Tensor,
    proposals: Tensor | None = None,
) -> Tensor:
    """Model predictive path integral: the mean of candidates weighted by exp(score / temperature).

    The deviation stays as it is. Arguments and result as in `cem`, but for:

    Args:
        temperature: in deviations of the scores among a problem's candidates, so that it means the
            same for values of any scale; small ones follow the best candidate.
    """
    if not temperature > 0:
        raise UserError(f"temperature should be positive, found {temperature}.")
    for _ in range(_checked(iterations)):
        candidates = _candidates(mean, std, samples, rngs, low, high, proposals)
        scores = score(candidates)
        spread = scores.std(dim=1, unbiased=False, keepdim=True).clamp_min(1e-8)
        relative = (scores - scores.amax(dim=1, keepdim=True)) / (temperature * spread)
        mean = (relative.softmax(dim=1)[..., None, None] * candidates).sum(dim=1)
    return mean


def _candidates(
    mean: Tensor,
    std: Tensor,
    samples: int,
    rngs: Sequence[torch.Generator],
    low: Tensor,
    high: Tensor,
    proposals: Tensor | None,
) -> Tensor:
    """Proposals, then normal draws around the mean: (B, N, m, A) within the bounds."""
    proposed = 0 if proposals is None else proposals.shape[1]  # P
    if samples <= proposed:
        raise UserError(f"samples ({samples}) should exceed the {proposed} proposals among them.")
    shape = (samples - proposed, *mean.shape[1:])
    noise = torch.stack([torch.randn(shape, generator=rng) for rng in rngs])
    drawn = mean[:, None] + std[:, None] * noise.to(mean.device)  # (B, N - P, m, A)
    return (drawn if proposals is None else torch.cat([proposals, drawn], dim=1)).clamp(low, high)


def _checked(iterations: int) -> int:
    if iterations < 1:
        raise UserError(f"iterations should be at least 1, found {iterations}.")
    return iterations
