"""The KL autoencoder: sizes, latents, its loss, its perceptual
term, and the released names of its tensors.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.families.codes.released.kl_vae_names import to_native
from foreact.tokenizers.autoencoder import AttentionBlock, Decoder, Encoder, ResidualBlock
from foreact.tokenizers.images import resize_video
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig, Posterior, measure_scale, with_scale
from foreact.tokenizers.perceptual import FeatureDistance
from foreact.types import Batch, Tokenizer, Trainable, to_model_range

SMALL = KLVAEConfig(
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    latent_channels=3,
    norm_groups=4,
    attention_resolutions=(128,),
    image_size=(8, 12),
    scale=0.5,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**changes: Any) -> KLVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return KLVAE(dataclasses.replace(SMALL, **changes))


def video(b: int = 2, t: int = 3, size: tuple[int, int] = (8, 12), seed: int = 0) -> Tensor:
    return torch.randint(256, (b, t, 3, *size), generator=rng(seed), dtype=torch.uint8)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def per_level(side: Encoder | Decoder, kind: type[nn.Module]) -> list[int]:
    """How many blocks of a kind each level has."""
    return [sum(isinstance(m, kind) for m in level.modules()) for level in side.levels]


# --- sizes ----------------------------------------------------------------------------------------


def test_the_default_is_the_published_autoencoder() -> None:
    with torch.device("meta"):
        vae = KLVAE(KLVAEConfig())
    assert count(vae) == 66_456_019
    assert vae.grid == (16, 16)
    assert per_level(vae.encoder, AttentionBlock) == [0, 0, 0, 0, 2]
    assert per_level(vae.decoder, AttentionBlock) == [0] * 5
    assert per_level(vae.decoder, ResidualBlock) == [3] * 5


def test_attention_follows_the_nominal_and_not_the_actual_resolution() -> None:
    with torch.device("meta"):
        four_levels = KLVAE(KLVAEConfig(multipliers=(1, 1, 2, 4), image_size=(128, 128)))
    assert four_levels.grid == (16, 16)
    assert not any(level.attentions for level in four_levels.encoder.levels)


def test_it_meets_the_protocols() -> None:
    vae = small()
    assert isinstance(vae, Tokenizer)
    assert isinstance(vae, Trainable)
    assert vae.vocab is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm_groups": 3}, "3 groups for 8 channels"),
        ({"image_size": (8, 13)}, "stride 2"),
        ({"image_size": (8, 0)}, "stride 2"),
        ({"image_size": (8,)}, r"--model\.image-size should be two .* stride 2, found \(8,\)"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"latent_channels": 0}, r"--model\.latent-channels should be at least 1, found 0"),
        ({"scale": 0.0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"posterior": "mode"}, "'mode'"),
        ({"kl_weight": -1.0}, r"--model\.kl-weight should be a number >= 0, found -1\.0"),
        (
            {"perceptual_weight": float("inf")},
            r"--model\.perceptual-weight should be a number >= 0, found inf",
        ),
    ],
)
def test_impossible_sizes_are_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dataclasses.replace(SMALL, **changes)


# --- latents --------------------------------------------------------------------------------------


def test_the_mean_is_encoded_frame_by_frame_in_scaled_units() -> None:
    vae, frames = small(), to_model_range(video())
    latents = vae.encode(frames)
    assert latents.shape == (2, 3, 3, 4, 6)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents[1, 2:], 0.5 * vae.moments(frames[1, 2:])[:, :3])
    torch.testing.assert_close(vae.encode(frames, rng=rng()), latents)


def test_a_sampled_posterior_needs_a_generator_and_repeats_with_its_seed() -> None:
    vae, frames = small(posterior="sample"), to_model_range(video())
    with pytest.raises(ValueError, match="pass rng"):
        vae.encode(frames)
    first, again, other = (vae.encode(frames, rng=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    posterior = Posterior.from_moments(vae.moments(frames.flatten(0, 1)))
    noise = torch.randn(posterior.mean.shape, generator=rng(1))
    torch.testing.assert_close(first.flatten(0, 1), 0.5 * (posterior.mean + posterior.std * noise))


def test_decoding_undoes_the_scale_and_clamps() -> None:
    vae, values = small(), torch.randn(2, 3, 3, 4, 6, generator=rng())
    pictures = vae.decode(values * 0.5)
    assert pictures.shape == (2, 3, 3, 8, 12)
    free = vae.reconstruct(values.flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(pictures, free.clamp(-1, 1))
    loud = vae.decode(values * 1e4)
    assert loud.min() >= -1
    assert loud.max() <= 1


@pytest.mark.parametrize("bad", [torch.zeros(2, 3, 8, 12), torch.zeros(1, 1, 3, 8, 8), video()])
def test_encoding_refuses_another_shape_or_dtype(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="8, 12"):
        small().encode(bad)


def test_decoding_refuses_another_number_of_channels() -> None:
    with pytest.raises(ValueError, match=r"\(B, T, 3, h, w\)"):
        small().decode(torch.zeros(1, 1, 4, 4, 6))


def test_kl_is_the_one_of_torch_distributions() -> None:
    posterior = Posterior.from_moments(torch.randn(2, 6, 4, 5, generator=rng()))
    standard = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), standard
    )
    torch.testing.assert_close(posterior.kl(), expected.sum(dim=(1, 2, 3)))


def test_extreme_log_variances_are_clamped() -> None:
    posterior = Posterior.from_moments(torch.tensor([0.0, 0.0, -1e9, 1e9]).view(1, 4, 1, 1))
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]


def test_the_measured_scale_gives_latents_of_deviation_one() -> None:
    values = 3.0 + 4.0 * torch.randn(8, 3, 4, 6, generator=rng())
    assert (values * measure_scale(values)).std(correction=0).item() == pytest.approx(1.0)
    assert with_scale(SMALL, values) == dataclasses.replace(SMALL, scale=measure_scale(values))
    for bad in (torch.ones(4), torch.tensor([0.0, float("nan")])):
        with pytest.raises(ValueError, match="deviation"):
            measure_scale(bad)


# --- loss -----------------------------------------------------------------------------------------


def test_the_loss_is_l1_plus_weighted_kl() -> None:
    vae, frames = small(kl_weight=0.1), video()
    out = vae(Batch(video={"top": frames}), rng=rng(3))
    images = to_model_range(frames).flatten(0, 1)
    posterior = Posterior.from_moments(vae.moments(images))
    decoded = vae.reconstruct(posterior.sample(torch.randn(posterior.mean.shape, generator=rng(3))))
    l1, kl = (decoded - images).abs().mean(), posterior.kl().mean() / (3 * 8 * 12)
    torch.testing.assert_close(out.logs["l1"], l1)
    torch.testing.assert_close(out.logs["kl"], kl)
    torch.testing.assert_close(out.loss, l1 + 0.1 * kl)
    torch.testing.assert_close(out.logs["latent_std"], posterior.mean.std())
    assert not any(term.requires_grad for term in out.logs.values())
    assert "perceptual" not in out.logs


def test_all_cameras_count_and_are_resized() -> None:
    vae = small()
    top, wrist = video(seed=1), video(1, 2, (16, 20), seed=2)
    shrunk = resize_video(to_model_range(wrist), (8, 12))
    seen: list[Tensor] = []
    hook = vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vae(Batch(video={"top": top, "wrist": wrist}), rng=rng())
    hook.remove()
    torch.testing.assert_close(
        seen[0], torch.cat([to_model_range(top).flatten(0, 1), shrunk.flatten(0, 1)])
    )


def test_padded_frames_do_not_count() -> None:
    vae, frames = small(kl_weight=0.1), video()
    valid = torch.tensor([[True, True, False], [True, True, False]])
    changed = frames.clone()
    changed[:, 2] = 0

    def step(batch: Batch) -> tuple[Tensor, Tensor]:
        out = vae(batch, rng=rng())
        (gradient,) = torch.autograd.grad(out.loss, [vae.encoder.conv_in.weight])
        return out.loss, gradient

    masked = step(Batch(video={"top": frames}, valid={"top": valid}))
    torch.testing.assert_close(step(Batch(video={"top": changed}, valid={"top": valid})), masked)
    assert not torch.allclose(
        step(Batch(video={"top": changed}))[0], step(Batch(video={"top": frames}))[0]
    )
    nothing = vae(
        Batch(video={"top": frames}, valid={"top": torch.zeros(2, 3, dtype=torch.bool)}), rng=rng()
    )
    assert nothing.loss.item() == 0


def test_a_batch_without_video_is_told() -> None:
    with pytest.raises(UserError, match="video"):
        small()(Batch(actions=torch.zeros(1, 1, 1)), rng=rng())


def test_every_parameter_gets_a_gradient_and_is_in_one_group() -> None:
    vae = small(kl_weight=0.1)
    vae(Batch(video={"top": video()}), rng=rng()).loss.backward()
    assert not [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()]
    kernels, others = vae.param_groups(1e-3, 0.05)
    assert len(kernels["params"]) + len(others["params"]) == len(list(vae.parameters()))
    assert {p.ndim for p in kernels["params"]} == {4}
    assert {p.ndim for p in others["params"]} == {1}
    assert (kernels["lr"], kernels["weight_decay"], others["weight_decay"]) == (1e-3, 0.05, 0.0)


def test_it_learns_to_reconstruct() -> None:
    vae, batch = small(attention_resolutions=()), Batch(video={"top": video(1, 2)})
    optimizer = torch.optim.AdamW(vae.param_groups(1e-2, 0.0))
    losses = []
    for i in range(60):
        out = vae(batch, rng=rng(i))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.logs["l1"].item())
    assert losses[-1] < 0.5 * losses[0]


def test_bfloat16_autocast_keeps_the_loss_in_float32() -> None:
    vae, batch = small(), Batch(video={"top": video()})
    exact = vae(batch, rng=rng()).loss
    with torch.autocast("cpu", torch.bfloat16):
        out = vae(batch, rng=rng())
        latents = vae.encode(to_model_range(video()))
    assert out.loss.dtype == latents.dtype == torch.float32
    torch.testing.assert_close(out.loss, exact, rtol=0.02, atol=0.0)


# --- perceptual term ------------------------------------------------------------------------------


def features() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, stride=2),
            nn.BatchNorm2d(6),
        )


def test_feature_distance_is_zero_for_equal_pictures_and_bounded() -> None:
    x, y = (torch.rand(2, 3, 8, 12, generator=rng(s)) * 2 - 1 for s in (0, 1))
    distance = FeatureDistance(features(), ["0", "2"])
    assert distance(x, x).tolist() == [0.0, 0.0]
    far = distance(x, y)
    assert far.shape == (2,)
    assert (far > 0).all()
    assert (far <= 4.0).all()
    torch.testing.assert_close(far, distance(y, x))


def test_feature_distance_is_the_mean_over_layers_of_unit_feature_distances() -> None:
    net = features()
    x, y = (torch.rand(2, 3, 8, 12, generator=rng(s)) * 2 - 1 for s in (0, 1))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    got = FeatureDistance(net, ["0", "2"], mean=mean, std=std)(x, y)

    def outputs(z: Tensor) -> list[Tensor]:
        z = ((z + 1) / 2 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        first = net[0](z)
        return [nn.functional.normalize(v, dim=1) for v in (first, net[2](first.relu()))]

    per_layer = [
        (a - b).square().sum(dim=1).mean(dim=(1, 2))
        for a, b in zip(outputs(x), outputs(y), strict=True)
    ]
    torch.testing.assert_close(got, (per_layer[0] + per_layer[1]) / 2)


def test_feature_distance_freezes_its_network_and_lets_gradients_through() -> None:
    net = features().train()
    distance = FeatureDistance(net, ["3"])
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    x = torch.zeros(1, 3, 8, 12, requires_grad=True)
    distance(x, torch.rand(1, 3, 8, 12, generator=rng())).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()
    assert not net[3]._forward_hooks


@pytest.mark.parametrize("layers", [[], ["7"], [""]])
def test_feature_distance_refuses_unknown_layers(layers: list[str]) -> None:
    with pytest.raises(ValueError, match="submodules"):
        FeatureDistance(features(), layers)


def test_the_perceptual_term_counts_but_is_not_saved() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.weight * (x - y).square().flatten(1).mean(dim=1)

    config = dataclasses.replace(SMALL, perceptual_weight=2.0)
    vae = KLVAE(config, perceptual=Module())
    plain = KLVAE(SMALL)
    plain.load_state_dict(vae.state_dict())
    batch = Batch(video={"top": video()})
    out, without = vae(batch, rng=rng()), plain(batch, rng=rng())
    torch.testing.assert_close(out.loss, without.loss + 2.0 * out.logs["perceptual"])
    assert out.logs["perceptual"] > 0
    torch.testing.assert_close(copy.deepcopy(vae)(batch, rng=rng()).loss, out.loss)


def test_a_perceptual_weight_without_a_distance_is_told() -> None:
    vae = small(perceptual_weight=1.0)
    vae.encode(to_model_range(video()))
    with pytest.raises(UserError, match=r"perceptual_weight is 1\.0"):
        vae(Batch(video={"top": video()}), rng=rng())


# --- pictures -------------------------------------------------------------------------------------


def test_resizing_a_gradient_samples_between_pixel_centres() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 1, 4).expand(1, 2, 3, 2, 4)
    wide = resize_video(ramp, (2, 8))
    assert wide.shape == (1, 2, 3, 2, 8)
    torch.testing.assert_close(
        wide[0, 1, 2, 1], torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    )


def test_antialiasing_averages_where_plain_resizing_skips() -> None:
    dots = torch.zeros(1, 1, 3, 8, 8)
    dots[..., 0] = 1.0
    assert resize_video(dots, (2, 2)).max() == 0
    assert resize_video(dots, (2, 2), antialias=True).max() > 0.1


def test_resizing_leaves_the_right_size_alone_and_refuses_integers() -> None:
    frames = torch.rand(1, 2, 3, 8, 12)
    assert resize_video(frames, (8, 12)) is frames
    with pytest.raises(TypeError, match="to_model_range"):
        resize_video(video(), (4, 6))


# --- names of the released tensors ----------------------------------------------------------------


def reference_names(levels: int, blocks: int, attention: tuple[int, ...]) -> set[str]:
    """Every tensor of the released autoencoder, spelled out from its published layout."""
    pair = ("weight", "bias")
    residual = ("norm1", "conv1", "norm2", "conv2")
    attn = ("norm", "q", "k", "v", "proj_out")
    layers = ["quant_conv", "post_quant_conv"]
    for side, way, move, n in (
        ("encoder", "down", "downsample", blocks),
        ("decoder", "up", "upsample", blocks + 1),
    ):
        layers += [f"{side}.{end}" for end in ("conv_in", "norm_out", "conv_out")]
        layers += [f"{side}.mid.{block}.{x}" for block in ("block_1", "block_2") for x in residual]
        layers += [f"{side}.mid.attn_1.{x}" for x in attn]
        for i in range(levels):
            layers += [f"{side}.{way}.{i}.block.{j}.{x}" for j in range(n) for x in residual]
            if side == "encoder" and i in attention:
                layers += [f"encoder.down.{i}.attn.{j}.{x}" for j in range(n) for x in attn]
            if (side == "encoder" and i < levels - 1) or (side == "decoder" and i > 0):
                layers += [f"{side}.{way}.{i}.{move}.conv"]
    # widths 128, 128, 256, 256, 512: shortcuts where they change
    layers += ["encoder.down.2.block.0.nin_shortcut", "encoder.down.4.block.0.nin_shortcut"]
    layers += ["decoder.up.3.block.0.nin_shortcut", "decoder.up.1.block.0.nin_shortcut"]
    return {f"{layer}.{kind}" for layer in layers for kind in pair}


def test_the_released_names_are_exactly_ours() -> None:
    with torch.device("meta"):
        ours = KLVAE(KLVAEConfig()).state_dict()
    state = {name: torch.empty(0) for name in reference_names(5, 2, (4,))}
    native = to_native(state)
    assert len(native) == len(state)
    assert set(native) == set(ours)


def test_upsampling_leads_to_the_level_below() -> None:
    kernel = torch.zeros(2)
    assert to_native({"decoder.up.3.upsample.conv.weight": kernel}) == {
        "decoder.upsamples.2.conv.weight": kernel
    }


@pytest.mark.parametrize(
    "key",
    [
        "loss.logvar",
        "encoder.conv_in",
        "encoder.down.0.block.0.conv3.weight",
        "decoder.up.0.upsample.conv.weight",
        "encoder.mid.block_1.q.weight",
        "xencoder.conv_in.weight",
    ],
)
def test_unknown_names_are_told(key: str) -> None:
    with pytest.raises(UserError, match=key):
        to_native({"encoder.conv_in.bias": torch.zeros(1), key: torch.zeros(1)})
