"""The video GPT: causality, generation, its sliding window, muP."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_vavam import VIDEO, some_tokens, tiny_vavim

from foreact.errors import UserError
from foreact.families.driving.vavim import SIZES, VaViM, VaViMConfig, draw_token
from foreact.nn.gpt import KVCache
from foreact.nn.mup import HiddenLinear
from foreact.types import Batch


def test_a_token_changes_only_the_predictions_after_it() -> None:
    model, tokens = tiny_vavim(), some_tokens(1, 3)
    before = model.logits(tokens)
    changed = tokens.clone()
    changed.view(-1)[7] = (changed.view(-1)[7] + 1) % VIDEO.vocab
    after = model.logits(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7])
    assert (after[:, 7] - before[:, 7]).abs().max() > 1e-3


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 17), max_size=3), seed=st.integers(0, 99))
def test_reading_in_pieces_with_a_cache_equals_reading_at_once(cuts: list[int], seed: int) -> None:
    model, sequence = tiny_vavim(), some_tokens(2, 3, seed=seed).flatten(1)
    whole = model.logits(sequence.view(2, 3, *VIDEO.grid))
    caches = [KVCache(18) for _ in model.blocks]
    for start, stop in zip([0, *sorted(set(cuts))], [*sorted(set(cuts)), 18], strict=True):
        last = model._step(sequence[:, start:stop], caches)
        torch.testing.assert_close(last, whole[:, stop - 1], atol=1e-4, rtol=1e-4)
    assert caches[0].length == 18


def likeliest(model: VaViM, video: torch.Tensor) -> torch.Tensor:
    """The next frame without any cache: the whole window read anew for every token."""
    window = video[:, -(model.config.frames - 1) :]
    grid = model.config.grid
    frame = torch.zeros(video.shape[0], 1, *grid, dtype=torch.int64)
    for i in range(model.config.tokens_per_frame):
        at = window.shape[1] * model.config.tokens_per_frame + i - 1
        logits = model.logits(torch.cat([window, frame], dim=1))[:, at]
        frame.flatten(1)[:, i] = logits.argmax(-1)
    return frame


@pytest.mark.parametrize("given_frames", [1, 3, 6])
def test_the_window_slides_over_the_last_frames(given_frames: int) -> None:
    model, video = tiny_vavim(), some_tokens(2, given_frames)
    got = model.generate(video, frames=5)
    for _ in range(5):
        video = torch.cat([video, likeliest(model, video)], dim=1)
    assert torch.equal(got, video[:, given_frames:])


def test_drawing_follows_the_generator_and_top_k() -> None:
    model, context = tiny_vavim(), some_tokens(1, 2)

    def drawn(seed: int) -> torch.Tensor:
        return model.generate(context, frames=2, top_k=5, rng=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    logits = torch.randn(1, VIDEO.vocab, generator=torch.Generator().manual_seed(0)).expand(400, -1)
    ids = draw_token(logits, 1.0, 4, torch.Generator().manual_seed(0))
    assert set(ids.tolist()) == set(logits[0].topk(4).indices.tolist())
    cold = draw_token(logits, 0.01, None, torch.Generator().manual_seed(0))
    assert (cold == logits[0].argmax()).all()


def test_on_token_counts_every_token() -> None:
    count = []
    tiny_vavim().generate(some_tokens(1, 1), frames=2, on_token=lambda: count.append(1))
    assert len(count) == 2 * VIDEO.tokens_per_frame


def test_loss_leaves_out_what_is_padded() -> None:
    model, tokens = tiny_vavim(), some_tokens(2, 3)
    valid = torch.ones(2, 3, dtype=torch.bool)
    valid[1, 2] = False
    losses = model.token_losses(tokens)
    expected = (losses.sum() - losses[1, 11:].sum()) / (losses.numel() - 6)
    out = model(Batch(tokens={"front": tokens}, valid={"front": valid}), rng=torch.Generator())
    torch.testing.assert_close(out.loss, expected)


def test_features_of_the_last_layer_are_normalised_and_long_videos_are_cut() -> None:
    model = tiny_vavim()
    features = model.features(some_tokens(1, 4), layer=1)
    assert features.shape == (1, 4, 2, 3, 32)
    torch.testing.assert_close(features.mean(-1), torch.zeros(1, 4, 2, 3), atol=1e-5, rtol=0)
    longer = torch.cat([some_tokens(1, 2, seed=5), some_tokens(1, 4)], dim=1)
    torch.testing.assert_close(model.features(longer, layer=1), features)


def test_an_untied_head_starts_at_zero_and_is_its_own_matrix() -> None:
    model = VaViM(dataclasses.replace(VIDEO, tied=False))
    assert torch.equal(model.logits(some_tokens(1, 1)), torch.zeros(1, 6, VIDEO.vocab))
    assert "head.weight" in model.state_dict()


def test_learning_rates_fall_with_the_width_for_matrices_only() -> None:
    model = VaViM(VIDEO)
    groups = model.param_groups(lr=0.4, weight_decay=0.1)
    assert [g["lr"] for g in groups] == [0.2, 0.4]
    hidden = {id(m.weight) for m in model.modules() if isinstance(m, HiddenLinear)}
    assert {id(p) for p in groups[0]["params"]} == hidden
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_residual_projections_can_be_scaled_by_depth() -> None:
    torch.manual_seed(0)
    wide = dataclasses.replace(VIDEO, width=256, layers=8)
    plain, scaled = VaViM(wide), VaViM(dataclasses.replace(wide, scale_residual_init=True))

    def deviation(model: VaViM) -> float:
        return model.get_parameter("blocks.3.mlp.down.weight").std().item()

    assert deviation(plain) / deviation(scaled) == pytest.approx(math.sqrt(16), rel=0.05)
    assert not model_queries(plain).any()


def model_queries(model: VaViM) -> torch.Tensor:
    return model.state_dict()["blocks.0.attention.qkv.weight"][: model.config.width]


@pytest.mark.parametrize(
    ("size", "parameters"), [("S", 182_901_504), ("B", 319_366_144), ("L", 1_242_712_064)]
)
def test_published_sizes(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = VaViM(SIZES[size])
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_what_cannot_be_read_is_refused() -> None:
    model = tiny_vavim()
    with pytest.raises(UserError, match=r"\(B, T, 2, 3\), found \(1, 2, 3, 2\)"):
        model.logits(some_tokens(1, 2).transpose(2, 3))
    with pytest.raises(UserError, match="at most 4 frames at once, found 5"):
        model.logits(some_tokens(1, 5))
    with pytest.raises(UserError, match=r"0\.\.49, found 0\.\.50"):
        model.generate(torch.tensor([0, 50, 0, 0, 0, 0]).view(1, 1, 2, 3), frames=1)
    with pytest.raises(UserError, match="needs a generator"):
        model.generate(some_tokens(1, 1), frames=1, top_k=None)
    with pytest.raises(UserError, match=r"layers 0\.\.1; layer 2"):
        model.features(some_tokens(1, 1), layer=2)
    with pytest.raises(UserError, match="multiple of heads"):
        VaViMConfig(width=100, heads=3)
