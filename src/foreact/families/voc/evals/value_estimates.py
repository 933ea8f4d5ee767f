"""From sampled futures, or from probabilities of given ones, to the value of a state.

V(s_t) = sum_{k>=1} gamma^(k-1) r_{t+k} = E r(z) / (1 - gamma),   z from the discounted future
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


def sampled_value(rewards: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Value from the rewards of sampled futures.

    Args:
        rewards: of S samples each, float (..., S).
        gamma: discount of the occupancy that they were drawn from.

    Returns:
        Mean reward over 1 - gamma, and its standard error (NaN for one sample), both float64 (...).
    """
    rewards = rewards.double()
    error = rewards.std(dim=-1) / math.sqrt(rewards.shape[-1])
    return rewards.mean(dim=-1) / (1.0 - gamma), error / (1.0 - gamma)


def density_value(log_probs: Tensor, rewards: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Value sum_j w_j r_j / (1 - gamma), with importance weights w = softmax(log_probs).

    Right as far as the candidates stand for all states that may follow, each of them once.

    Args:
        log_probs: of J candidate states as a whole, summed over their tokens, (..., J).
        rewards: of the candidates, (..., J).
        gamma: discount of the occupancy.

    Returns:
        The value, and the effective sample size 1 / sum_j w_j^2, between 1 and J, which says how
        many candidates decide it; both float64 (...).
    """
    weights = log_probs.double().softmax(dim=-1)
    return (weights * rewards).sum(dim=-1) / (1.0 - gamma), 1.0 / weights.square().sum(dim=-1)


@dataclass(frozen=True)
class LegacyDensity:
    """Result of `legacy_density`.

    Attributes:
        value: sum_j w_j r_j, (...).
        weights: w_j = exp(log_probs / lengths), (..., J).
        lengths: number of tokens plus the number of tokens with a negative logit, int64 (..., J).
        log_probs: of each candidate as a whole, (..., J).
    """

    value: Tensor
    weights: Tensor
    lengths: Tensor
    log_probs: Tensor


def legacy_density(logits: Tensor, tokens: Tensor, rewards: Tensor) -> LegacyDensity:
    """The density estimate of the reference implementation, to compare with it.

    Its weights are no probabilities: they do not sum to 1, a constant added to all logits changes
    them, and the factor 1 / (1 - gamma) is missing. `density_value` is the sound form.

    Args:
        logits: that predict each token of the candidates, (..., J, L, V).
        tokens: of the candidates, int64 (..., J, L).
        rewards: of the candidates, (..., J).
    """
    chosen = logits.gather(-1, tokens[..., None])[..., 0]
    log_probs = (chosen - logits.logsumexp(dim=-1)).sum(dim=-1)
    lengths = tokens.shape[-1] + (chosen < 0).sum(dim=-1)
    weights = (log_probs / lengths).exp()
    return LegacyDensity((weights * rewards).sum(dim=-1), weights, lengths, log_probs)
