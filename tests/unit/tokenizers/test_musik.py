"""MUSIK: what its inverse model is asked, what moves its codes, and what it does without."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from foreact.errors import UserError
from foreact.tokenizers.musik import ActionEnergy, Musik, MusikConfig
from foreact.types import Batch, Codes, Tokenizer, Trainable, to_model_range

CONFIG = MusikConfig(
    actions=2,
    frames=2,
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    features=6,
    codes=12,
    code_dim=4,
    summary=5,
    hidden=7,
    negatives=9,
    norm_groups=4,
    image_size=(8, 12),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(**changes: Any) -> Musik:
    torch.manual_seed(0)
    return Musik(dataclasses.replace(CONFIG, **changes))


def batch(frames: int = 5, size: tuple[int, int] = (8, 12)) -> Batch:
    video = torch.randint(0, 256, (3, frames, 3, *size), generator=generator(1), dtype=torch.uint8)
    return Batch(video={"cam": video}, actions=torch.rand(3, 4, 2, generator=generator(2)) * 2 - 1)


def test_it_makes_codes_of_any_number_of_frames_and_knows_no_way_back() -> None:
    musik = model().eval()
    video = to_model_range(batch(7).video["cam"])
    codes = musik.encode(video)
    assert codes.shape == (3, 7, 4, 6)
    assert codes.dtype == torch.int64
    assert musik.grid == (4, 6)
    assert musik.codebook.shape == (12, 4)
    assert isinstance(musik, Codes)
    assert isinstance(musik, Trainable)
    assert not isinstance(musik, Tokenizer)
    distances = torch.cdist(
        musik.latents(video[:, 3]).permute(0, 2, 3, 1).flatten(0, 2), musik.codebook
    )
    assert torch.equal(codes[:, 3].flatten(), distances.argmin(dim=1))


@pytest.mark.parametrize("shape", [(1, 3, 8, 12), (1, 1, 3, 8, 8), (1, 1, 1, 8, 12)])
def test_frames_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, T, 3, 8, 12\)"):
        model().encode(torch.zeros(shape))


def test_the_energy_is_the_plain_network_over_states_and_action() -> None:
    torch.manual_seed(0)
    energy = ActionEnergy(6, 2, 5)
    plain = torch.nn.Sequential(
        energy.first, torch.nn.BatchNorm1d(5), torch.nn.ReLU(), energy.second
    )
    states, actions = torch.randn(3, 6), torch.randn(3, 4, 2)
    rows = torch.cat([states[:, None].expand(-1, 4, -1), actions], dim=2).flatten(0, 1)
    torch.testing.assert_close(energy(states, actions), plain(rows).view(3, 4))
    torch.testing.assert_close(energy.norm.running_mean, plain[1].running_mean)
    energy.eval()
    plain.eval()
    torch.testing.assert_close(energy(states, actions), plain(rows).view(3, 4))


def test_the_states_are_the_first_and_the_last_frames_and_nothing_between_counts() -> None:
    musik = model()
    whole = batch(5)
    loss = musik(whole, rng=generator()).loss
    changed = batch(5)
    changed.video["cam"][:, 2] = 0
    assert torch.equal(musik(changed, rng=generator()).loss, loss)
    for frame in (0, 1, 3, 4):
        changed = batch(5)
        changed.video["cam"][:, frame] = 0
        assert not torch.equal(musik(changed, rng=generator()).loss, loss)


def test_only_the_first_action_counts_and_the_generator_draws_its_rivals() -> None:
    musik = model()
    loss = musik(batch(), rng=generator()).loss
    later = batch()
    assert later.actions is not None
    later.actions[:, 1:] = 0
    assert torch.equal(musik(later, rng=generator()).loss, loss)
    torch.manual_seed(77)
    assert torch.equal(musik(batch(), rng=generator()).loss, loss)
    assert not torch.equal(musik(batch(), rng=generator(5)).loss, loss)
    later.actions[:, 0] = 0
    assert not torch.equal(musik(later, rng=generator()).loss, loss)


def test_candidates_are_the_true_action_and_uniform_ones() -> None:
    data = batch()
    candidates = model(negatives=4000)._candidates(data, generator())
    drawn = candidates[:, 1:]
    assert data.actions is not None
    assert torch.equal(candidates[:, 0], data.actions[:, 0])
    assert drawn.min() > -1.0
    assert drawn.max() < 1.0
    assert drawn.mean().abs() < 0.02
    assert (drawn.var() - 1 / 3).abs() < 0.01


def test_the_loss_is_the_sum_of_its_terms() -> None:
    musik = model(codebook_weight=0.5, commitment_weight=2.0)
    out = musik(batch(), rng=generator())
    logs = out.logs
    torch.testing.assert_close(
        out.loss.detach(), logs["infonce"] + 0.5 * logs["codebook"] + 2.0 * logs["commitment"]
    )
    assert 0 < logs["codebook_usage"] <= 1
    assert 1 <= logs["perplexity"] <= 12
    spread = model(normalized=True, entropy_weight=0.3)
    logs = spread(batch(), rng=generator()).logs
    total = logs["infonce"] + 0.25 * logs["codebook"] + logs["commitment"] + 0.3 * logs["entropy"]
    torch.testing.assert_close(spread(batch(), rng=generator()).loss.detach(), total)
    torch.testing.assert_close(spread.codebook.norm(dim=1), torch.ones(12))


def test_a_model_that_says_the_same_of_every_action_has_told_nothing() -> None:
    musik = model()
    torch.nn.init.zeros_(musik.energy.second.weight)
    logs = musik(batch(), rng=generator()).logs
    assert logs["infonce"] == pytest.approx(math.log(1 + CONFIG.negatives))
    assert logs["accuracy"] == 0


def test_every_parameter_learns_and_the_pictures_reach_the_encoder_through_the_codes() -> None:
    musik = model(codebook_weight=0.0, commitment_weight=0.0)
    musik(batch(), rng=generator()).loss.backward()
    moved = {
        name
        for name, p in musik.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert "encoder.conv_in.weight" in moved  # straight through the quantiser
    assert "quantizer.weight" not in moved  # which its own terms move alone
    musik = model()
    musik(batch(), rng=generator()).loss.backward()
    assert all(p.grad is not None for p in musik.parameters())
    grouped = [p for group in musik.param_groups(1e-3, 0.1) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in musik.parameters()}
    assert len(grouped) == len({id(p) for p in grouped})
    decaying = musik.param_groups(1e-3, 0.1)[0]["params"]
    assert all(p is not musik.quantizer.weight for p in decaying)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            Batch(
                video={"a": batch().video["cam"], "b": batch().video["cam"]},
                actions=batch().actions,
            ),
            "one camera",
        ),
        (
            Batch(video={"cam": batch(2).video["cam"]}, actions=batch().actions),
            "two states of 2 frames",
        ),
        (Batch(video=batch().video), "actions of 2 numbers.*none"),
        (Batch(video=batch().video, actions=torch.zeros(3, 1, 5)), "actions of 5 numbers"),
    ],
)
def test_batches_of_something_else_are_told(wrong: Batch, said: str) -> None:
    with pytest.raises(UserError, match=said):
        model()(wrong, rng=generator())


@pytest.mark.parametrize(
    "changes",
    [
        {"actions": 0},
        {"negatives": 0},
        {"norm_groups": 3},
        {"image_size": (9, 12)},
        {"commitment_weight": -1.0},
        {"attention": (2,)},
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        dataclasses.replace(CONFIG, **changes)


def test_frames_are_brought_to_its_size() -> None:
    musik = model()
    wide = batch(4, (16, 24))
    small = functional.interpolate(
        to_model_range(wide.video["cam"]).flatten(0, 1), (8, 12), mode="bilinear"
    )
    now, later = musik._states(wide)
    torch.testing.assert_close(torch.cat([now, later], dim=1).flatten(0, 1), small)


def test_the_published_size() -> None:
    with torch.device("meta"):
        musik = Musik(MusikConfig(actions=6))
    assert musik.grid == (5, 5)
    assert sum(p.numel() for p in musik.encoder.parameters()) == 29_298_176
    assert musik.summary.weight.shape == (256, 256 * 25)
    assert musik.energy.first.weight.shape == (256, 1542)
