"""How fast this machine trains, by a yardstick timed in seconds, and how long the demos take by it.

The yardstick is the training of `foreact demo`: steps of the pocket UVA on random latents. A demo's
minutes are those measured on one machine, scaled by the ratio of the two machines' training speeds,
as if simulators scaled like training.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from foreact.families.uva.model import UVA, UVAConfig
from foreact.families.uva.recipes import recipe
from foreact.machine import Precision, autocast
from foreact.train.config import TrainConfig
from foreact.train.optim import build_optimizer
from foreact.types import Batch

MEASURED_WINDOWS = 297.0
"""Windows per second where the minutes below were measured: two cores of an AMD EPYC (AVX2)."""
MEASURED_MINUTES = {"demo": 3.9, "demo driving": 6.0, "demo voc": 5.0}
"""Minutes of each demo on that machine, without other work beside it (commit a2ef5ce)."""
STEPS = 3


def windows_per_second(device: torch.device, precision: Precision) -> float:
    """Training windows of the pocket UVA per second: the fastest of a few steps after warm-up."""
    run = recipe()
    batch = random_batch(run.model, run.train.batch_size, device)
    seconds = []
    with torch.random.fork_rng():  # nobody's weights; the draws of what follows stay as they were
        step = Step(UVA(run.model).to(device).train(), run.train, precision)
        for _ in range(STEPS + 1):
            step.rng.manual_seed(0)  # the same question every time: they cost differently
            start = time.perf_counter()
            step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return len(batch) / min(seconds[1:])


class Step:
    """One optimiser step as the training loop does it, without log, weight average or files."""

    def __init__(self, model: nn.Module, config: TrainConfig, precision: Precision) -> None:
        self.model = model
        self.precision: Precision = precision
        self.device = next(model.parameters()).device
        self.rng = torch.Generator(self.device).manual_seed(0)
        self.optimizer = build_optimizer(
            model, lr=config.lr, weight_decay=config.weight_decay, betas=config.betas
        )

    def __call__(self, batch: Batch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            loss = self.model(batch, rng=self.rng).loss
        loss.backward()
        self.optimizer.step()


def random_batch(config: UVAConfig, rows: int, device: torch.device) -> Batch:
    """What a model of one camera trains on, filled with noise."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=rng)

    steps = config.proprioception_steps + config.horizon
    states = {**config.proprioception, **config.proprioception_prediction}
    batch = Batch(
        latents={config.camera: normal(2 * config.frames, config.latent_channels, *config.grid)},
        actions=normal(config.horizon, config.action_dim).clamp(-1, 1),
        state={name: normal(steps, dim) for name, dim in states.items()},
    )
    return batch.to(device)


def expected_minutes(device: torch.device, windows: float) -> dict[str, str]:
    """Roughly how long each demo takes at this many training windows per second, in words."""
    # Simulators and films stay on the CPU, and their share has not been measured.
    if device.type != "cpu":
        return dict.fromkeys(MEASURED_MINUTES, "not measured with a GPU yet")
    longer = MEASURED_WINDOWS / windows
    scaled = {demo: max(1, round(minutes * longer)) for demo, minutes in MEASURED_MINUTES.items()}
    return {demo: f"about {minutes} min on this machine" for demo, minutes in scaled.items()}
