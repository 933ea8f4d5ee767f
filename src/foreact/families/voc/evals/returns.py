"""True discounted returns of recorded episodes, exact to the episode's end.

The value of a step is that of its future alone: V(s_t) = sum over k >= 1 of gamma^(k-1) r_(t+k),
where r_(t+k) is the reward that came with frame t+k. The last step of an episode has none.

Tasks with a time limit cut the sum off. Under the discounted-future distribution the share of the
future that lies beyond the end is gamma^(steps left); `settled` tells the steps where it is
negligible, the only ones to compare with an estimate of the endless return.
"""

from __future__ import annotations

import numpy as np

from foreact.errors import UserError


def discounted_returns(rewards: np.ndarray, lengths: np.ndarray, gamma: float) -> np.ndarray:
    """V(s_t) of every step: float64 (N,).

    Args:
        rewards: (N,) or (N, 1), episode after episode; the reward of a step came with its frame.
        lengths: int (E,) steps per episode, of sum N.
        gamma: discount, 0 <= gamma < 1.

    Raises:
        UserError: gamma outside, lengths that do not fit, or a reward that is not finite.
    """
    table, inside = _by_episode(rewards, lengths, gamma)
    values = np.zeros_like(table)
    for step in range(table.shape[1] - 2, -1, -1):
        values[:, step] = table[:, step + 1] + gamma * values[:, step + 1]
    return values[inside]


def truncated_returns(
    rewards: np.ndarray, lengths: np.ndarray, gamma: float, horizon: int
) -> np.ndarray:
    """The first `horizon` terms of `discounted_returns`, those within the episode: float64 (N,)."""
    if horizon < 1:
        raise UserError(f"A return should have at least 1 reward, found a horizon of {horizon}.")
    table, inside = _by_episode(rewards, lengths, gamma)
    values = np.zeros_like(table)
    for k in range(1, min(horizon, table.shape[1] - 1) + 1):
        values[:, :-k] += gamma ** (k - 1) * table[:, k:]
    return values[inside]


def steps_left(lengths: np.ndarray) -> np.ndarray:
    """Steps after each step of its episode: int64 (N,)."""
    lengths = np.asarray(lengths, np.int64)
    return np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(lengths.sum())


def remaining_mass(lengths: np.ndarray, gamma: float) -> np.ndarray:
    """Share gamma^(steps left) of a step's future that lies beyond its episode: float64 (N,)."""
    return np.power(float(gamma), steps_left(lengths))


def settled(lengths: np.ndarray, gamma: float, *, tolerance: float = 0.01) -> np.ndarray:
    """Whether less than `tolerance` of a step's future lies beyond its episode: bool (N,)."""
    return remaining_mass(lengths, gamma) < tolerance


def _by_episode(
    rewards: np.ndarray, lengths: np.ndarray, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards float64 (E, T), zero after an episode's end, and which are inside, bool (E, T)."""
    flat, lengths = np.asarray(rewards, np.float64).reshape(-1), np.asarray(lengths, np.int64)
    if not 0.0 <= gamma < 1.0:
        raise UserError(f"gamma should lie in 0 <= gamma < 1, found {gamma}.")
    if lengths.ndim != 1 or (lengths < 1).any() or lengths.sum() != len(flat):
        raise UserError(
            f"The episodes have {int(lengths.sum())} steps, found {len(flat)} "
            "rewards; give one per step."
        )
    if not np.isfinite(flat).all():
        row = int(np.argmin(np.isfinite(flat)))
        raise UserError(
            f"Rewards should be finite, found {flat[row]} in row {row}; run `foreact data check`."
        )
    inside = np.arange(lengths.max(initial=0)) < lengths[:, None]
    table = np.zeros(inside.shape)
    table[inside] = flat
    return table, inside
