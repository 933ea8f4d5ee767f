"""The VQ tokenizer: its sizes, the codebook, its loss, and the adversarial stage."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import normalize

from foreact.checkpoints.configs import config_from_json, config_to_json
from foreact.checkpoints.format import build, load_checkpoint, save_checkpoint
from foreact.errors import UserError
from foreact.tokenizers import quantize
from foreact.tokenizers.adversarial import AdversarialConfig, AdversarialTraining
from foreact.tokenizers.autoencoder import AttentionBlock, Decoder, Encoder
from foreact.tokenizers.discriminator import PatchGAN, deceive_loss, judge_loss, smallest_side
from foreact.tokenizers.quantize import Quantizer, codebook_use
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.types import Batch, Codes, Tokenizer, Trainable, to_model_range

SMALL = VQConfig(
    channels=8,
    multipliers=(1, 2, 2),
    blocks=1,
    features=6,
    codes=32,
    code_dim=4,
    norm_groups=4,
    image_size=(16, 24),
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**changes: Any) -> VQTokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQTokenizer(dataclasses.replace(SMALL, **changes))


def video(b: int = 2, t: int = 3, size: tuple[int, int] = (16, 24), seed: int = 0) -> Tensor:
    return torch.randint(256, (b, t, 3, *size), generator=rng(seed), dtype=torch.uint8)


def quantizer(codes: int = 16, dim: int = 3, *, normalized: bool = True) -> Quantizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = Quantizer(codes, dim, normalized=normalized)
    nn.init.normal_(made.weight, generator=rng(2))
    return made


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def attentions(side: Encoder | Decoder) -> list[int]:
    """How many blocks of attention each level has."""
    return [sum(isinstance(m, AttentionBlock) for m in level.modules()) for level in side.levels]


# --- sizes ----------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, side: int) -> int:
    return outputs * (inputs * side**2 + 1)


def residual(inputs: int, outputs: int) -> int:
    shortcut = 0 if inputs == outputs else conv(inputs, outputs, 1)
    return (
        2 * inputs + conv(inputs, outputs, 3) + 2 * outputs + conv(outputs, outputs, 3) + shortcut
    )


def attention(width: int) -> int:
    return 2 * width + 4 * conv(width, width, 1)


def test_the_default_has_the_parameters_of_llamagen() -> None:
    middle = 2 * residual(512, 512) + attention(512)
    encoder = conv(3, 128, 3) + middle + 2 * 512 + conv(512, 256, 3)
    encoder += 2 * residual(128, 128) + conv(128, 128, 3)  # full size
    encoder += 2 * residual(128, 128) + conv(128, 128, 3)  # 1/2
    encoder += residual(128, 256) + residual(256, 256) + conv(256, 256, 3)  # 1/4
    encoder += 2 * residual(256, 256) + conv(256, 256, 3)  # 1/8
    encoder += residual(256, 512) + residual(512, 512) + 2 * attention(512)  # 1/16
    decoder = conv(256, 512, 3) + middle + 2 * 128 + conv(128, 3, 3)
    decoder += 3 * residual(512, 512) + 3 * attention(512) + conv(512, 512, 3)  # 1/16
    decoder += residual(512, 256) + 2 * residual(256, 256) + conv(256, 256, 3)  # 1/8
    decoder += 3 * residual(256, 256) + conv(256, 256, 3)  # 1/4
    decoder += residual(256, 128) + 2 * residual(128, 128) + conv(128, 128, 3)  # 1/2
    decoder += 3 * residual(128, 128)  # full size
    with torch.device("meta"):
        tokenizer = VQTokenizer(VQConfig())
    assert count(tokenizer.encoder) == encoder
    assert count(tokenizer.decoder) == decoder
    assert (
        count(tokenizer)
        == encoder + decoder + 16384 * 8 + conv(256, 8, 1) + conv(8, 256, 1)
        == 71_883_403
    )


@pytest.mark.parametrize("size", [(256, 256), (288, 512)])
def test_attention_is_in_the_last_level_whatever_the_size_of_the_pictures(
    size: tuple[int, int],
) -> None:
    with torch.device("meta"):
        tokenizer = VQTokenizer(VQConfig(image_size=size))
    assert tokenizer.grid == (size[0] // 16, size[1] // 16)
    assert attentions(tokenizer.encoder) == [0, 0, 0, 0, 2]
    assert attentions(tokenizer.decoder) == [0, 0, 0, 0, 3]


@pytest.mark.parametrize("levels", [(), (1,), (0, 2)])
def test_attention_is_where_it_is_asked_for(levels: tuple[int, ...]) -> None:
    tokenizer = small(attention=levels)
    for side in (tokenizer.encoder, tokenizer.decoder):
        attended = [i for i, blocks in enumerate(attentions(side)) if blocks]
        assert attended == sorted(2 - level for level in levels)


def test_it_meets_the_protocols() -> None:
    tokenizer = small()
    assert isinstance(tokenizer, Tokenizer)
    assert isinstance(tokenizer, Codes)
    assert isinstance(tokenizer, Trainable)
    assert isinstance(AdversarialTraining(tokenizer, AdversarialConfig(layers=2)), Trainable)
    assert tokenizer.vocab == 32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm_groups": 3}, "3 groups for 8 channels"),
        ({"image_size": (16, 18)}, "stride 4"),
        ({"image_size": (16,)}, r"tokenizer's image-size .* stride 4, found \(16,\)"),
        ({"multipliers": ()}, "multipliers"),
        ({"attention": (3,)}, r"levels in 0\.\.2, ascending, found \(3,\)"),
        ({"attention": (1, 0)}, "ascending"),
        ({"preprocessing": "imagenet"}, "'symmetric' or 'legacy', found 'imagenet'"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"codes": 0}, "codes"),
        ({"blocks": 0}, "blocks"),
        ({"entropy_weight": -1.0}, r"entropy-weight should be a number >= 0, found -1\.0"),
        ({"perceptual_weight": float("nan")}, "perceptual-weight should be a .* >= 0, found nan"),
    ],
)
def test_impossible_sizes_are_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dataclasses.replace(SMALL, **changes)


# --- codebook -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    normalized=st.booleans(),
    codes=st.integers(1, 20),
    dim=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    at_once=st.integers(1, 100),
)
def test_the_code_is_the_nearest_row(
    normalized: bool, codes: int, dim: int, seed: int, at_once: int
) -> None:
    searcher = quantizer(codes, dim, normalized=normalized)
    nn.init.normal_(searcher.weight, generator=rng(seed))
    z = torch.randn(2, dim, 3, 4, generator=rng(seed + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "SEARCH_ELEMENTS", at_once)
        found = searcher.encode(z)
    points, rows = z.permute(0, 2, 3, 1).double(), searcher.weight.detach().double()
    if normalized:
        points, rows = normalize(points, dim=-1), normalize(rows, dim=-1)
    distances = (points[..., None, :] - rows).norm(dim=-1)
    assert found.shape == (2, 3, 4)
    assert found.dtype == torch.int64
    chosen = distances.gather(-1, found[..., None])[..., 0]
    torch.testing.assert_close(chosen, distances.amin(dim=-1), rtol=0, atol=1e-6)


def test_of_equal_rows_the_first_is_taken() -> None:
    searcher = quantizer(4, 2, normalized=False)
    with torch.no_grad():
        searcher.weight.copy_(torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [9.0, 9.0]]))
    assert searcher.encode(torch.tensor([1.0, 0.1]).view(1, 2, 1, 1)).item() == 1


def test_only_the_direction_counts_where_codes_are_normalised() -> None:
    z = torch.randn(2, 3, 4, 5, generator=rng())
    by_angle, by_distance = quantizer(), quantizer(normalized=False)
    assert torch.equal(by_angle.encode(100 * z), by_angle.encode(z))
    assert not torch.equal(by_distance.encode(100 * z), by_distance.encode(z))
    torch.testing.assert_close(by_angle.lookup(by_angle.encode(z)).norm(dim=1), torch.ones(2, 4, 5))
    assert torch.equal(by_distance.lookup(torch.tensor([[[7]]])).flatten(), by_distance.weight[7])


@pytest.mark.parametrize("normalized", [True, False])
def test_gradients_pass_straight_through_and_each_term_moves_its_own_side(normalized: bool) -> None:
    searcher = quantizer(normalized=normalized)
    z = torch.randn(2, 3, 4, 5, generator=rng()).requires_grad_()
    found = searcher(z)
    torch.testing.assert_close(found.values, searcher.lookup(found.codes))
    prepared = normalize(z, dim=1) if normalized else z
    expected = (searcher.lookup(found.codes) - prepared).square().mean()
    torch.testing.assert_close(found.codebook, expected)
    torch.testing.assert_close(found.commitment, expected)

    wanted = torch.randn(found.values.shape, generator=rng(1))
    through = torch.autograd.grad((found.values * wanted).sum(), z, retain_graph=True)[0]
    torch.testing.assert_close(
        through, torch.autograd.grad((prepared * wanted).sum(), z, retain_graph=True)[0]
    )
    sides = [z, searcher.weight]
    moved = [
        torch.autograd.grad(t, sides, retain_graph=True, allow_unused=True)
        for t in (found.codebook, found.commitment)
    ]
    assert moved[0][0] is None
    assert moved[1][1] is None
    assert moved[0][1].any()
    assert moved[1][0].any()
    unused = torch.ones(16, dtype=torch.bool)
    unused[found.codes.unique()] = False
    assert not moved[0][1][unused].any()


def test_codes_are_the_same_under_autocast() -> None:
    searcher = quantizer(64, 8)
    z = torch.randn(4, 8, 6, 6, generator=rng())
    with torch.autocast("cpu", torch.bfloat16):
        found = searcher(z)
        entropy = searcher.entropy(z)
    assert torch.equal(found.codes, searcher.encode(z))
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(entropy, searcher.entropy(z))


def test_entropy_is_that_of_each_latent_minus_that_of_their_mean() -> None:
    searcher = quantizer(5, 2, normalized=False)
    z = 0.1 * torch.randn(2, 2, 3, 3, generator=rng())
    points = z.permute(0, 2, 3, 1).reshape(-1, 2)
    p = (-torch.cdist(points, searcher.weight.detach()).square() / 0.01).softmax(dim=1)
    each = torch.distributions.Categorical(probs=p).entropy().mean()
    mean = p.mean(dim=0)
    torch.testing.assert_close(
        searcher.entropy(z), each + (mean * (mean + 1e-5).log()).sum(), rtol=1e-4, atol=1e-5
    )


def test_entropy_is_least_where_every_code_is_used_alike() -> None:
    searcher = quantizer(4, 2)
    with torch.no_grad():
        searcher.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]))
    every = searcher.weight.detach().T.reshape(1, 2, 2, 2)
    one = every[:, :, :1, :1].expand(1, 2, 2, 2)
    assert searcher.entropy(every).item() == pytest.approx(
        -torch.tensor(4.0).log().item(), abs=1e-3
    )
    assert searcher.entropy(one).item() == pytest.approx(0.0, abs=1e-3)


def test_codebook_use_counts_codes_and_their_evenness() -> None:
    usage, perplexity = codebook_use(torch.tensor([[0, 1], [2, 3]]), 8)
    assert (usage.item(), perplexity.item()) == (0.5, pytest.approx(4.0))
    usage, perplexity = codebook_use(torch.tensor([7, 7, 7]), 8)
    assert (usage.item(), perplexity.item()) == (0.125, pytest.approx(1.0))


# --- tokens ---------------------------------------------------------------------------------------


def test_frames_become_tokens_one_by_one_and_at_any_size() -> None:
    tokenizer, frames = small(), to_model_range(video())
    tokens = tokenizer.encode(frames)
    assert tokens.shape == (2, 3, 4, 6)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < 32
    assert len(tokens.unique()) > 1
    assert torch.equal(tokenizer.encode(frames[1:, 2:]), tokens[1:, 2:])
    assert tokenizer.encode(to_model_range(video(1, 1, (8, 32)))).shape == (1, 1, 2, 8)


def test_decoding_draws_the_rows_and_clamps() -> None:
    tokenizer = small()
    tokens = torch.randint(32, (2, 3, 4, 6), generator=rng())
    pictures = tokenizer.decode(tokens.to(torch.int32))
    assert pictures.shape == (2, 3, 3, 16, 24)
    rows = normalize(tokenizer.quantizer.weight, dim=1)[tokens].permute(0, 1, 4, 2, 3).flatten(0, 1)
    torch.testing.assert_close(pictures, tokenizer.draw(rows).clamp(-1, 1).unflatten(0, (2, 3)))
    with torch.no_grad():
        tokenizer.decoder.conv_out.weight.mul_(1e4)
    loud = tokenizer.decode(tokens)
    assert (loud.min(), loud.max()) == (-1, 1)


@pytest.mark.parametrize("bad", [torch.zeros(2, 3, 16, 24), torch.zeros(1, 1, 3, 16, 22), video()])
def test_encoding_refuses_another_shape_or_dtype(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        small().encode(bad)


@pytest.mark.parametrize("bad", [torch.zeros(1, 4, 6, dtype=torch.long), torch.zeros(1, 1, 4, 6)])
def test_decoding_refuses_another_shape_or_dtype(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(B, T, h, w\)"):
        small().decode(bad)


@pytest.mark.parametrize(("token", "said"), [(32, "found 32"), (-1, "found -1")])
def test_a_token_outside_the_codebook_is_told(token: int, said: str) -> None:
    with pytest.raises(UserError, match=rf"0\.\.31, {said}"):
        small().decode(torch.full((1, 1, 4, 6), token))


# --- checkpoints ----------------------------------------------------------------------------------

FIRST_ENTRIES = {
    "channels",
    "multipliers",
    "blocks",
    "features",
    "codes",
    "code_dim",
    "normalized",
    "norm_groups",
    "image_size",
    "codebook_weight",
    "commitment_weight",
    "entropy_weight",
    "perceptual_weight",
}


def test_entries_that_came_later_leave_files_and_hashes_as_they_were(tmp_path: Path) -> None:
    tokenizer = small()
    digest = save_checkpoint(
        tmp_path / "a", family="vq", config=tokenizer.config, state=tokenizer.state_dict()
    )
    checkpoint = load_checkpoint(tmp_path / "a")
    assert set(checkpoint.config) == FIRST_ENTRIES
    assert checkpoint.hash == digest
    built = build(checkpoint)
    assert isinstance(built, VQTokenizer)
    assert built.config == tokenizer.config

    config = dataclasses.replace(SMALL, preprocessing="legacy", attention=(0, 1))
    state = VQTokenizer(config).state_dict()
    save_checkpoint(tmp_path / "b", family="vq", config=config, state=state)
    checkpoint = load_checkpoint(tmp_path / "b")
    assert set(checkpoint.config) == FIRST_ENTRIES | {"preprocessing", "attention"}
    assert config_from_json(VQConfig, checkpoint.config, complete=True) == config


def test_entries_of_the_first_day_may_not_be_missing() -> None:
    raw = config_to_json(SMALL)
    del raw["normalized"]
    with pytest.raises(UserError, match="lacks the entry 'normalized'"):
        config_from_json(VQConfig, raw, complete=True)


# --- loss -----------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    tokenizer, frames = (
        small(codebook_weight=2.0, commitment_weight=0.5, entropy_weight=0.1),
        video(),
    )
    out = tokenizer(Batch(video={"top": frames}), rng=rng())
    images = to_model_range(frames).flatten(0, 1)
    z = tokenizer.latents(images)
    found = tokenizer.quantizer(z)
    l1 = (tokenizer.draw(found.values) - images).abs().mean()
    entropy = tokenizer.quantizer.entropy(z)
    torch.testing.assert_close(
        out.loss, l1 + 2.0 * found.codebook + 0.5 * found.commitment + 0.1 * entropy
    )
    usage, perplexity = codebook_use(found.codes, 32)
    expected = {
        "l1": l1,
        "codebook": found.codebook,
        "commitment": found.commitment,
        "entropy": entropy,
        "codebook_usage": usage,
        "perplexity": perplexity,
    }
    torch.testing.assert_close(out.logs, {name: value.detach() for name, value in expected.items()})
    assert not any(term.requires_grad for term in out.logs.values())


def test_all_cameras_count_and_padded_frames_do_not() -> None:
    tokenizer = small(entropy_weight=0.1)
    top, wrist = video(seed=1), video(1, 2, (16, 24), seed=2)
    valid = torch.tensor([[True, False, True], [False, True, True]])
    kept = torch.cat([top[valid], wrist.flatten(0, 1)])
    got = tokenizer(Batch(video={"top": top, "wrist": wrist}, valid={"top": valid}), rng=rng())
    expected = tokenizer(Batch(video={"one": kept[:, None]}), rng=rng())
    torch.testing.assert_close(got.loss, expected.loss)
    torch.testing.assert_close(got.logs, expected.logs)


def test_frames_are_brought_to_the_size() -> None:
    tokenizer = small()
    found = tokenizer.reconstruct(Batch(video={"top": video(1, 2, (20, 20))}))
    assert found.images.shape == found.decoded.shape == (2, 3, 16, 24)


@pytest.mark.parametrize(
    "batch",
    [
        Batch(actions=torch.zeros(1, 1, 1)),
        Batch(video={"a": video()}, valid={"a": torch.zeros(2, 3).bool()}),
    ],
    ids=["no video", "only padding"],
)
def test_a_batch_without_frames_is_told(batch: Batch) -> None:
    with pytest.raises(UserError, match="batch"):
        small()(batch, rng=rng())


def test_every_parameter_gets_a_gradient_and_is_in_one_group() -> None:
    tokenizer = small()
    tokenizer(Batch(video={"top": video()}), rng=rng()).loss.backward()
    assert not [
        name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()
    ]
    kernels, others = tokenizer.param_groups(1e-3, 0.05)
    ids = [id(p) for group in (kernels, others) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in tokenizer.parameters())
    assert {p.ndim for p in kernels["params"]} == {4}
    assert any(p is tokenizer.quantizer.weight for p in others["params"])
    assert (kernels["lr"], kernels["weight_decay"], others["weight_decay"]) == (1e-3, 0.05, 0.0)


def test_the_perceptual_term_counts_and_is_not_saved() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.weight * (x - y).square().flatten(1).mean(dim=1)

    config = dataclasses.replace(SMALL, perceptual_weight=2.0)
    tokenizer, plain = VQTokenizer(config, perceptual=Squared()), small()
    plain.load_state_dict(tokenizer.state_dict())
    batch = Batch(video={"top": video()})
    out = tokenizer(batch, rng=rng())
    assert out.logs["perceptual"] > 0
    torch.testing.assert_close(
        out.loss, plain(batch, rng=rng()).loss + 2.0 * out.logs["perceptual"]
    )
    with pytest.raises(UserError, match=r"perceptual_weight is 2\.0"):
        VQTokenizer(config)(batch, rng=rng())


def moving_shapes(n: int, generator: torch.Generator, side: int = 16) -> Tensor:
    """uint8 (n, 1, 3, side, side): an 8 x 8 square in one of three
    colours somewhere before a fixed gradient.
    """
    down, right = torch.meshgrid(*2 * [torch.linspace(60, 200, side)], indexing="ij")
    frames = torch.stack([down, right, 255 - down]).to(torch.uint8).repeat(n, 1, 1, 1, 1)
    for frame in frames:
        x, y = torch.randint(side - 7, (2,), generator=generator).tolist()
        colour = torch.zeros(3, dtype=torch.uint8)
        colour[torch.randint(3, (1,), generator=generator)] = 255
        frame[0, :, y : y + 8, x : x + 8] = colour[:, None, None]
    return frames


def test_it_learns_moving_shapes_and_keeps_its_codebook_in_use() -> None:
    config = VQConfig(
        channels=16,
        multipliers=(1, 2),
        blocks=1,
        features=16,
        codes=64,
        code_dim=4,
        norm_groups=4,
        image_size=(16, 16),
        entropy_weight=0.01,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = VQTokenizer(config)
    optimizer = torch.optim.AdamW(tokenizer.param_groups(2e-3, 0.0))
    draws = rng()
    usage = []
    for _ in range(140):
        out = tokenizer(Batch(video={"top": moving_shapes(16, draws)}), rng=draws)
        optimizer.zero_grad()
        out.loss.backward()
        nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        usage.append(out.logs["codebook_usage"].item())
    unseen = to_model_range(moving_shapes(64, rng(1)))
    decoded = tokenizer.decode(tokenizer.encode(unseen))
    # The harder yardstick: the error of the best single picture, not that of random weights.
    best_constant = (unseen - unseen.median(dim=0).values).abs().mean()
    assert (decoded - unseen).abs().mean() < 0.5 * best_constant
    assert usage[-1] > 0.5


# --- adversarial stage ----------------------------------------------------------------------------


def adversarial(
    tokenizer: VQTokenizer | None = None, accumulate: int = 1, **changes: Any
) -> AdversarialTraining:
    config = AdversarialConfig(**{"weight": 0.5, "channels": 4, "layers": 2, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AdversarialTraining(tokenizer or small(), config, accumulate=accumulate)


def test_the_default_discriminator_is_the_published_one() -> None:
    with torch.device("meta"):
        state = PatchGAN().state_dict()
    assert sum(t.numel() for t in state.values()) == 2_767_428
    assert len(state) == 22
    assert {"main.0.bias", "main.2.weight", "main.3.running_var", "main.11.bias"} <= set(state)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_picture_leaves_one_logit(layers: int) -> None:
    side = smallest_side(layers)
    assert PatchGAN(4, layers)(torch.zeros(2, 3, side, side)).shape == (2, 1, 1, 1)
    with pytest.raises(UserError, match=f"at least {3 * 2**5} pixels"):
        adversarial(layers=5)


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert judge_loss(real, fake).item() == 0.5 * (0.25 + 1.0)
    assert deceive_loss(fake).item() == 1.0


def by_turns(stage: AdversarialTraining, batches: list[Batch]) -> None:
    """The published order: two optimisers, each side's gradient from its own loss."""
    ours = torch.optim.AdamW(stage.tokenizer.param_groups(1e-3, 0.1))
    theirs = torch.optim.AdamW(stage.discriminator.parameters(), lr=1e-3, weight_decay=0.0)
    theirs.param_groups.clear()
    for group in stage.param_groups(1e-3, 0.1)[2:]:
        theirs.add_param_group(group)
    for batch in batches:
        found = stage.tokenizer.reconstruct(batch)
        ours.zero_grad()
        (
            found.loss + stage.config.weight * deceive_loss(stage.discriminator(found.decoded))
        ).backward()
        ours.step()
        theirs.zero_grad()
        judge_loss(
            stage.discriminator(found.images), stage.discriminator(found.decoded.detach())
        ).backward()
        theirs.step()


def test_one_optimiser_does_what_two_by_turns_do() -> None:
    batches = [Batch(video={"top": video(seed=seed)}) for seed in range(3)]
    together, turns = adversarial(), adversarial()
    optimizer = torch.optim.AdamW(together.param_groups(1e-3, 0.1))
    for batch in batches:
        optimizer.zero_grad()
        together(batch, rng=rng()).loss.backward()
        optimizer.step()
    by_turns(turns, batches)
    start = adversarial().state_dict()
    for name, expected in turns.state_dict().items():
        if name != "forwards":
            torch.testing.assert_close(
                together.state_dict()[name], expected, rtol=1e-4, atol=2e-5, msg=name
            )
    for name in (
        "tokenizer.decoder.conv_out.weight",
        "tokenizer.encoder.conv_in.weight",
        "discriminator.main.0.weight",
    ):
        assert (turns.state_dict()[name] - start[name]).abs().max() > 1e-3


def test_the_discriminator_sees_its_own_loss_alone() -> None:
    loud, quiet = adversarial(weight=100.0), adversarial(weight=1e-9)
    for stage in (loud, quiet):
        stage(Batch(video={"top": video()}), rng=rng()).loss.backward()
    for (name, a), (_, b) in zip(loud.named_parameters(), quiet.named_parameters(), strict=True):
        if name.startswith("discriminator."):
            torch.testing.assert_close(a.grad, b.grad, msg=name)
    much, little = loud.tokenizer.last_layer.grad, quiet.tokenizer.last_layer.grad
    assert much is not None
    assert little is not None
    assert not torch.allclose(much, little)


def test_the_game_begins_at_its_step_and_a_resumed_run_knows_how_far_it_is() -> None:
    stage = adversarial(start=2, accumulate=2)
    batch = Batch(video={"top": video()})
    stage.eval()
    stage(batch, rng=rng())  # an evaluation is no training forward
    stage.train()
    for _ in range(3):
        out = stage(batch, rng=rng())
        assert "judge" not in out.logs
    out.loss.backward()
    assert all(p.grad is None for p in stage.discriminator.parameters())
    resumed = adversarial(start=2, accumulate=2)
    resumed.load_state_dict(copy.deepcopy(stage.state_dict()))
    assert "judge" not in resumed(batch, rng=rng()).logs
    assert "judge" in resumed(batch, rng=rng()).logs


def test_outside_training_only_the_tokenizers_own_loss_counts() -> None:
    stage, batch = adversarial().eval(), Batch(video={"top": video()})
    torch.testing.assert_close(stage(batch, rng=rng()).loss, stage.tokenizer(batch, rng=rng()).loss)


def test_the_adaptive_factor_balances_the_last_layer() -> None:
    stage, batch = adversarial(adaptive=True, weight=1.0), Batch(video={"top": video()})
    factor = stage(batch, rng=rng()).logs["adaptive"]
    found = stage.tokenizer.reconstruct(batch)
    terms = (found.loss, deceive_loss(stage.discriminator(found.decoded)))
    own, other = (
        torch.autograd.grad(t, stage.tokenizer.last_layer, retain_graph=True)[0].norm()
        for t in terms
    )
    torch.testing.assert_close(factor * (other + 1e-4), own)
    stage(batch, rng=rng()).loss.backward()
    assert stage.tokenizer.last_layer.grad is not None


def test_the_discriminator_learns_to_tell() -> None:
    stage, batch = adversarial(weight=1e-6, channels=8), Batch(video={"top": video(4, 2)})
    optimizer = torch.optim.AdamW(stage.param_groups(2e-3, 0.0))
    losses = []
    for _ in range(25):
        out = stage(batch, rng=rng())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.logs["judge"].item())
    assert losses[-1] < 0.5 * losses[0]


def test_every_parameter_of_the_stage_is_in_one_group() -> None:
    stage = adversarial()
    ids = [id(p) for group in stage.param_groups(1e-3, 0.05) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in stage.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"weight": -1.0}, "weight"), ({"start": -1}, "start"), ({"layers": 0}, "layers")],
)
def test_impossible_stages_are_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AdversarialConfig(**changes)
