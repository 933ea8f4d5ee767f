"""Gaussian diffusion: tables, loss and sampler, against their definitions."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.families.uva.heads import Denoiser, Objective, VideoHead
from foreact.nn.diffusion import GaussianDiffusion, spaced_steps


def test_tables_are_the_forward_process() -> None:
    """Adding noise step by step gives the closed form's signal and noise."""
    diffusion = GaussianDiffusion(50)
    signal, variance = 1.0, 0.0
    for i in range(50):
        keep = 1.0 - diffusion.betas[i]
        signal, variance = signal * math.sqrt(keep), variance * keep + diffusion.betas[i]
        assert signal == pytest.approx(diffusion.sqrt_alphas_cumprod[i])
        assert variance == pytest.approx(diffusion.sqrt_one_minus_alphas_cumprod[i] ** 2)
    assert np.isfinite(diffusion.posterior_log_variance_clipped).all()


def test_shorter_samplers_keep_the_noise_levels_of_the_kept_steps() -> None:
    full, short = GaussianDiffusion(1000), GaussianDiffusion(1000, "10")
    np.testing.assert_allclose(short.alphas_cumprod, full.alphas_cumprod[short.timestep_map])
    assert short.timestep_map.tolist() == [round(k * 111.0) for k in range(10)]
    assert spaced_steps(1000, "ddim4").tolist() == [0, 250, 500, 750]
    assert spaced_steps(7, "").tolist() == list(range(7))
    assert spaced_steps(7, "1").tolist() == [0]
    # Sections of 4, 3 and 3 steps, each from its first to its last step.
    assert spaced_steps(10, "2,1,3").tolist() == [0, 3, 4, 7, 8, 9]
    sections = spaced_steps(1000, "10,15,20")  # of 334, 333 and 333 steps
    assert sections[:10].tolist() == [0, 37, 74, 111, 148, 185, 222, 259, 296, 333]
    assert sections[[10, 11, 24, 25, 26, 44]].tolist() == [334, 358, 666, 667, 684, 999]
    assert len(sections) == 45
    assert spaced_steps(1000, "100").tolist() == spaced_steps(1000, " 100 ").tolist()


@pytest.mark.parametrize("spacing", ["0", "8", "ddim5", "ten", "-3", "ddim", "2.5"])
def test_impossible_spacings_are_refused(spacing: str) -> None:
    with pytest.raises(UserError, match=r"1\.\.7|whole stride"):
        spaced_steps(7, spacing)


def exact(x: Tensor, diffusion: GaussianDiffusion, share: float = 1.0):
    """The network that knows the data: its noise is right, its
    variance the chosen share between the extremes.
    """

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        i = t.long()
        signal = torch.from_numpy(diffusion.sqrt_alphas_cumprod)[i].float()[..., None]
        noise = torch.from_numpy(diffusion.sqrt_one_minus_alphas_cumprod)[i].float()[..., None]
        eps = (x_t - signal * x) / noise
        return torch.cat([eps, torch.full_like(eps, 2 * share - 1)], dim=-1)

    return predict


def test_the_loss_of_a_perfect_network_is_the_decoder_term_alone() -> None:
    diffusion = GaussianDiffusion(100)
    g = torch.Generator().manual_seed(0)
    x, noise = torch.rand(64, 3, generator=g) - 0.5, torch.randn(64, 3, generator=g)
    t = torch.arange(64) + 1
    assert diffusion.loss(exact(x, diffusion, share=0.0), x, t, noise).abs().max() < 2e-3
    wrong_variance = diffusion.loss(exact(x, diffusion, share=1.0), x, t, noise)
    assert wrong_variance[0] > 0.05
    # At t = 0 the bound is a probability of the data's bin: positive, finite and small for a sure
    # network.
    at_zero = diffusion.loss(exact(x, diffusion), x, torch.zeros(64, dtype=torch.long), noise)
    assert torch.isfinite(at_zero).all()
    assert (at_zero > 0).all()


def test_only_the_squared_error_reaches_the_noise_prediction() -> None:
    diffusion = GaussianDiffusion(100)
    g = torch.Generator().manual_seed(0)
    x, noise, out = (torch.randn(8, c, generator=g) for c in (2, 2, 4))
    t = torch.arange(8) * 10
    out.requires_grad_()
    mse, vb = diffusion.terms(out, x, diffusion.q_sample(x, t, noise), t, noise)
    (to_noise,) = torch.autograd.grad(vb.sum(), out, retain_graph=True)
    assert to_noise[:, :2].eq(0).all()
    assert to_noise[:, 2:].ne(0).any()
    (from_mse,) = torch.autograd.grad(mse.sum(), out)
    torch.testing.assert_close(from_mse[:, :2], out[:, :2] - noise)


@pytest.mark.parametrize("steps", [None, "7", "ddim5", "1"])
def test_a_perfect_network_recovers_the_data(steps: str | None) -> None:
    diffusion = GaussianDiffusion(50)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, generator=g) * 2 - 1
    calls = []

    def normal() -> Tensor:
        calls.append(1)
        return torch.randn(5, 3, generator=g)

    got = diffusion.sample(exact(x, diffusion), normal, clip=True, steps=steps)
    torch.testing.assert_close(got, x, atol=1e-3, rtol=0)
    assert len(calls) == len(spaced_steps(50, steps or ""))


def test_samples_of_a_gaussian_have_its_spread() -> None:
    """For data N(m, s^2) the best network is known in closed form;
    ancestral sampling must give back m and s.
    """
    diffusion, m, s = GaussianDiffusion(200), 0.3, 0.4

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        a = float(diffusion.alphas_cumprod[int(t)])
        eps = (x_t - math.sqrt(a) * m) * math.sqrt(1 - a) / (a * s * s + 1 - a)
        return torch.cat([eps, torch.zeros_like(eps)], dim=-1)

    g = torch.Generator().manual_seed(0)
    got = diffusion.sample(predict, lambda: torch.randn(4000, 1, generator=g))
    assert got.mean().item() == pytest.approx(m, abs=0.03)
    assert got.std().item() == pytest.approx(s, abs=0.03)
    cold = diffusion.sample(predict, lambda: torch.randn(4000, 1, generator=g), temperature=0.5)
    assert cold.std() < 0.8 * s


def test_clipped_samples_stay_in_range() -> None:
    g = torch.Generator().manual_seed(0)
    wild = lambda x, t: torch.cat([-5 * x, 0 * x], dim=-1)  # noqa: E731
    diffusion = GaussianDiffusion(50)
    normal = lambda: torch.randn(4, 2, generator=g)  # noqa: E731
    assert diffusion.sample(wild, normal, clip=True).abs().max() <= 1.0
    assert diffusion.sample(wild, normal, clip=False).abs().max() > 1.0


def test_times_are_uniform_over_all_steps() -> None:
    t = GaussianDiffusion(10).draw_time((5000,), torch.Generator().manual_seed(0))
    counts = t.bincount(minlength=10)
    assert len(counts) == 10
    assert counts.min() > 400


def test_guidance_extrapolates_the_noise_and_keeps_the_conditional_variance() -> None:
    class Spy:
        outputs = 2
        seen: Tensor

        def sample(self, predict, normal, **options) -> Tensor:
            self.seen = predict(normal(), torch.tensor(3))
            return self.seen

    torch.manual_seed(0)
    net, spy = Denoiser(2, 4, 5, width=8, depth=1), Spy()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    head = VideoHead(net, cast(Objective, spy))
    x, with_text, without = torch.randn(3, 2), torch.randn(3, 5), torch.randn(3, 5)
    t = torch.tensor(3)
    a, b = (net(x, t, net.condition(z)) for z in (with_text, without))
    for s in (1.0, 3.0):
        head.sample(
            with_text, lambda: x, temperature=1.0, steps="1", unconditional=without, guidance=s
        )
        torch.testing.assert_close(spy.seen[:, :2], b[:, :2] + s * (a - b)[:, :2])
        torch.testing.assert_close(spy.seen[:, 2:], a[:, 2:])
