from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from foreact.errors import UserError
from foreact.families.voc.cloning.model import Cloning, CloningConfig
from foreact.types import Batch, Trainable

SMALL = CloningConfig(
    vocab=8,
    code_dim=3,
    grid=(1, 2),
    frames=2,
    low=(-1.0, 0.0),
    high=(1.0, 10.0),
    action_steps=2,
    channels=4,
    width=16,
    components=3,
    dropout=0.0,
    camera="img",
)


def network(**changes: Any) -> Cloning:
    torch.manual_seed(0)
    config = CloningConfig(**{**vars(SMALL), **changes})
    made = Cloning(config)
    made.set_codebook(torch.randn(config.vocab, config.code_dim))
    return made.eval()


def stacks(rows: int) -> Tensor:
    return torch.randint(8, (rows, 2, 1, 2), generator=torch.Generator().manual_seed(1))


def rngs(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_it_is_a_trainable_and_its_codebook_does_not_learn() -> None:
    model = network()
    assert isinstance(model, Trainable)
    learning = [p for group in model.param_groups(1e-3, 0.1) for p in group["params"]]
    assert all(p is not model.codebook for p in learning)
    assert {id(p) for p in learning} == {id(p) for p in model.parameters()}


def test_the_density_is_that_of_torchs_mixture() -> None:
    model, tokens = network(), stacks(5)
    log_weight, mean, std = model._mixture(tokens)
    mixture = MixtureSameFamily(Categorical(logits=log_weight), Independent(Normal(mean, std), 1))
    scaled = torch.rand(5, 2, 2) * 2 - 1
    actions = scaled * model.reach + model.middle
    torch.testing.assert_close(model.log_prob(tokens, actions), mixture.log_prob(scaled.flatten(1)))


def test_the_loss_reads_the_first_stack_and_the_first_actions_of_longer_windows() -> None:
    model, tokens = network(), torch.randint(8, (4, 5, 1, 2))
    actions = torch.rand(4, 3, 2)
    out = model(Batch(tokens={"img": tokens}, actions=actions), rng=torch.Generator())
    expected = -model.log_prob(tokens[:, :2], actions[:, :2]).mean()
    torch.testing.assert_close(out.loss, expected)


def test_draws_follow_the_distribution_and_stay_within_the_bounds() -> None:
    model, tokens = network(action_steps=1, min_std=0.01), stacks(2)
    with (
        torch.no_grad()
    ):  # two narrow Gaussians, of weights 0.8 and 0.2, and one that is never chosen
        model.head.weight.zero_()
        mean = [[-0.5, 0.5], [0.5, -0.5], [0.0, 0.0]]
        bias = [
            [w, *m, -9.0, -9.0]
            for w, m in zip([np.log(0.8), np.log(0.2), -50.0], mean, strict=True)
        ]
        model.head.bias.copy_(torch.tensor(bias).flatten())
    drawn = model.propose(tokens, 4000, rngs=rngs(3, 4))
    assert drawn.shape == (2, 4000, 1, 2)
    first = drawn[:, :, 0, 0] < 0
    assert first.float().mean().item() == pytest.approx(0.8, abs=0.02)
    means = torch.stack([drawn[first][:, 0].mean(0), drawn[~first][:, 0].mean(0)])
    torch.testing.assert_close(means, torch.tensor([[-0.5, 7.5], [0.5, 2.5]]), atol=0.02, rtol=0.0)
    torch.testing.assert_close(model.mode(tokens), torch.tensor([[[-0.5, 7.5]]] * 2))
    with torch.no_grad():
        model.head.bias.view(3, 5)[:, 1:3] = 5.0
    far = model.propose(tokens, 10, rngs=rngs(3, 4))
    assert torch.equal(far, torch.tensor([1.0, 10.0]).expand(2, 10, 1, 2))


def test_a_rows_draws_depend_on_its_own_generator_alone() -> None:
    model, tokens = network(), stacks(3)
    together = model.propose(tokens, 6, rngs=rngs(1, 2, 3))
    for i, seed in enumerate((1, 2, 3)):
        torch.testing.assert_close(
            together[i : i + 1], model.propose(tokens[i : i + 1], 6, rngs=rngs(seed))
        )
    assert not torch.equal(together, model.propose(tokens, 6, rngs=rngs(1, 2, 4)))


def test_it_learns_two_ways_to_act_where_the_data_show_two() -> None:
    """The mean of both would be wrong everywhere; the mode and the draws are right."""
    torch.manual_seed(0)
    model = Cloning(
        CloningConfig(
            **{**vars(SMALL), "code_dim": 8, "action_steps": 1, "low": (-1.0,), "high": (1.0,)}
        )
    )
    model.set_codebook(torch.eye(8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        tokens = torch.randint(8, (64, 2, 1, 2))
        side = torch.where(torch.rand(64) < 0.7, 1.0, -1.0)
        # Which way is the more frequent one depends on the last code.
        actions = (0.6 * side * torch.where(tokens[:, -1, 0, -1] < 4, 1.0, -1.0))[:, None, None]
        loss = model(Batch(tokens={"img": tokens}, actions=actions), rng=torch.Generator()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    tokens = torch.tensor([[[[0, 0]], [[1, 1]]], [[[0, 0]], [[6, 6]]]])
    torch.testing.assert_close(
        model.mode(tokens).flatten(), torch.tensor([0.6, -0.6]), atol=0.05, rtol=0.0
    )
    drawn = model.propose(tokens, 500, rngs=rngs(0, 1))[..., 0, 0]
    assert ((drawn.abs() - 0.6).abs() < 0.3).float().mean() > 0.95
    torch.testing.assert_close(
        (drawn > 0).float().mean(1), torch.tensor([0.7, 0.3]), atol=0.12, rtol=0.0
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 0}, r"--model\.frames should be at least 1, found 0"),
        ({"grid": (2,)}, r"Cloning's grid should be \(rows, columns\), found \(2,\)"),
        ({"low": ()}, r"Cloning needs bounds low < high for every action, found \(\)"),
        ({"low": (1.0, 0.0)}, r"Cloning needs bounds low < high .*, found \(1\.0, 0\.0\)"),
        ({"low": (-1.0,)}, r"Cloning needs bounds low < high .*, found \(-1\.0,\)"),
        ({"min_std": 0.0}, r"--model\.min-std should be positive .*, found 0\.0 and"),
        ({"dropout": 1.0}, r"--model\.dropout in \[0, 1\), found .* and 1\.0"),
        ({"components": 0}, r"--model\.components should be at least 1, found 0"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CloningConfig(**{**vars(SMALL), **changes})


def test_another_stack_or_codebook_is_refused() -> None:
    with pytest.raises(UserError, match="8 codes of length 3, the tokenizer has 9 of length 3"):
        network().set_codebook(torch.zeros(9, 3))
    with pytest.raises(UserError, match=r"stacks of shape \(B, 2, 1, 2\)"):
        network().mode(torch.zeros(1, 3, 1, 2, dtype=torch.int64))
