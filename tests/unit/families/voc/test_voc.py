"""The occupancy model: its targets, what it learns, how it samples, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foreact.errors import UserError
from foreact.families.voc import model as module
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.model import VOC
from foreact.families.voc.network import draw_codes
from foreact.types import Batch

TINY: dict[str, Any] = {
    "width": 16,
    "heads": 2,
    "layers": 1,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "vocab": 12,
    "code_dim": 3,
    "grid": (2, 1),
    "frames": 2,
    "reward_hidden": 8,
}


def make(**options: Any) -> VOC:
    torch.manual_seed(0)
    model = VOC(VOCConfig(**{**TINY, **options}))
    model.set_codebook(torch.randn(model.config.vocab, model.config.code_dim))
    return model


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(model: VOC, batch: int = 5, seed: int = 0) -> Tensor:
    config = model.config
    shape = (batch, config.frames + config.bootstrap_steps, *config.grid)
    return torch.randint(config.vocab, shape, generator=rng(seed))


# --- what it learns -------------------------------------------------------------------------------


def learn_cycle(*, steps: int = 250, **options: Any) -> VOC:
    """Learn the world 0 -> 1 -> 2 -> 3 -> 0, whose states are one
    code, and whose reward is the state's number.
    """
    torch.manual_seed(0)
    config = VOCConfig(**{**TINY, "vocab": 4, "grid": (1, 1), "frames": 1, "width": 32, **options})
    model = VOC(config)
    model.set_codebook(torch.eye(4, config.code_dim))
    optimizer = torch.optim.AdamW(model.param_groups(5e-3, 0.0), betas=(0.9, 0.99))
    generator = rng()
    for _ in range(steps):
        start = torch.randint(4, (128, 1), generator=generator)
        states = (start + torch.arange(config.bootstrap_steps + 1)) % 4
        batch = Batch(tokens={"pixels": states[..., None, None]}, rewards=states[:, 1:].float())
        optimizer.zero_grad()
        model(batch, rng=generator).loss.backward()
        optimizer.step()
        model.after_step()
    return model.eval()


def occupancy_of_cycle(gamma: float) -> Tensor:
    """(4,): share of each state in the discounted future of state 0."""
    found = torch.zeros(4)
    for k in range(1, 400):
        found[k % 4] += (1 - gamma) * gamma ** (k - 1)
    return found


@pytest.mark.parametrize("bootstrap_steps", [1, 3])
def test_the_discounted_future_of_a_known_world_is_learned_at_every_gamma(
    bootstrap_steps: int,
) -> None:
    gammas = (0.0, 0.6)
    model = learn_cycle(gammas=gammas, bootstrap_steps=bootstrap_steps, code_dim=4)
    now = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    for gamma in gammas:
        futures = torch.arange(4).view(4, 1, 1, 1)
        learned = model.log_prob(now.expand(4, 1, 1, 1), futures, gamma=gamma).exp()[:, 0]
        torch.testing.assert_close(learned, occupancy_of_cycle(gamma), atol=0.06, rtol=0)
    draws = model.sample(now, samples=2000, gamma=0.6, rng=rng()).flatten()
    frequencies = torch.bincount(draws, minlength=4) / len(draws)
    torch.testing.assert_close(frequencies, occupancy_of_cycle(0.6), atol=0.08, rtol=0)
    torch.testing.assert_close(model.predicted_reward(futures), torch.arange(4.0), atol=0.2, rtol=0)


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "steps"), [(0.8, 1), (0.5, 3), (0.0, 2)])
def test_delays_follow_the_geometric_law_and_the_rest_is_bootstrapped(
    gamma: float, steps: int
) -> None:
    model = make(gammas=(gamma,), bootstrap_steps=steps)
    delays = model._draw_delay(torch.zeros(40_000, dtype=torch.int64), rng())
    found = torch.bincount(delays, minlength=steps + 1) / len(delays)
    expected = torch.tensor([(1 - gamma) * gamma**d for d in range(steps)] + [gamma**steps])
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_a_target_is_a_stack_of_the_data_or_a_sample_from_the_last_one() -> None:
    model = make(bootstrap_steps=2, actions=1, action_steps=2)
    stacks = model.stacks(tokens(model, batch=3))
    actions = torch.arange(3 * 4.0).view(3, 4, 1)
    seen: dict[str, Tensor] = {}
    sampled = torch.full((1, 1, model.config.block), 7)

    def sample(context: Tensor, condition: Tensor, uniform: Tensor, **_: Any) -> Tensor:
        seen.update(context=context, condition=condition)
        return sampled

    model.target.sample = sample
    numbers = torch.zeros(3, dtype=torch.int64)
    found = model.targets(stacks, torch.tensor([0, 2, 1]), numbers, actions, rng=rng())
    assert torch.equal(found, torch.stack([stacks[0, 1], sampled[0, 0], stacks[2, 2]]))
    assert torch.equal(seen["context"], stacks[1:2, 2])
    # Two steps on, the data's actions from there on go with the sample.
    expected = model.target.condition(numbers[1:2], actions[1:2, 2:4])
    torch.testing.assert_close(seen["condition"][:, 0], expected)


def test_stacks_overlap_and_are_flat_with_the_oldest_frame_first() -> None:
    model = make(bootstrap_steps=2)
    video = torch.arange(8).view(1, 4, 2, 1)
    assert model.stacks(video).tolist() == [[[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]]


def test_the_target_network_follows_slowly_takes_no_gradient_and_drops_nothing() -> None:
    model = make(dropout=0.5, target_decay=0.9)
    before = {n: p.clone() for n, p in model.target.named_parameters()}
    model.train()
    assert model.gpt.training
    assert not model.target.training
    model.learn(tokens(model), torch.zeros(5, 1), None, rng=rng()).loss.backward()
    assert all(p.grad is None for p in model.target.parameters())
    with torch.no_grad():
        for p in model.gpt.parameters():
            p.add_(1.0)
    model.after_step()
    for name, p in model.target.named_parameters():
        torch.testing.assert_close(p, before[name] + 0.1)
    assert make(target_dropout=True).train().target.training


def test_without_the_context_loss_only_the_future_counts() -> None:
    batch = {"tokens": tokens(make()), "rewards": torch.zeros(5, 1), "actions": None}
    both, future = (make(context_loss=value).learn(**batch, rng=rng()) for value in (True, False))
    head = both.logs["reward_mse"]
    torch.testing.assert_close(both.loss - head, both.logs["nats_per_code"])
    torch.testing.assert_close(future.loss - head, both.logs["nats_per_future_code"])
    assert not torch.isclose(both.loss, future.loss)


def test_the_condition_changes_the_future_and_not_the_context() -> None:
    model = make(gammas=(0.5, 0.9), actions=2, action_steps=2).eval()
    stack = tokens(model)[:, :2]
    actions = torch.randn(5, 2, 2, generator=rng())
    condition = model.gpt.condition(torch.tensor([0, 1, 0, 1, 0]), actions)
    other = model.gpt.condition(torch.tensor([1, 0, 1, 0, 1]), -actions)
    flat = stack.flatten(1)
    a, b = (model.gpt.code_logits(flat, c, flat) for c in (condition, other))
    assert a.shape == (5, 2 * 4 - 1, 12)
    torch.testing.assert_close(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3:], b[:, 3:])


# --- sampling -------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.floats(0.0, 0.999999), st.integers(1, 6))
def test_a_code_is_where_the_cumulated_probability_reaches_the_number(
    seed: int, uniform: float, top_k: int
) -> None:
    logits = torch.randn(1, 6, generator=rng(seed))
    code = int(draw_codes(logits, torch.tensor([uniform]), top_k=top_k))
    assert code in logits[0].topk(top_k).indices
    kept = (
        torch.where(logits >= logits.topk(top_k).values[:, -1:], logits, -math.inf)[0]
        .softmax(0)
        .double()
    )
    assert kept[:code].sum() <= uniform + 1e-6
    assert kept[: code + 1].sum() >= uniform - 1e-6


def test_samples_are_those_of_the_model_whatever_is_sampled_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make(actions=1).eval()
    stacks = tokens(model)[:, :2]
    actions = torch.randn(5, 3, 1, 1, generator=rng())
    found = model.sample(stacks, samples=4, actions=actions, rng=[rng(i) for i in range(5)])
    assert found.shape == (5, 3, 4, 2, 2, 1)
    alone = model.sample(stacks[2:3], samples=4, actions=actions[2:3], rng=[rng(2)])
    assert torch.equal(alone[0], found[2])
    monkeypatch.setattr(module, "ROWS", 5)  # smaller parts
    assert torch.equal(
        model.sample(stacks, samples=4, actions=actions, rng=[rng(i) for i in range(5)]), found
    )
    one = model.sample(stacks, samples=4, actions=actions[:, 0], rng=[rng(i) for i in range(5)])
    assert one.shape == (5, 4, 2, 2, 1)


def test_sampling_with_the_cache_agrees_with_reading_the_whole_sequence() -> None:
    model = make(gammas=(0.5, 0.9), layers=2).eval()
    stacks = tokens(model)[:, :2]
    greedy = model.sample(stacks, gamma=0.9, top_k=1, rng=rng())[:, 0]
    assert torch.equal(model.future_logits(stacks, greedy, gamma=0.9).argmax(-1), greedy.flatten(1))
    torch.testing.assert_close(
        model.log_prob(stacks, greedy, gamma=0.9, online=True),
        model.log_prob(stacks, greedy, gamma=0.9),
    )


def test_every_draw_is_the_one_that_its_whole_sequence_gives() -> None:
    model = make(gammas=(0.5, 0.9), actions=2, action_steps=2, layers=2).eval()
    context = tokens(model)[:, :2].flatten(1)
    actions = torch.randn(5, 3, 2, 2, generator=rng())
    condition = model.gpt.condition(torch.randint(2, (5, 3), generator=rng()), actions)
    uniform = torch.rand(5, 3, model.config.block, generator=rng())
    drawn = model.gpt.sample(context, condition, uniform)
    for i in range(3):
        logits = model.gpt.code_logits(context, condition[:, i], drawn[:, i])[
            :, -model.config.block :
        ]
        again = draw_codes(logits.flatten(0, 1), uniform[:, i].flatten())
        assert torch.equal(again, drawn[:, i].flatten())


def test_features_stand_in_the_order_of_the_published_heads() -> None:
    block = torch.arange(4)[None]
    rows = {
        order: make(feature_order=order).features(block)[0]
        for order in ("channels_first", "tokens_first")
    }
    table = make().codebook[:4]  # (T h w, c) with two codes a frame
    torch.testing.assert_close(rows["tokens_first"], table.flatten())
    torch.testing.assert_close(
        rows["channels_first"], torch.cat([table[:2].T.flatten(), table[2:].T.flatten()])
    )


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gammas", [(1.0,), (-0.1,), (), (0.5, 0.5), (float("nan"),)])
def test_impossible_gammas_are_refused(gammas: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="gammas"):
        VOCConfig(gammas=gammas)


def test_bad_input_is_refused_in_one_sentence() -> None:
    model, acting = make(gammas=(0.5, 0.9)), make(actions=2)
    stack = tokens(model)[:, :2]
    for call, problem in (
        (lambda: model.sample(stack, rng=rng()), r"\[0.5, 0.9\], found None"),
        (lambda: model.sample(stack, gamma=0.7, rng=rng()), "found 0.7"),
        (lambda: model.sample(stack + 20, gamma=0.5, rng=rng()), r"0\.\.11"),
        (lambda: model.sample(stack[:, :1], gamma=0.5, rng=rng()), "stacks of 2 frames"),
        (lambda: model.sample(stack.transpose(2, 3), gamma=0.5, rng=rng()), r"\(B, 2, 2, 1\)"),
        (lambda: model.sample(stack, gamma=0.5, samples=0, rng=rng()), "samples >= 1"),
        (lambda: model.sample(stack, gamma=0.5, top_k=0, rng=rng()), "top_k >= 1"),
        (lambda: model.log_prob(stack, stack[:, :1], gamma=0.5), "stacks of 2 frames"),
        (
            lambda: model.sample(stack, gamma=0.5, actions=torch.zeros(5, 1, 2), rng=rng()),
            "not conditioned",
        ),
        (lambda: acting.sample(stack, rng=rng()), "found none"),
        (
            lambda: acting.sample(stack, actions=torch.zeros(5, 1, 3), rng=rng()),
            r"\(\.\.\., 1, 2\)",
        ),
        (lambda: model.set_codebook(torch.zeros(3, 3)), "3 of length 3"),
        (lambda: model(Batch(tokens={"pixels": tokens(model)}), rng=rng()), "rewards"),
        (lambda: VOCConfig(target_top_k=0), r"--model\.target-top-k should be in .*, found 0"),
        (lambda: VOCConfig(positions=10), "positions"),
        (lambda: VOCConfig(grid=(0, 5)), "grid"),
    ):
        with pytest.raises(UserError, match=problem):
            call()


def test_the_published_sizes_have_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        vae = VOC(VOCConfig(positions=1024))
        dino = VOC(
            VOCConfig(positions=784, heads=4, vocab=8192, code_dim=32, grid=(14, 14), frames=2)
        )
    counts = [sum(p.numel() for p in model.gpt.parameters()) for model in (vae, dino)]
    assert counts == [29_925_888, 35_246_592]
    assert np.prod(vae.reward.first.weight.shape) == 256 * 19_200
    assert np.prod(dino.reward.first.weight.shape) == 256 * 12_544
