"""The action expert: who sees whom, k plans for one look at the video, the flow's loss."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.tiny_vavam import ACTION, VIDEO, some_tokens, tiny_vavam

from foreact.errors import UserError
from foreact.families.driving.vavam import SIZES, VaVAM, frame_mask, sample_mask
from foreact.types import Batch

COMMANDS = torch.tensor([2, 0])


def noise(samples: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(2, samples, 3, 2, generator=torch.Generator().manual_seed(seed))


def test_the_mask_is_the_drawing() -> None:
    drawing = """
        xx.. xxx...
        xx.. xxx...
        xx.. xxx...
        xxxx ...xxx
        xxxx ...xxx
        xxxx ...xxx
    """
    rows = [[c == "x" for c in line if c != " "] for line in drawing.strip().splitlines()]
    assert torch.equal(frame_mask(2, tokens=2, horizon=3), torch.tensor(rows))
    assert torch.equal(
        sample_mask(2, seen=1, horizon=2),
        torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 1], [1, 0, 0, 1, 1]]).bool(),
    )


def test_many_samples_at_once_equal_one_at_a_time() -> None:
    model, tokens, drawn = tiny_vavam(), some_tokens(2, 3), noise(4)
    together = model.act(tokens, COMMANDS, samples=4, noise=drawn)
    for i in range(4):
        alone = model.act(tokens, COMMANDS, noise=drawn[:, i : i + 1])
        torch.testing.assert_close(together[:, i : i + 1], alone, atol=1e-3, rtol=1e-4)


def test_the_video_is_read_once_whatever_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, looks = tiny_vavam(), []
    watch = model.vavim.watch
    monkeypatch.setattr(model.vavim, "watch", lambda tokens: looks.append(1) or watch(tokens))
    model.act(some_tokens(2, 3), COMMANDS, samples=5, steps=7, noise=noise(5))
    assert looks == [1]


def test_training_sees_no_future_frame() -> None:
    model, tokens = tiny_vavam(), some_tokens(2, 3)
    commands, noisy, t = torch.full((2, 3), 2), torch.randn(2, 3, 3, 2), torch.rand(2, 3)
    before = model.velocity(tokens, commands, noisy, t)
    changed, other = tokens.clone(), noisy.clone()
    changed[:, 2], other[:, 2] = 0, 0.0
    after = model.velocity(changed, commands, other, t)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert (after[:, 2] - before[:, 2]).abs().max() > 1e-3


def test_acting_from_frame_f_is_what_training_saw_at_frame_f() -> None:
    model, tokens = tiny_vavam(), some_tokens(2, 3)
    commands, noisy, t = torch.full((2, 3), 1), torch.randn(2, 3, 3, 2), torch.rand(2, 3)
    trained = model.velocity(tokens, commands, noisy, t)
    for f in range(3):
        seen = (f + 1) * VIDEO.tokens_per_frame
        video = model.vavim.watch(tokens[:, : f + 1])
        acted = model.expert(
            noisy[:, f : f + 1], commands[:, :1], t[:, f : f + 1], video, sample_mask(1, seen, 3)
        )
        torch.testing.assert_close(acted, trained[:, f : f + 1], atol=1e-4, rtol=1e-4)


def batch_of(tokens: torch.Tensor) -> Batch:
    b, frames = tokens.shape[:2]
    plans = torch.randn(b, frames, 3, 2, generator=torch.Generator().manual_seed(5))
    return Batch(tokens={"front": tokens}, plans=plans, commands=torch.full((b, frames), 2))


@pytest.mark.parametrize("train_vavim", [False, True])
def test_the_video_model_learns_only_when_asked(train_vavim: bool) -> None:
    model = tiny_vavam(dataclasses.replace(ACTION, train_vavim=train_vavim)).train()
    model(batch_of(some_tokens(2, 3)), rng=torch.Generator().manual_seed(0)).loss.backward()
    assert all(p.grad is not None for p in model.expert.parameters())
    assert (model.vavim.token_embedding.weight.grad is not None) == train_vavim


def test_the_loss_repeats_with_its_generator() -> None:
    model, batch = tiny_vavam(), batch_of(some_tokens(2, 3))
    losses = [
        model(batch, rng=torch.Generator().manual_seed(seed)).loss.item() for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_fresh_expert_predicts_no_motion_of_the_noise() -> None:
    torch.manual_seed(0)
    model = VaVAM(ACTION).eval()
    drawn = noise(1)
    torch.testing.assert_close(
        model.act(some_tokens(2, 2), COMMANDS, noise=drawn), drawn * ACTION.action_scale
    )


def test_clip_is_in_metres() -> None:
    plans = tiny_vavam().act(some_tokens(2, 2), COMMANDS, noise=noise(1), clip=1.5)
    assert plans.abs().max() == 1.5


@pytest.mark.parametrize(
    ("size", "parameters"), [("S", 21_346_752), ("B", 37_948_672), ("L", 151_788_032)]
)
def test_published_sizes(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = VaVAM(SIZES[size])
    assert sum(p.numel() for p in model.expert.parameters()) == parameters


def test_what_cannot_be_acted_on_is_refused() -> None:
    model, tokens = tiny_vavam(), some_tokens(2, 2)
    with pytest.raises(UserError, match=r"0\.\.2 .*found 2\.\.3"):
        model.act(tokens, torch.tensor([2, 3]), noise=noise(1))
    with pytest.raises(UserError, match="give rng or noise"):
        model.act(tokens, COMMANDS)
    with pytest.raises(UserError, match="samples and steps"):
        model.act(tokens, COMMANDS, steps=0, noise=noise(1))
    with pytest.raises(UserError, match="plans and commands"):
        model(Batch(tokens={"front": tokens}), rng=torch.Generator())


def test_the_config_says_how_to_act() -> None:
    tokens, drawn = some_tokens(2, 2), noise(1)
    meant = tiny_vavam(dataclasses.replace(ACTION, steps=3, clip=1.5))
    plain = tiny_vavam()
    assert torch.equal(
        meant.act(tokens, COMMANDS, noise=drawn),
        plain.act(tokens, COMMANDS, noise=drawn, steps=3, clip=1.5),
    )
    free = meant.act(tokens, COMMANDS, noise=drawn, steps=10, clip=float("inf"))
    assert torch.equal(free, plain.act(tokens, COMMANDS, noise=drawn))
    with pytest.raises(UserError, match=r"context should be in 1\.\.4"):
        dataclasses.replace(ACTION, context=5)
