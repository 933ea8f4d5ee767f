"""Flow matching on straight lines (rectified flow, arXiv 2209.03003): loss and solver, in the place of diffusion.

Same calls as `diffusion.GaussianDiffusion`, so that a head takes either. Time runs from 0 (noise) to 1 (data).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from foreact.types import UserError

TimeDistribution = Literal["uniform", "beta", "logit_normal"]
Solver = Literal["euler", "midpoint"]
Predict = Callable[[Tensor, Tensor], Tensor]
Normal = Callable[[], Tensor]

# The network's time embedding is made for 0..1000; t in 0..1 is stretched to that range.
TIME_SCALE = 1000.0


class FlowMatching:
    """x_t = (1 - t) noise + t x; the network predicts the velocity x - noise.

    Args:
        time: how training draws t: "uniform"; "beta" = 1 - Beta(1.5, 1), with more weight on noisy t (as in arXiv
            2410.24164); "logit_normal" = sigmoid of a standard normal, with more weight on the middle.
        solver: "euler" (one call of the network per step) or "midpoint" (two).
    """

    outputs = 1

    def __init__(self, time: TimeDistribution = "uniform", solver: Solver = "euler") -> None:
        if time not in ("uniform", "beta", "logit_normal"):
            raise UserError(f"Flow time should be uniform, beta or logit_normal, found '{time}'.")
        if solver not in ("euler", "midpoint"):
            raise UserError(f"The flow solver should be euler or midpoint, found '{solver}'.")
        self.time = time
        self.solver = solver

    def draw_time(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """float32 in [0, 1], on the generator's device."""
        if self.time == "logit_normal":
            return torch.randn(shape, generator=rng, device=rng.device).sigmoid()
        u = torch.rand(shape, generator=rng, device=rng.device)
        return 1.0 - u.pow(2.0 / 3.0) if self.time == "beta" else u  # the inverse CDF of Beta(1.5, 1) is u^(2/3)

    def interpolate(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t. x, noise: (..., C); t: float (...)."""
        return torch.lerp(noise, x, t[..., None])

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
        velocity = predict(self.interpolate(x, t, noise), t * TIME_SCALE).float()
        return (velocity - (x - noise)).square().mean(-1)

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
        count = solver_steps(steps or "10")
        x = normal().float() * temperature
        dt = 1.0 / count
        for i in range(count):
            velocity = predict(x, self._time(i * dt, x)).float()
            if self.solver == "midpoint":
                velocity = predict(x + 0.5 * dt * velocity, self._time((i + 0.5) * dt, x)).float()
            x = x + dt * velocity
        return x.clamp(-1.0, 1.0) if clip else x

    @staticmethod
    def _time(t: float, x: Tensor) -> Tensor:
        return torch.tensor(t * TIME_SCALE, device=x.device)


def solver_steps(text: str) -> int:
    """Number of solver steps.

    Raises:
        UserError: not a whole number of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"Sampling steps of a flow head should be a whole number of at least 1, found '{text}'.")
    return int(text)
