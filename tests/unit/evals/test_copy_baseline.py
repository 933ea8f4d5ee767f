"""The calibrated copy of the last frame, and a model beside it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foreact.errors import UserError
from foreact.evals.copy_baseline import CopyBaseline, against_copy, fit_copy
from foreact.types import Batch


def video(
    keep: float, *, vocab: int = 8, windows: int = 40, seed: int = 0, frames: int = 3
) -> Tensor:
    """Tokens that are kept with a probability and else drawn evenly."""
    rng = torch.Generator().manual_seed(seed)
    steps = [torch.randint(vocab, (windows, 6, 7), generator=rng)]
    for _ in range(frames - 1):
        kept = torch.rand(steps[0].shape, generator=rng) < keep
        steps.append(
            torch.where(kept, steps[-1], torch.randint(vocab, steps[0].shape, generator=rng))
        )
    return torch.stack(steps, dim=1)


def batch(tokens: Tensor, drives: list[int] | None = None) -> Batch:
    index = None if drives is None else torch.tensor([[d, 0] for d in drives])
    return Batch(tokens={"front": tokens}, index=index)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_the_fit_finds_how_often_tokens_were_kept(keep: float) -> None:
    fitted = fit_copy([batch(video(keep)), batch(video(keep, seed=1))], "front", 8)
    assert fitted.keep == pytest.approx(keep, abs=0.02)
    torch.testing.assert_close(
        fitted.unigram, torch.full((8,), 1 / 8, dtype=torch.float64), atol=0.02, rtol=0
    )


@given(keep=st.floats(0.05, 0.95), seed=st.integers(0, 50))
def test_no_other_share_of_copying_suits_the_training_tokens_better(keep: float, seed: int) -> None:
    tokens = video(keep, windows=10, seed=seed)
    fitted = fit_copy([batch(tokens)], "front", 8)

    def loss(p: float) -> float:
        # The one token that the fit takes to have changed belongs to what it minimises.
        losses = CopyBaseline(keep=p, unigram=fitted.unigram).token_losses(tokens)
        return float(losses.sum()) - math.log(1.0 - p)

    assert all(
        loss(fitted.keep) <= loss(p) + 1e-9 for p in (0.0, 0.2, 0.5, 0.8, 0.99, fitted.keep * 0.99)
    )


def test_the_losses_are_those_of_a_distribution_over_all_tokens() -> None:
    baseline = CopyBaseline(keep=0.6, unigram=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    pairs = torch.tensor([[[[y]], [[x]]] for y in range(3) for x in range(3)])
    probabilities = (-baseline.token_losses(pairs)).exp().view(3, 3)
    expected = 0.6 * torch.eye(3, dtype=torch.float64) + 0.4 * baseline.unigram
    torch.testing.assert_close(probabilities, expected)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3, dtype=torch.float64))


def test_what_training_never_showed_is_unlikely_and_not_impossible() -> None:
    still = torch.arange(4).view(1, 1, 2, 2).repeat(8, 3, 1, 1)
    fitted = fit_copy([batch(still)], "front", 4)
    assert 0.5 < fitted.keep < 1.0
    surprise = fitted.token_losses(torch.tensor([[[[0]], [[3]]]]))
    assert math.isfinite(surprise.item())
    assert surprise.item() > fitted.token_losses(still).max().item()


def test_a_model_is_scored_on_the_tokens_of_the_baseline_and_no_others() -> None:
    tokens = video(0.5, windows=4)
    fitted = fit_copy([batch(tokens)], "front", 8)

    def exact(seen: Tensor) -> Tensor:
        """As good as the baseline where it has a say, and absurd in the first frame."""
        first = torch.full((len(seen), 6 * 7 - 1), 1000.0)
        return torch.cat([first, fitted.token_losses(seen).flatten(1).float()], dim=1)

    found = against_copy(
        exact, fitted, [batch(tokens[:3]), batch(tokens[3:])], "front", device="cpu"
    )
    assert (found.tokens, found.windows) == (4 * 2 * 6 * 7, 4)
    assert found.model.mean == pytest.approx(found.copy.mean, abs=1e-5)
    assert found.gain.mean == pytest.approx(0.0, abs=1e-5)
    assert found.copy.mean == pytest.approx(float(fitted.token_losses(tokens).mean()))


def test_the_interval_is_over_drives_and_the_gain_is_paired() -> None:
    tokens = video(0.5, windows=6)
    fitted = fit_copy([batch(tokens)], "front", 8)

    def better(seen: Tensor) -> Tensor:
        less = 0.25 + torch.arange(len(seen)) / 100
        losses = fitted.token_losses(seen).flatten(1) - less[:, None]
        return torch.cat([torch.zeros(len(seen), 6 * 7 - 1), losses], dim=1)

    found = against_copy(better, fitted, [batch(tokens, [0, 0, 1, 1, 2, 2])], "front", device="cpu")
    assert (found.gain.n, found.copy.n) == (3, 3)
    assert found.copy.low < found.copy.mean < found.copy.high
    assert found.gain.mean == pytest.approx(0.275)
    # Far narrower than either side's, since every drive is compared with itself.
    assert found.gain.high - found.gain.low < (found.copy.high - found.copy.low) / 2
    assert found.gain.higher_is_better
    assert not found.model.higher_is_better
    assert found.to_json()["gain"]["unit"] == "nats per token"


def test_bad_data_is_refused_in_one_sentence() -> None:
    tokens = video(0.5, windows=2)
    padded = batch(tokens)
    padded.valid["front"] = torch.tensor([[True, True, False]] * 2)
    for data, problem in (
        ([], "no training window"),
        ([batch(tokens[:, :1])], "2 frames or more"),
        ([padded], "padding"),
        ([batch(tokens + 1)], r"0\.\.7"),
        ([Batch(tokens={"rear": tokens})], "tokenize"),
    ):
        with pytest.raises(UserError, match=problem):
            fit_copy(data, "front", 8)
