"""Flow matching on straight lines (rectified flow, arXiv 2209.03003), instead of diffusion.

Same calls as `diffusion.GaussianDiffusion`, so that a head takes either. Time runs from 0 (noise)
to 1 (data).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from foreact.errors import UserError

TimeDistribution = Literal["uniform", "beta", "logit_normal", "stratified"]
Solver = Literal["euler", "midpoint"]
Predict = Callable[[Tensor, Tensor], Tensor]
Normal = Callable[[], Tensor]


class FlowMatching:
    """x_t = (1 - (1 - sigma) t) noise + t x; predicts the velocity x - (1 - sigma) noise.

    Args:
        time: how training draws t: "uniform"; "beta" = (1 - sigma) (1 - z) with z from Beta(1.5,
            1), with more weight on noisy t (as in arXiv 2410.24164); "logit_normal" = sigmoid of a
            standard normal, with more weight on the middle; "stratified" = one uniform draw, then
            evenly spaced over the samples.
        solver: "euler" (one call of the network per step) or "midpoint" (two).
        sigma: deviation of the noise that is left at t = 1 (arXiv 2210.02747, equation 22).
        time_scale: what the network is told is t * time_scale; 1000 suits embeddings made for
            diffusion steps.
    """

    outputs = 1

    def __init__(
        self,
        time: TimeDistribution = "uniform",
        solver: Solver = "euler",
        *,
        sigma: float = 0.0,
        time_scale: float = 1000.0,
    ) -> None:
        if time not in ("uniform", "beta", "logit_normal", "stratified"):
            raise UserError(
                f"Flow time should be uniform, beta, logit_normal or stratified, found '{time}'."
            )
        if solver not in ("euler", "midpoint"):
            raise UserError(f"The flow solver should be euler or midpoint, found '{solver}'.")
        if not 0.0 <= sigma < 1.0:
            raise UserError(f"The flow's sigma should be in [0, 1), found {sigma}.")
        self.time = time
        self.solver = solver
        self.sigma = sigma
        self.time_scale = time_scale

    def draw_time(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """float32 in [0, 1], on the generator's device."""
        if self.time == "logit_normal":
            return torch.randn(shape, generator=rng, device=rng.device).sigmoid()
        if self.time == "stratified":
            return stratified(torch.rand((), generator=rng, device=rng.device), shape)
        u = torch.rand(shape, generator=rng, device=rng.device)
        if self.time == "beta":
            return self.time_of_beta(u.pow(2.0 / 3.0))  # the inverse CDF of Beta(1.5, 1) is u^(2/3)
        return u

    def time_of_beta(self, z: Tensor) -> Tensor:
        """t of a draw from Beta(1.5, 1)."""
        return (1.0 - self.sigma) * (1.0 - z)

    def interpolate(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t. x, noise: (..., C); t: float (...)."""
        t = t[..., None]
        return (1.0 - (1.0 - self.sigma) * t) * noise + t * x

    def velocity(self, x: Tensor, noise: Tensor) -> Tensor:
        """What the network should predict, (..., C)."""
        return x - (1.0 - self.sigma) * noise

    def loss(self, predict: Predict, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Squared error of the velocity, mean over channels.

        Args:
            predict: (x_t (..., C), time for the network (...)) -> (..., C).
            x: float (..., C), the data.
            t: float (...), as `draw_time` draws.
            noise: float (..., C), standard normal.

        Returns:
            float32 (...).
        """
        x, noise = x.float(), noise.float()
        predicted = predict(self.interpolate(x, t, noise), t * self.time_scale).float()
        return (predicted - self.velocity(x, noise)).square().mean(-1)

    def sample(
        self,
        predict: Predict,
        normal: Normal,
        *,
        temperature: float = 1.0,
        clip: bool = False,
        steps: str | None = None,
    ) -> Tensor:
        """Follow the velocity from noise to data.

        Args:
            predict: (x_t (..., C), time for the network ()) -> (..., C).
            normal: draws the starting noise; called once.
            temperature: scale of the starting noise.
            clip: limit the result to [-1, 1].
            steps: number of solver steps as text; None for 10.

        Returns:
            float32 (..., C).
        """
        x = self.path(predict, normal().float() * temperature, solver_steps(steps or "10"))[-1]
        return x.clamp(-1.0, 1.0) if clip else x

    def path(self, predict: Predict, x: Tensor, steps: int) -> list[Tensor]:
        """The states after each of `steps` solver steps from the noise x, float32 (..., C).

        Time stays float32 whatever the network computes in: in bfloat16 the sum of ten tenths is
            not one.
        """
        dt = 1.0 / steps
        states: list[Tensor] = []
        for i in range(steps):
            velocity = predict(x, self._time(i * dt, x)).float()
            if self.solver == "midpoint":
                velocity = predict(x + 0.5 * dt * velocity, self._time((i + 0.5) * dt, x)).float()
            x = x + dt * velocity
            states.append(x)
        return states

    def _time(self, t: float, x: Tensor) -> Tensor:
        return torch.tensor(t * self.time_scale, device=x.device)


def stratified(u: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Times spread evenly over [0, 1) from one uniform draw u (): float32 of the given shape."""
    n = torch.Size(shape).numel()
    return ((u + torch.arange(n, device=u.device) / n) % (1.0 - 1e-5)).view(shape)


def solver_steps(text: str) -> int:
    """Number of solver steps.

    Raises:
        UserError: not a whole number of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"Sampling steps of a flow head should be a whole number of at least 1, found '{text}'."
        )
    return int(text)
