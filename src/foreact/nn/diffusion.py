"""Gaussian diffusion with learned variance (arXiv 2102.09672) for UVA: tables, loss, sampler.

The network is a function `predict(x_t, t)`; this file knows neither its architecture nor what the
rows mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from foreact.errors import UserError

Predict = Callable[[Tensor, Tensor], Tensor]
Normal = Callable[[], Tensor]


def cosine_betas(steps: int) -> np.ndarray:
    """Noise added per step, float64 (steps,), for abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2)."""

    def alpha_bar(u: np.ndarray) -> np.ndarray:
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    i = np.arange(steps, dtype=np.float64)
    return np.minimum(1.0 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999)


def spaced_steps(steps: int, spacing: str) -> np.ndarray:
    """The training steps that a shorter sampler keeps, int64, increasing.

    Args:
        steps: number of training steps.
        spacing: "N" for N steps from the first to the last, evenly spread and rounded; "N,M,..."
            for as many sections of the training steps, as equal as can be and the longer ones
            first, of which the first keeps N, the second M, each spread like that; "ddimN" for N
            steps at a whole stride from step 0 (only the spacing of DDIM; sampling stays
            ancestral); "" for all.

    Raises:
        UserError: the text is none of them, or a number does not fit.
    """
    if spacing == "":
        return np.arange(steps)
    if spacing.startswith("ddim"):
        return _strided(steps, spacing)
    counts = [int(part) if part.strip().isdecimal() else 0 for part in spacing.split(",")]
    lengths = [steps // len(counts) + (i < steps % len(counts)) for i in range(len(counts))]
    if not all(1 <= count <= length for count, length in zip(counts, lengths, strict=True)):
        raise _no_spacing(steps, spacing)
    kept, start = [], 0
    for count, length in zip(counts, lengths, strict=True):
        stride, position = (length - 1) / max(count - 1, 1), 0.0
        # A running sum and Python's round-half-even, as in the reference, decide the ties.
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return np.array(kept)


def _strided(steps: int, spacing: str) -> np.ndarray:
    """Steps at a whole stride from 0, as "ddimN" asks for."""
    digits = spacing.removeprefix("ddim")
    count = int(digits) if digits.isdecimal() else 0
    if not 1 <= count <= steps:
        raise _no_spacing(steps, spacing)
    for stride in range(1, steps + 1):
        if len(kept := np.arange(0, steps, stride)) == count:
            return kept
    raise UserError(
        f"No whole stride visits {count} of {steps} steps; choose another number "
        f"than in '{spacing}'."
    )


def _no_spacing(steps: int, spacing: str) -> UserError:
    return UserError(
        f"Sampling steps should be a number in 1..{steps}, one for each of several equal sections "
        f"of these steps such as '10,15,20', or 'ddimN', found '{spacing}'."
    )


class GaussianDiffusion:
    """Noise schedule of `steps` training steps, or of the kept ones of them.

    The network predicts (eps, v) on the channel axis: noise, and an interpolation between the two
    extreme log variances of a reverse step. Tables are float64 numpy arrays of shape (len(self),);
    arithmetic is float32 on the device of the inputs.

    Args:
        steps: training steps T.
        spacing: see `spaced_steps`.
    """

    outputs = 2

    def __init__(self, steps: int = 1000, spacing: str = "") -> None:
        self.steps = steps
        self.timestep_map = spaced_steps(steps, spacing)
        kept = np.cumprod(1.0 - cosine_betas(steps))[self.timestep_map]
        previous = np.append(1.0, kept[:-1])
        self.betas = cosine_betas(steps) if spacing == "" else 1.0 - kept / previous
        self.alphas_cumprod = np.cumprod(1.0 - self.betas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1.0 - self.alphas_cumprod)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1.0)
        remaining = 1.0 - self.alphas_cumprod
        self.posterior_variance = self.betas * (1.0 - self.alphas_cumprod_prev) / remaining
        # The variance of the first step is 0; its logarithm is taken from the second.
        first = self.posterior_variance[1] if len(self) > 1 else self.betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(first, self.posterior_variance[1:]))
        self.posterior_mean_coef1 = self.betas * np.sqrt(self.alphas_cumprod_prev) / remaining
        self.posterior_mean_coef2 = (
            (1.0 - self.alphas_cumprod_prev) * np.sqrt(1.0 - self.betas) / remaining
        )

    def __len__(self) -> int:
        return len(self.timestep_map)

    # --- training ---------------------------------------------------------------------------------

    def draw_time(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Uniform steps, int64 in [0, len(self)), on the generator's device."""
        return torch.randint(0, len(self), shape, generator=rng, device=rng.device)

    def q_sample(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0 = x) for given noise. x, noise: (..., C); t: int64 (...)."""
        at = self._at(t, t.device)
        return at.sqrt_alphas_cumprod * x + at.sqrt_one_minus_alphas_cumprod * noise

    def loss(self, predict: Predict, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Loss per row: squared error of the noise plus the variational bound of the variance.

        Args:
            predict: (x_t (..., C), t (...)) -> (..., 2C).
            x: float (..., C), the data.
            t: int64 (...), as `draw_time` draws.
            noise: float (..., C), standard normal.

        Returns:
            float32 (...).
        """
        x, noise = x.float(), noise.float()
        x_t = self.q_sample(x, t, noise)
        mse, vb = self.terms(predict(x_t, t).float(), x, x_t, t, noise)
        return mse + vb

    def terms(
        self, output: Tensor, x: Tensor, x_t: Tensor, t: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(mse, vb), float32 (...); vb in bits per channel, no gradient to the noise."""
        eps, v = output.chunk(2, dim=-1)
        mse = (eps - noise).square().mean(-1)
        at = self._at(t, t.device)
        # The bound trains the variance alone; the noise is trained by the squared error.
        mean, log_variance = self._reverse(eps.detach(), v, x_t, at, clip=False)
        true_mean = at.posterior_mean_coef1 * x + at.posterior_mean_coef2 * x_t
        true_log_variance = at.posterior_log_variance_clipped
        # KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) of two normal distributions.
        kl = 0.5 * (
            log_variance
            - true_log_variance
            - 1.0
            + torch.exp(true_log_variance - log_variance)
            + (true_mean - mean).square() * torch.exp(-log_variance)
        )
        nll = -_log_discretized_normal(x, mean, 0.5 * log_variance)
        # The last reverse step has no posterior: it pays for x_0 itself, discretised to 8 bits.
        vb = torch.where(t == 0, nll.mean(-1), kl.mean(-1)) / math.log(2.0)
        return mse, vb

    # --- sampling ---------------------------------------------------------------------------------

    def sample(
        self,
        predict: Predict,
        normal: Normal,
        *,
        temperature: float = 1.0,
        clip: bool = False,
        steps: str | None = None,
    ) -> Tensor:
        """Ancestral sampling.

        Args:
            predict: (x_t (..., C), t () int64, a step of training) -> (..., 2C).
            normal: draws standard normal noise of the result's shape; called once at the start,
                then before every step but the last.
            temperature: scale of the noise of the steps (not of the start).
            clip: limit every estimate of the data to [-1, 1].
            steps: spacing of this call's steps (see `spaced_steps`); None for every step.

        Returns:
            float32 (..., C).
        """
        if steps is not None:
            return self.spaced(steps).sample(predict, normal, temperature=temperature, clip=clip)
        x = normal().float()
        for i in reversed(range(len(self))):
            at = self._at(i, x.device)
            t = torch.tensor(int(self.timestep_map[i]), device=x.device)
            eps, v = predict(x, t).float().chunk(2, dim=-1)
            mean, log_variance = self._reverse(eps, v, x, at, clip=clip)
            x = mean
            if i > 0:  # no noise after the last step
                x = mean + torch.exp(0.5 * log_variance) * normal().float() * temperature
        return x

    def spaced(self, spacing: str) -> GaussianDiffusion:
        """The same training schedule, sampled in fewer steps."""
        if spacing not in self._spaced:
            self._spaced[spacing] = GaussianDiffusion(self.steps, spacing)
        return self._spaced[spacing]

    @cached_property
    def _spaced(self) -> dict[str, GaussianDiffusion]:
        return {}

    @staticmethod
    def _reverse(
        eps: Tensor, v: Tensor, x_t: Tensor, at: _Coefficients, *, clip: bool
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance of p(x_{t-1} | x_t), both (..., C)."""
        x = at.sqrt_recip_alphas_cumprod * x_t - at.sqrt_recipm1_alphas_cumprod * eps
        if clip:
            x = x.clamp(-1.0, 1.0)
        mean = at.posterior_mean_coef1 * x + at.posterior_mean_coef2 * x_t
        most, least = at.log_betas, at.posterior_log_variance_clipped
        share = (v + 1.0) / 2.0  # v in [-1, 1] interpolates the log variances
        return mean, share * most + (1.0 - share) * least

    def _at(self, t: Tensor | int, device: torch.device) -> _Coefficients:
        if device not in self._coefficients:
            names = [n for n in _Coefficients.names if n != "log_betas"]
            rows = np.stack([np.log(self.betas), *(getattr(self, n) for n in names)], axis=1)
            self._coefficients[device] = torch.from_numpy(rows.astype(np.float32)).to(device)
        return _Coefficients(self._coefficients[device][t])

    @cached_property
    def _coefficients(self) -> dict[torch.device, Tensor]:
        return {}


class _Coefficients:
    """Table entries at steps t (...), each (..., 1), read with a single gather."""

    names = (
        "log_betas",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    )
    log_betas: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __init__(self, gathered: Tensor) -> None:
        for name, column in zip(self.names, gathered.split(1, dim=-1), strict=True):
            setattr(self, name, column)


def _log_discretized_normal(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of the bin of width 2/255 at x in [-1, 1]; outer bins are unbounded."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    below_upper = _normal_cdf(inverse * (centred + 1.0 / 255.0))
    below_lower = _normal_cdf(inverse * (centred - 1.0 / 255.0))
    probability = torch.where(
        x < -0.999,
        below_upper,
        torch.where(x > 0.999, 1.0 - below_lower, below_upper - below_lower),
    )
    return probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation, which the published losses contain."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3))))
