"""Discounted returns: against the plain double sum, at an
episode's end, and what a time limit cuts off.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreact.errors import UserError
from foreact.families.voc.evals.returns import (
    discounted_returns,
    remaining_mass,
    settled,
    steps_left,
    truncated_returns,
)

EPISODES = st.lists(st.integers(1, 9), min_size=1, max_size=4)
GAMMAS = st.floats(0.0, 0.99)


def plain(
    rewards: np.ndarray, lengths: list[int], gamma: float, horizon: int | None = None
) -> list[float]:
    """The definition, word by word."""
    values, start = [], 0
    for length in lengths:
        for t in range(length):
            ahead = range(1, min(length - 1 - t, horizon or length) + 1)
            values.append(sum(gamma ** (k - 1) * float(rewards[start + t + k]) for k in ahead))
        start += length
    return values


@given(lengths=EPISODES, gamma=GAMMAS, horizon=st.integers(1, 12), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_returns_are_their_definition(
    lengths: list[int], gamma: float, horizon: int, seed: int
) -> None:
    rewards = np.random.default_rng(seed).normal(size=sum(lengths))
    np.testing.assert_allclose(
        discounted_returns(rewards, np.array(lengths), gamma), plain(rewards, lengths, gamma)
    )
    got = truncated_returns(rewards, np.array(lengths), gamma, horizon)
    np.testing.assert_allclose(got, plain(rewards, lengths, gamma, horizon), atol=1e-12)


@given(lengths=EPISODES, gamma=GAMMAS)
def test_bellman_holds_within_episodes_and_ends_are_worth_nothing(
    lengths: list[int], gamma: float
) -> None:
    rewards = np.random.default_rng(0).normal(size=(sum(lengths), 1)).astype(np.float32)
    values, left = (
        discounted_returns(rewards, np.array(lengths), gamma),
        steps_left(np.array(lengths)),
    )
    assert (values[left == 0] == 0).all()
    inner = np.flatnonzero(left > 0)
    np.testing.assert_allclose(
        values[inner], rewards[inner + 1, 0] + gamma * values[inner + 1], rtol=1e-12
    )


def test_a_reward_of_one_leaves_out_exactly_the_remaining_mass() -> None:
    lengths, gamma = np.array([30, 1, 12]), 0.9
    values = discounted_returns(np.ones(43), lengths, gamma)
    np.testing.assert_allclose(values * (1 - gamma), 1 - remaining_mass(lengths, gamma))


def test_settled_steps_are_those_far_from_the_end() -> None:
    # 0.8^20 = 0.0115, 0.8^21 = 0.0092
    mask = settled(np.array([30, 22, 5]), 0.8)
    assert mask[:9].all()
    assert not mask[9:30].any()
    assert mask[30:52].tolist() == [True] + [False] * 21
    assert not mask[52:].any()
    assert settled(np.array([5]), 0.8, tolerance=0.5).tolist() == [True, False, False, False, False]


def test_a_long_horizon_truncates_nothing() -> None:
    rewards, lengths = np.random.default_rng(0).normal(size=501), np.array([501])
    whole = discounted_returns(rewards, lengths, 0.99)
    np.testing.assert_allclose(truncated_returns(rewards, lengths, 0.99, 1000), whole)
    assert (
        abs(
            truncated_returns(np.ones(501), lengths, 0.99, 10)[0]
            / discounted_returns(np.ones(501), lengths, 0.99)[0]
        )
        < 0.1
    )


@pytest.mark.parametrize(
    ("rewards", "lengths", "gamma", "sentence"),
    [
        (np.ones(3), [3], 1.0, "gamma should lie in 0 <= gamma < 1, found 1.0"),
        (np.ones(3), [3], float("nan"), "gamma should lie"),
        (np.ones(3), [2], 0.9, "have 2 steps, found 3 rewards"),
        (np.array([0.0, np.nan, 1.0]), [3], 0.9, "found nan in row 1"),
    ],
)
def test_bad_input_is_one_sentence(
    rewards: np.ndarray, lengths: list[int], gamma: float, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        discounted_returns(rewards, np.array(lengths), gamma)
    with pytest.raises(UserError, match=sentence):
        truncated_returns(rewards, np.array(lengths), gamma, 3)


def test_a_return_has_rewards() -> None:
    with pytest.raises(UserError, match="at least 1 reward"):
        truncated_returns(np.ones(3), np.array([3]), 0.9, 0)
