from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foreact.checkpoints.tokenizers import LoadedTokenizer
from foreact.errors import UserError
from foreact.families.voc.action_values import OccupancyValue, RolloutValue
from foreact.families.voc.cloning.model import Cloning, CloningConfig
from foreact.families.voc.cloning.policy import CloningPolicy
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.model import VOC
from foreact.families.voc.policy import PlanningConfig, PlanningPolicy
from foreact.families.voc.stacks import CodeStacks
from foreact.types import ActionSpec, Batch, Observation, Policy, StreamSpec

LEVELS, FRAMES = 4, 2
SPEC = StreamSpec(
    cameras={"img": (4, 4)},
    fps=10.0,
    action=ActionSpec(
        names=("x",),
        units=("unitless",),
        frame="world",
        mode="delta",
        rate_hz=10.0,
        low=(-1.0,),
        high=(1.0,),
    ),
    has_reward=True,
)
VOC_CONFIG = VOCConfig(
    width=16,
    heads=2,
    layers=1,
    dropout=0.0,
    attention_dropout=0.0,
    vocab=LEVELS,
    code_dim=2,
    grid=(1, 1),
    frames=FRAMES,
    gammas=(0.5,),
    actions=1,
    camera="img",
    reward_hidden=8,
)
CLONING_CONFIG = CloningConfig(
    vocab=LEVELS,
    code_dim=2,
    grid=(1, 1),
    frames=FRAMES,
    camera="img",
    channels=2,
    width=8,
    dropout=0.0,
)


class Brightness:
    """Tokenizer of one code: the brightness of the frame in `LEVELS` steps."""

    vocab = LEVELS

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        self.batches.append(len(video))
        level = (video.mean((-3, -2, -1)) + 1.0) / 2.0 * LEVELS
        return level.long().clamp(0, LEVELS - 1)[..., None, None]


class Recorded:
    """Values by a formula; keeps what it was asked."""

    def __init__(self, value: Callable[[Tensor, Tensor], Tensor], steps: int = 1) -> None:
        self.value, self.steps = value, steps
        self.asked: list[tuple[int, ...]] = []
        self.stacks: list[Tensor] = []

    def __call__(self, stacks: Tensor, actions: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        self.asked.append(tuple(actions.shape))
        self.stacks.append(stacks)
        assert len(stacks) == len(actions) == len(rngs)
        return self.value(stacks, actions)

    def describe(self) -> dict[str, Any]:
        return {"value": "recorded"}


def memory(batch_size: int = 1, frames: int = FRAMES) -> CodeStacks:
    tokenizer = LoadedTokenizer(Brightness(), "sha256:bright", None)
    return CodeStacks(
        tokenizer, SPEC, camera="img", frames=frames, grid=(1, 1), batch_size=batch_size
    )


def show(levels: Sequence[int]) -> Observation:
    frames = [np.full((4, 4, 3), int((level + 0.5) / LEVELS * 255), np.uint8) for level in levels]
    return Observation(cameras={"img": np.stack(frames)})


def occupancy_model(**changes: Any) -> VOC:
    torch.manual_seed(0)
    voc = VOC(dataclasses.replace(VOC_CONFIG, **changes)).eval()
    voc.set_codebook(torch.randn(LEVELS, 2))
    return voc


def cloning_model(**changes: Any) -> Cloning:
    torch.manual_seed(0)
    model = Cloning(dataclasses.replace(CLONING_CONFIG, **changes)).eval()
    model.set_codebook(torch.randn(LEVELS, 2))
    return model


def planning_policy(
    value: Any, *, batch_size: int = 1, cloning: Cloning | None = None, **planning: Any
):
    return PlanningPolicy(
        value, memory(batch_size), SPEC, cloning=cloning, planning=PlanningConfig(**planning)
    )


# --- memory ---------------------------------------------------------------------------------------


def test_a_stack_is_the_newest_frames_oldest_first_and_the_first_one_stands_in_before() -> None:
    stacks = memory(frames=3)
    stacks.reset([1, 2])
    seen = []
    for levels in ([0, 3], [1, 2], [2, 1], [3, 0]):
        stacks.observe(show(levels))
        seen.append(stacks.now().stacks[..., 0, 0].tolist())
    assert seen == [
        [[0, 0, 0], [3, 3, 3]],
        [[0, 0, 1], [3, 3, 2]],
        [[0, 1, 2], [3, 2, 1]],
        [[1, 2, 3], [2, 1, 0]],
    ]
    assert stacks.now([1]).stacks.shape == (1, 3, 1, 1)
    assert stacks.now().step == 3


def test_every_frame_is_encoded_once_in_batches_of_one_size() -> None:
    stacks = memory(batch_size=2)
    encoder = stacks.tokenizer.tokenizer
    assert isinstance(encoder, Brightness)
    stacks.reset([1, 2, 3])
    stacks.observe(show([0, 1, 2]))
    stacks.now()
    stacks.observe(show([1, 2]), [0, 2])
    assert encoder.batches == [2, 2, 2]


def test_draws_depend_on_seed_and_step() -> None:
    def first_draws(seeds: list[int], steps: int) -> list[float]:
        stacks = memory()
        stacks.reset(seeds)
        for _ in range(steps):
            stacks.observe(show([0] * len(seeds)))
        return [torch.rand((), generator=rng).item() for rng in stacks.now().rngs]

    assert first_draws([5, 6], 1)[1:] == first_draws([6], 1)
    assert len({*first_draws([5, 6], 1), *first_draws([5, 6], 2)}) == 4


def test_what_cannot_be_a_frame_is_refused() -> None:
    stacks = memory()
    with pytest.raises(ValueError, match="reset"):
        stacks.now()
    stacks.reset([1])
    with pytest.raises(ValueError, match="one and the same step"):
        stacks.now()
    with pytest.raises(UserError, match="watches camera 'img'"):
        stacks.observe(Observation(cameras={}))
    with pytest.raises(UserError, match=r"should be uint8 \(1, 4, 4, 3\)"):
        stacks.observe(Observation(cameras={"img": np.zeros((1, 5, 5, 3), np.uint8)}))
    with pytest.raises(UserError, match="spec knows"):
        CodeStacks(stacks.tokenizer, SPEC, camera="wrist", frames=2, grid=(1, 1))
    wide = CodeStacks(stacks.tokenizer, SPEC, camera="img", frames=2, grid=(2, 2))
    wide.reset([1])
    with pytest.raises(UserError, match="2 x 2 codes per frame, the tokenizer gives 1 x 1"):
        wide.observe(show([0]))


# --- planning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", ["cem", "mppi", "shooting"])
@pytest.mark.parametrize("prior", [False, True])
def test_it_plays_what_the_values_prefer_in_each_state(planner: Any, prior: bool) -> None:
    """The best action is 0.5 in the dark and -0.5 in the light."""

    def value(stacks: Tensor, actions: Tensor) -> Tensor:
        best = torch.where(stacks[:, -1, 0, 0] < 2, 0.5, -0.5)
        return -(actions[..., 0, 0] - best[:, None]).square()

    asked = Recorded(value)
    policy = planning_policy(
        asked,
        cloning=cloning_model() if prior else None,
        planner=planner,
        candidates=64,
        iterations=4,
        elites=6,
        temperature=0.1,
        prior_share=0.25,
        batch_size=2,
    )
    assert isinstance(policy, PlanningPolicy)
    checked: Policy = policy  # meets the protocol
    checked.reset([1, 2])
    checked.observe(show([0, 3]))
    chunk = checked.act()
    assert (chunk.actions.shape, chunk.actions.dtype, chunk.execute, chunk.t0) == (
        (2, 1, 1),
        np.float32,
        1,
        0,
    )
    np.testing.assert_allclose(chunk.actions[:, 0, 0], [0.5, -0.5], atol=0.1)
    assert set(asked.asked) == {(2, 64, 1, 1)}  # one call for both episodes in every round
    assert len(asked.asked) == (1 if planner == "shooting" else 4)


def test_a_plan_depends_on_its_episode_alone() -> None:
    voc, cloning = occupancy_model(), cloning_model()

    def plans(
        seeds: list[int], levels: list[int], ids: list[int] | None, batch_size: int
    ) -> np.ndarray:
        value = OccupancyValue(voc, samples=2)
        policy = planning_policy(
            value, cloning=cloning, batch_size=batch_size, candidates=8, elites=2
        )
        policy.reset(seeds)
        for _ in range(2):
            policy.observe(show(levels))
        return policy.act(ids).actions

    together = plans([5, 6, 7], [0, 1, 2], None, 2)
    np.testing.assert_array_equal(together, plans([5, 6, 7], [0, 1, 2], None, 2))
    np.testing.assert_array_equal(together[2:], plans([5, 6, 7], [0, 1, 2], [2], 2))
    np.testing.assert_array_equal(together[1:2], plans([6], [1], None, 2))
    assert not np.array_equal(together[1:2], plans([8], [1], None, 2))


def test_proposals_are_the_stated_share_of_the_candidates() -> None:
    cloning = cloning_model(low=(-1.0,), high=(1.0,))
    with torch.no_grad():  # always 0.25, nearly
        cloning.head.weight.zero_()
        cloning.head.bias.copy_(torch.tensor([[0.0, 0.25, -9.0]] * 5).flatten())
    seen: list[Tensor] = []

    def value(stacks: Tensor, actions: Tensor) -> Tensor:
        seen.append(actions[0, :, 0, 0])
        return actions[..., 0, 0]

    policy = planning_policy(
        Recorded(value), cloning=cloning, planner="shooting", candidates=20, prior_share=0.75
    )
    policy.reset([0])
    policy.observe(show([1]))
    policy.act()
    near = (seen[0] - 0.25).abs() < 0.25
    assert near[:15].all()
    assert not near[15:].all()


def test_cem_begins_where_the_cloned_behaviour_is() -> None:
    cloning = cloning_model()
    policy = planning_policy(
        Recorded(lambda s, a: a.sum((2, 3)) * 0.0),
        cloning=cloning,
        candidates=256,
        elites=256,
        iterations=1,
        spread=0.01,
        prior_share=0.0,
    )
    policy.reset([0])
    policy.observe(show([1]))
    mode = cloning.mode(torch.ones(1, FRAMES, 1, 1, dtype=torch.int64))
    np.testing.assert_allclose(policy.act().actions, mode.numpy(), atol=0.01)


def test_it_tells_what_it_is() -> None:
    value = OccupancyValue(occupancy_model(gammas=(0.5, 0.9)), gamma=0.9, samples=3)
    told = planning_policy(value, candidates=12).describe()
    expected = {
        "policy": "planning",
        "value": "occupancy",
        "gamma": 0.9,
        "samples": 3,
        "candidates": 12,
        "planner": "cem",
        "execute": 1,
        "horizon": 1,
        "tokenizer": "sha256:bright",
    }
    assert expected.items() <= told.items()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"planner": "guess"}, "cem, mppi or shooting"),
        ({"candidates": 0}, "candidates should be at least 1"),
        (
            {"elites": 40},
            r"--planning\.elites \(40\) should not exceed --planning\.candidates \(32\)",
        ),
        ({"prior_share": 1.5}, r"--planning\.prior-share should be in \[0, 1\], .* found 1\.5"),
        ({"prior_share": 1.0}, r"lower --planning\.prior-share \(1\.0\)"),
        ({"temperature": 0.0}, "positive"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PlanningConfig(**changes)


def test_models_that_cannot_plan_are_refused() -> None:
    with pytest.raises(UserError, match="conditioned on actions"):
        OccupancyValue(occupancy_model(actions=0))
    with pytest.raises(UserError, match=r"trained for the gammas \[0\.5\]"):
        OccupancyValue(occupancy_model(), gamma=0.9)
    with pytest.raises(UserError, match="model of the next step"):
        RolloutValue(occupancy_model(), cloning_model())
    with pytest.raises(UserError, match="samples and horizon of at least 1"):
        RolloutValue(occupancy_model(gammas=(0.0,)), cloning_model(), horizon=0)
    assert SPEC.action is not None
    unbounded = dataclasses.replace(SPEC, action=dataclasses.replace(SPEC.action, low=None))
    with pytest.raises(UserError, match="within the action bounds"):
        PlanningPolicy(OccupancyValue(occupancy_model()), memory(), unbounded)
    with pytest.raises(UserError, match="execute is 2"):
        PlanningPolicy(OccupancyValue(occupancy_model()), memory(), SPEC, execute=2)
    with pytest.raises(UserError, match="--action-steps 3"):
        PlanningPolicy(
            OccupancyValue(occupancy_model(action_steps=3)), memory(), SPEC, cloning=cloning_model()
        )


# --- values ---------------------------------------------------------------------------------------


def rngs(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_occupancy_value_is_the_mean_reward_of_samples_over_one_minus_gamma() -> None:
    voc = occupancy_model(gammas=(0.5, 0.9))
    stacks = torch.randint(LEVELS, (2, FRAMES, 1, 1))
    actions = torch.rand(2, 3, 1, 1)
    values = OccupancyValue(voc, gamma=0.9, samples=5)(stacks, actions, rngs(1, 2))
    futures = voc.sample(stacks, samples=5, gamma=0.9, actions=actions, rng=rngs(1, 2))
    assert futures.shape == (2, 3, 5, FRAMES, 1, 1)
    torch.testing.assert_close(values, voc.predicted_reward(futures).sum(-1) / 5 * 10.0)


class Counter(VOC):
    """Stands in for a one-step model whose frame grows by the action: reward = frame."""

    def __init__(self) -> None:
        super().__init__(dataclasses.replace(VOC_CONFIG, gammas=(0.0,)))

    def sample(
        self, stacks: Tensor, *, samples: int, gamma: float, actions: Tensor, rng: Any
    ) -> Tensor:
        grown = stacks[:, -1:, 0, 0] + actions[..., 0, 0].view(len(stacks), -1).long()
        out = (
            grown[..., None]
            .expand(-1, -1, samples)[..., None, None, None]
            .expand(-1, -1, -1, FRAMES, 1, 1)
        )
        return out if actions.ndim == 4 else out[:, 0]

    def predicted_reward(self, tokens: Tensor) -> Tensor:
        return tokens[..., -1, 0, 0].float()


def test_rollouts_take_the_candidate_first_then_cloned_actions_and_discount() -> None:
    cloning = cloning_model(high=(2.0,), low=(0.0,))
    with torch.no_grad():  # always 2, clipped to the bound
        cloning.head.weight.zero_()
        cloning.head.bias.copy_(torch.tensor([[0.0, 3.0, -9.0]] * 5).flatten())
    value = RolloutValue(Counter(), cloning, gamma=0.5, samples=2, horizon=3)
    stacks = torch.zeros(2, FRAMES, 1, 1, dtype=torch.int64)
    cloning._mixture = lambda tokens: Cloning._mixture(
        cloning, tokens.clamp(0, LEVELS - 1)
    )  # counts beyond codes
    found = value(stacks, torch.tensor([[[[0.0]], [[1.0]], [[3.0]]]] * 2), rngs(1, 2))
    expected = [a + 0.5 * (a + 2) + 0.25 * (a + 4) for a in (0, 1, 3)]
    torch.testing.assert_close(found, torch.tensor([expected] * 2))


def test_rollouts_of_a_real_model_have_one_value_per_candidate_and_follow_the_seeds() -> None:
    value = RolloutValue(occupancy_model(gammas=(0.0,)), cloning_model(), samples=2, horizon=3)
    stacks = torch.randint(LEVELS, (2, FRAMES, 1, 1))
    actions = torch.rand(2, 4, 1, 1)
    found = value(stacks, actions, rngs(1, 2))
    assert found.shape == (2, 4)
    assert torch.equal(found, value(stacks, actions, rngs(1, 2)))
    assert not torch.equal(found, value(stacks, actions, rngs(1, 3)))


def test_rollouts_draw_alike_for_all_candidates_and_differently_for_each_sample_and_state() -> None:
    voc, seen = occupancy_model(gammas=(0.0,)), []
    reward = voc.predicted_reward
    voc.predicted_reward = lambda tokens: (seen.append(tokens), reward(tokens))[1]
    stacks = torch.zeros(2, FRAMES, 1, 1, dtype=torch.int64)
    RolloutValue(voc, cloning_model(), samples=8, horizon=6)(
        stacks, torch.full((2, 4, 1, 1), 0.3), rngs(1, 2)
    )
    walked = torch.stack(seen).flatten(2).unflatten(1, (2, 4, 8))  # (H, B, N, S, T)
    assert torch.equal(walked, walked[:, :, :1].expand_as(walked))
    assert (
        len({tuple(walk.flatten().tolist()) for walk in walked[:, :, 0].flatten(1, 2).unbind(1)})
        > 8
    )


def test_a_trained_occupancy_model_finds_the_action_that_the_reward_follows() -> None:
    """A light goes up or down a level with the sign of the action; the reward is its level."""
    rng = torch.Generator().manual_seed(0)
    voc = occupancy_model(gammas=(0.5,))
    optimizer = torch.optim.AdamW(voc.param_groups(5e-3, 0.01))
    for _ in range(150):
        level = torch.randint(LEVELS, (128, 2), generator=rng)
        level[:, 1] = (level[:, 0] + torch.randint(-1, 2, (128,), generator=rng)).clamp(
            0, LEVELS - 1
        )
        actions = torch.rand(128, 2, 1, generator=rng) * 2 - 1
        following = (level[:, 1] + actions[:, 0, 0].sign().long()).clamp(0, LEVELS - 1)
        tokens = torch.cat([level, following[:, None]], dim=1)[..., None, None]
        out = voc.learn(tokens, following[:, None].float(), actions, rng=rng)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        voc.after_step()
    voc.eval()
    policy = planning_policy(OccupancyValue(voc, samples=8), candidates=24, elites=5, iterations=2)
    policy.reset([1, 2, 3])
    policy.observe(show([1, 1, 2]))
    policy.observe(show([1, 2, 1]))
    assert (policy.act().actions > 0.0).all()


# --- cloning as a policy --------------------------------------------------------------------------


def test_cloning_plays_its_mode_or_a_draw() -> None:
    cloning = cloning_model(action_steps=2)
    stacks = torch.tensor([[1, 2], [0, 3]])[..., None, None]
    played = []
    for draw in (False, True):
        policy: Policy = CloningPolicy(cloning, memory(2), SPEC, execute=2, draw=draw, weights="w")
        policy.reset([5, 6])
        policy.observe(show([1, 0]))
        policy.observe(show([2, 3]))
        chunk = policy.act()
        assert (chunk.execute, chunk.t0, chunk.actions.shape) == (2, 1, (2, 2, 1))
        played.append(chunk.actions)
        assert {
            "policy": "cloning",
            "draw": draw,
            "weights": "w",
        }.items() <= policy.describe().items()
    np.testing.assert_allclose(played[0], cloning.mode(stacks).numpy(), atol=1e-6)
    assert not np.array_equal(*played)


def test_cloning_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="execute is 3"):
        CloningPolicy(cloning_model(), memory(), SPEC, execute=3)
    with pytest.raises(UserError, match="predicts 2 action dims"):
        CloningPolicy(cloning_model(low=(0.0, 0.0), high=(1.0, 1.0)), memory(), SPEC)


def test_windows_of_the_occupancy_model_train_cloning_too() -> None:
    tokens = torch.randint(LEVELS, (6, FRAMES + 1, 1, 1))
    batch = Batch(tokens={"img": tokens}, actions=torch.rand(6, 2, 1), rewards=torch.rand(6, 1))
    rng = torch.Generator().manual_seed(0)
    assert torch.isfinite(cloning_model()(batch, rng=rng).loss)
    assert torch.isfinite(occupancy_model()(batch, rng=rng).loss)
