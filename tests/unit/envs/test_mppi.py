"""The planner on the true simulator: its rewards are dm_control's,
its decisions repeat, and it earns something.
"""

from __future__ import annotations

import numpy as np
import pytest

from foreact.envs.dmc import DMCEnv
from foreact.envs.mppi import MPPI, MPPIConfig
from foreact.errors import UserError


def planner(env: DMCEnv, threads: int = 1, **how: float) -> MPPI:
    config = MPPIConfig(**{"samples": 8, "horizon": 5, **how})
    return MPPI(env, config, np.random.default_rng(0), threads=threads)


def earned(env: DMCEnv, seed: int, actions: np.ndarray) -> float:
    env.reset(seed)
    return sum(env.step(action).reward for action in actions)


@pytest.mark.parametrize(("domain", "task"), [("cheetah", "run"), ("walker", "walk")])
def test_tried_sequences_earn_what_dm_control_would_give(domain: str, task: str) -> None:
    env, rng = DMCEnv(domain, task, image=False), np.random.default_rng(1)
    before, tried = rng.uniform(-1, 1, (10, 6)), rng.uniform(-1, 1, (4, 6, 6))
    so_far = earned(env, 4, before)
    promised = planner(env).returns(tried)
    kept = [earned(env, 4, np.concatenate([before, actions])) - so_far for actions in tried]
    np.testing.assert_allclose(promised, kept, rtol=1e-6, atol=1e-9)
    assert np.ptp(kept) > 1e-3, "rewards that do not differ would hide a mistake"


def test_planning_does_not_disturb_the_episode() -> None:
    env = DMCEnv("walker", "walk", image=False)
    env.reset(0)
    state, expert = env.physics.get_state(), planner(env)
    expert.act()
    np.testing.assert_array_equal(env.physics.get_state(), state)
    assert env.step(np.zeros(6)).reward == earned(env, 0, np.zeros((1, 6)))


def test_threads_change_nothing() -> None:
    decisions = []
    for threads in (1, 3):
        env = DMCEnv("walker", "walk", image=False)
        env.reset(3)
        expert = planner(env, threads)
        actions = [expert.act()]
        env.step(actions[0])
        decisions.append([*actions, expert.act()])
        expert.close()
    np.testing.assert_array_equal(*decisions)
    assert np.abs(decisions[0]).max() <= 1.0


def test_planner_runs_where_chance_stands_still() -> None:
    env, rng = DMCEnv("cheetah", "run", image=False), np.random.default_rng(0)
    chance = earned(env, 0, rng.uniform(-1, 1, (60, 6)))
    env.reset(0)
    expert = planner(env, samples=16, horizon=15)
    assert sum(env.step(expert.act()).reward for _ in range(60)) > 10 + 3 * chance


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(UserError, match="none for 'cartpole_balance'; use the random policy"):
        planner(DMCEnv("cartpole", "balance", image=False))
    with pytest.raises(UserError, match="at least 2 samples"):
        planner(DMCEnv("cheetah", "run", image=False), samples=1)
    with pytest.raises(UserError, match="temperature > 0"):
        planner(DMCEnv("cheetah", "run", image=False), temperature=0.0)
