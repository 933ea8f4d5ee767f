"""The PushT world: starts and goals by seed, reward and end,
pictures as a function of the state.
"""

from __future__ import annotations

import builtins
import sys
from typing import Any, Literal

import numpy as np
import pytest

from foreact.envs.pusht import (
    FIXED_GOAL,
    PUSHT_SPEC,
    PushTEnv,
    initial_state,
    make_pusht,
    make_pusht_m,
    random_goal,
    render_state,
)
from foreact.errors import UserError
from foreact.types import StreamSpec

pytest.importorskip("gym_pusht")


def test_start_of_a_seed_follows_the_reference_protocol() -> None:
    legacy = np.random.RandomState(100_003)
    expected = [
        legacy.randint(50, 450),
        legacy.randint(50, 450),
        legacy.randint(100, 400),
        legacy.randint(100, 400),
    ]
    angle = legacy.randn() * 2 * np.pi - np.pi
    np.testing.assert_array_equal(initial_state(100_003), [*expected, angle])

    # Position before angle, then one physics step: the block turns about its centre of mass (0, 45)
    #     in its frame.
    state = PushTEnv(image=False).reset(100_003)["state"]
    np.testing.assert_array_equal(state[:2], expected[:2])
    centre = np.array(expected[2:]) + np.array([0, 45])
    offset = [45 * np.sin(angle), -45 * np.cos(angle)]
    np.testing.assert_allclose(state[2:4], centre + offset, atol=1e-3)
    np.testing.assert_allclose(state[4], angle % (2 * np.pi), atol=1e-5)


def test_observations_match_the_spec() -> None:
    env = make_pusht()
    for observation in (env.reset(1), env.step(np.array([256, 256])).obs):
        assert set(observation) == {*PUSHT_SPEC.cameras, *PUSHT_SPEC.state}
        assert observation["img"].dtype == np.uint8
        assert observation["img"].shape == (*PUSHT_SPEC.cameras["img"], 3)
        assert observation["state"].dtype == np.float32
        assert observation["state"].shape == (len(PUSHT_SPEC.state["state"]),)
    assert StreamSpec.from_json(PUSHT_SPEC.to_json()) == PUSHT_SPEC
    assert env.render().shape == (384, 384, 3)


def test_agent_moves_to_its_target() -> None:
    env = PushTEnv(image=False)
    env.set_state(np.array([60, 60, 350, 350, 0]))
    for _ in range(15):
        out = env.step(np.array([90.0, 120.0]))
    np.testing.assert_allclose(out.obs["state"], [90, 120, 350, 350, 0], atol=0.1)


@pytest.mark.parametrize(
    ("shift", "terminated"),
    [(0.0, True), (1.5, True), (6.0, False), (60.0, False)],
)
def test_reward_is_coverage_over_095_and_the_end_needs_more_than_095(
    shift: float, terminated: bool
) -> None:
    env = PushTEnv(image=False)
    goal = np.array(FIXED_GOAL)
    env.set_state(np.array([30, 30, goal[0] + shift, goal[1], goal[2]]))
    out = env.step(np.array([30.0, 30.0]))
    assert out.terminated == terminated == (out.info["coverage"] > 0.95)
    assert out.reward == pytest.approx(min(out.info["coverage"] / 0.95, 1.0))
    assert (out.info["coverage"] == pytest.approx(1.0)) == (shift == 0.0)


def test_episode_depends_on_its_seed_alone() -> None:
    actions = np.random.default_rng(0).uniform(100, 400, (40, 2))

    def play(env: PushTEnv, seed: int) -> np.ndarray:
        return np.stack([env.reset(seed)["state"], *(env.step(a).obs["state"] for a in actions)])

    used = PushTEnv(goal="random", image=False)
    for seed in range(3):
        play(used, seed)
        np.random.seed(seed)
    np.testing.assert_array_equal(play(used, 7), play(PushTEnv(goal="random", image=False), 7))


def test_random_goal_is_given_by_the_seed_and_covers_its_range() -> None:
    env, starts = make_pusht_m(), PushTEnv(image=False)
    env.reset(11)
    np.testing.assert_array_equal(env.goal, random_goal(11))
    np.testing.assert_array_equal(
        env.state, (starts.reset(11), starts.state)[1]
    )  # the start is that of PushT
    goals = np.stack([random_goal(s) for s in range(500)])
    assert (goals[:, :2] >= 156).all()
    assert (goals[:, :2] <= 356).all()
    np.testing.assert_allclose(goals.mean(0), [256, 256, np.pi], rtol=0.05)
    np.testing.assert_allclose(goals.std(0), [57.7, 57.7, 2 * np.pi / 12**0.5], rtol=0.1)
    assert make_pusht().reset(11)["img"].tolist() != env.reset(11)["img"].tolist()


@pytest.mark.parametrize("kind", ["fixed", "random"])
def test_picture_is_a_function_of_state_and_goal(kind: Literal["fixed", "random"]) -> None:
    env = PushTEnv(goal=kind)
    observation = env.reset(3)
    for _ in range(
        12
    ):  # into the block, so that contacts, of which a state knows nothing, would show
        observation = env.step(observation["state"][2:4]).obs
        np.testing.assert_array_equal(
            observation["img"], render_state(observation["state"], env.goal)
        )
    assert (
        render_state(observation["state"], env.goal)
        != render_state(observation["state"] + 20, env.goal)
    ).any()


def test_set_state_is_exact() -> None:
    env = PushTEnv(image=False)
    env.reset(5)
    env.step(np.array([300.0, 300.0]))
    wanted = np.array([100.5, 200.25, 300.125, 220.75, 1.25])
    np.testing.assert_array_equal(
        env.set_state(wanted, np.array([200, 210, 0.5]))["state"], wanted.astype(np.float32)
    )
    np.testing.assert_array_equal(env.goal, [200, 210, 0.5])


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (np.array([np.nan, 1.0]), "finite action, found"),
        (np.array([1.0, np.inf]), "finite action, found"),
        (np.zeros(3), r"action of shape \(2,\), found \(3,\)"),
        (np.zeros((1, 2)), r"action of shape \(2,\), found \(1, 2\)"),
    ],
)
def test_impossible_action_is_refused_and_moves_nothing(action: np.ndarray, sentence: str) -> None:
    env = PushTEnv(image=False)
    env.reset(0)
    before = env.state
    with pytest.raises(UserError, match=sentence):
        env.step(action)
    np.testing.assert_array_equal(env.state, before)


def test_unknown_goal_kind_is_refused() -> None:
    with pytest.raises(UserError, match="'fixed' or 'random', found 'moving'"):
        PushTEnv(goal="moving")  # pyright: ignore[reportArgumentType]


def test_missing_simulator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_simulator(name: str, *args: Any, **kwargs: Any) -> object:
        if name.startswith("gym_pusht"):
            raise ImportError("No module named 'gym_pusht'")
        return real(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.startswith("gym_pusht")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_simulator)
    with pytest.raises(UserError, match=r'pip install "foreact\[pusht\]"'):
        PushTEnv()
