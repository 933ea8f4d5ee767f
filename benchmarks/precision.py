"""Training of every family in float32 and in bfloat16: is what `auto` picks the faster of the two?

A step is the training loop's, without its log, its average and its files: forward under autocast,
backward, clipping, AdamW, and what the model does after it. Models, batch sizes and settings are
the defaults of the recipes, the data random. Both precisions take turns in one process, from the
same weights, every step draws the same, and the fastest one of each counts. Where bfloat16 is
emulated a step may take many minutes (VaViM's does), so both are tried on one sample first: what
takes three times as long there is marked with * and gets no whole batch.

    python benchmarks/precision.py
    python benchmarks/precision.py --families uva voc --rounds 20
    python benchmarks/precision.py --quick          (two samples a step, to see that it works)

voc and bc read codes of the tokenizer that `foreact train vq` makes by default. VQ-KD's teacher
hands out the pixels of the patches: a network would add its own time to either side. Its codebook
starts by k-means, as in the recipe, from the latents of random pictures.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from occupancy import commit, hardware
from torch import Tensor, nn
from torch.nn import functional

from foreact.commands.demos.pace import Step, random_batch
from foreact.errors import UserError
from foreact.families.codes import train_kl_vae as kl_vae
from foreact.families.codes import train_musik as musik
from foreact.families.codes import train_vq as vq
from foreact.families.codes import train_vqkd as vqkd
from foreact.families.driving import train_vavam as vavam
from foreact.families.driving import train_vavim as vavim
from foreact.families.driving.vavam import VaVAM
from foreact.families.driving.vavim import VaViM
from foreact.families.uva import recipes as uva
from foreact.families.uva.model import UVA
from foreact.families.voc import train as voc
from foreact.families.voc.cloning import train as cloning
from foreact.families.voc.cloning.model import Cloning
from foreact.families.voc.model import VOC
from foreact.machine import Precision, bfloat16, choose_precision, explain_precision, least_seconds
from foreact.runs.run import pick_device
from foreact.runs.stores import DEFAULT_TASK
from foreact.tasks import find_task
from foreact.tokenizers.kl_vae import KLVAE
from foreact.tokenizers.musik import Musik
from foreact.tokenizers.vq import VQTokenizer
from foreact.tokenizers.vqkd import VQKD, VQKDConfig
from foreact.train.config import TrainConfig
from foreact.train.optim import clip_gradients
from foreact.types import Batch

ENOUGH = 0.95
SLOW = 3.0
QUICK_ROWS = 2


@dataclass(frozen=True)
class Training:
    """What a family trains by default.

    Attributes:
        config: of its recipe.
        model: makes one with random weights.
        batch: makes that many samples of noise.
    """

    config: TrainConfig
    model: Callable[[], nn.Module]
    batch: Callable[[int, torch.Generator], Batch]


def codes(rows: int, frames: int, config: Any, rng: torch.Generator) -> Tensor:
    return torch.randint(config.vocab, (rows, frames, *config.grid), generator=rng)


def uniform(*shape: int, rng: torch.Generator) -> Tensor:
    """In [-1, 1), as the bounds of the tasks' actions."""
    return 2.0 * torch.rand(shape, generator=rng) - 1.0


def pictures(rows: int, frames: int, rng: torch.Generator) -> Batch:
    """Noise in the size of the pictures from which tokenizers learn by default."""
    task = find_task(DEFAULT_TASK)
    shape = (rows, frames, 3, *task.spec.cameras[task.camera])
    return Batch(video={task.camera: torch.randint(256, shape, generator=rng, dtype=torch.uint8)})


def single(rows: int, rng: torch.Generator) -> Batch:
    return pictures(rows, 1, rng)


def uva_training() -> Training:
    run = uva.recipe()

    def batch(rows: int, rng: torch.Generator) -> Batch:
        return random_batch(run.model, rows, rng.device)

    return Training(run.train, lambda: UVA(run.model), batch)


def vavim_training() -> Training:
    run = vavim.recipe()

    def batch(rows: int, rng: torch.Generator) -> Batch:
        return Batch(tokens={run.model.camera: codes(rows, run.model.frames, run.model, rng)})

    return Training(run.train, lambda: VaViM(run.model), batch)


def vavam_training() -> Training:
    run = vavam.recipe()
    video, expert = run.model.vavim, run.model.expert

    def batch(rows: int, rng: torch.Generator) -> Batch:
        plans = torch.randn(rows, video.frames, expert.horizon, expert.action_dim, generator=rng)
        return Batch(
            tokens={video.camera: codes(rows, video.frames, video, rng)},
            plans=10.0 * plans,  # metres
            commands=torch.randint(expert.commands, (rows, video.frames), generator=rng),
        )

    return Training(run.train, lambda: VaVAM(run.model), batch)


def voc_training() -> Training:
    run, tokenizer = voc.recipe(), VQTokenizer(vq.SMALL)
    task = find_task(run.task)
    config = voc.fitted(run, task.camera, tokenizer, task.spec)

    def model() -> VOC:
        made = VOC(config)
        made.set_codebook(tokenizer.codebook)
        return made

    def batch(rows: int, rng: torch.Generator) -> Batch:
        ahead = config.bootstrap_steps
        return Batch(
            tokens={config.camera: codes(rows, config.frames + ahead, config, rng)},
            rewards=torch.rand(rows, ahead, generator=rng),
        )

    return Training(run.train, model, batch)


def bc_training() -> Training:
    run, tokenizer = cloning.CloningRun(), VQTokenizer(vq.SMALL)
    task = find_task(run.task)
    config = cloning.fitted(run, task.camera, tokenizer, task.spec)

    def model() -> Cloning:
        made = Cloning(config)
        made.set_codebook(tokenizer.codebook)
        return made

    def batch(rows: int, rng: torch.Generator) -> Batch:
        return Batch(
            tokens={config.camera: codes(rows, config.frames, config, rng)},
            actions=uniform(rows, config.action_steps, config.actions, rng=rng),
        )

    return Training(run.train, model, batch)


def vq_training() -> Training:
    run = vq.VQRun()
    return Training(run.train, lambda: VQTokenizer(run.model), single)


def kl_vae_training() -> Training:
    run = kl_vae.KLVAERun()
    return Training(run.train, lambda: KLVAE(run.model), single)


def vqkd_training() -> Training:
    run = vqkd.recipe()
    return Training(run.train, lambda: started(run.model), single)


@torch.no_grad()
def started(config: VQKDConfig) -> VQKD:
    """A VQ-KD whose codebook comes from as many latents as the recipe takes."""

    def teacher(images: Tensor) -> Tensor:
        pixels = functional.pixel_unshuffle(images, config.patch).flatten(2).mT
        times = math.ceil(config.features / pixels.shape[2])
        return pixels.repeat(1, 1, times)[..., : config.features]

    model, rng = VQKD(config, teacher=teacher), torch.Generator().manual_seed(0)
    places = math.prod(config.grid)
    frames = math.ceil(vqkd.LATENTS_PER_CODE * config.codes / places)
    latents = model.latents(model.frames(single(frames, rng)))
    model.quantizer.initialise(latents, torch.randperm(frames * places, generator=rng))
    return model


def musik_training() -> Training:
    run = musik.MusikRun()

    def batch(rows: int, rng: torch.Generator) -> Batch:
        made = pictures(rows, 2 * run.model.frames, rng)  # a state, and a later one
        made.actions = uniform(rows, 1, run.model.actions, rng=rng)
        return made

    return Training(run.train, lambda: Musik(run.model), batch)


FAMILIES: dict[str, Callable[[], Training]] = {
    "uva": uva_training,
    "vavim": vavim_training,
    "vavam": vavam_training,
    "voc": voc_training,
    "bc": bc_training,
    "vq": vq_training,
    "kl-vae": kl_vae_training,
    "vqkd": vqkd_training,
    "musik": musik_training,
}


class WholeStep(Step):
    """`Step` with the loop's clipping, and with what a model does after it; waits for the device.

    Attributes:
        norm: () of the last step's gradient.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, precision: Precision) -> None:
        super().__init__(model, config, precision)
        self.clip, self.norm = config.clip_grad, torch.zeros(())
        self.optimizer.register_step_pre_hook(self._clip)

    def __call__(self, batch: Batch) -> None:
        self.rng.manual_seed(0)  # the same question every time: they cost differently
        super().__call__(batch)
        if (after_step := getattr(self.model, "after_step", None)) is not None:
            after_step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _clip(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.norm = clip_gradients(parameters, self.clip)


def whole_step(training: Training, device: torch.device, precision: Precision) -> WholeStep:
    """A step from the same weights every time."""
    torch.manual_seed(0)
    return WholeStep(training.model().to(device).train(), training.config, precision)


@dataclass(frozen=True)
class Found:
    """Of each precision: samples per second, and whether the last gradient was finite.

    Attributes:
        tried: bf16 was so slow on one sample that it got no more.
    """

    rates: dict[Precision, float]
    finite: dict[Precision, bool]
    tried: bool


def measure(training: Training, device: torch.device, rows: int, rounds: int) -> Found:
    rng = torch.Generator().manual_seed(0)
    one, batch = (training.batch(n, rng).to(device) for n in (1, rows))
    precisions: list[Precision] = ["fp32", "bf16"] if bfloat16(device).possible else ["fp32"]
    steps = {p: whole_step(training, device, p) for p in precisions}
    seconds = least_seconds({p: partial(step, one) for p, step in steps.items()}, rounds=1)
    rates: dict[Precision, float] = {p: 1 / seconds[p] for p in precisions}
    tried = "bf16" in steps and seconds["bf16"] > SLOW * seconds["fp32"]
    whole = precisions[:1] if tried else precisions
    seconds = least_seconds({p: partial(steps[p], batch) for p in whole}, rounds)
    rates |= {p: rows / seconds[p] for p in whole}
    finite: dict[Precision, bool] = {p: bool(steps[p].norm.isfinite()) for p in precisions}
    return Found(rates, finite, tried)


def cell(rate: float | None, mark: str = "") -> str:
    return "" if rate is None else f"{rate:.4g}{mark}"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES])
    parser.add_argument("--device", help="default: CUDA if there is one")
    parser.add_argument("--rounds", type=int, default=5, help="steps that count, in each precision")
    parser.add_argument("--batch-size", type=int, help="instead of the recipes'")
    parser.add_argument("--quick", action="store_true", help="two samples a step, and one round")
    args = parser.parse_args()
    if args.rounds < 1 or (args.batch_size is not None and args.batch_size < 1):
        parser.error("--rounds and --batch-size should be at least 1")
    try:
        device = pick_device(args.device)
    except UserError as error:
        parser.error(str(error))
    rounds = 1 if args.quick else args.rounds

    auto = choose_precision("auto", device)
    print(
        f"{hardware(device)}; torch {torch.__version__}; commit {commit()}; "
        f"python {' '.join(sys.argv)}"
    )
    print(
        f"samples/s of optimiser steps, the fastest of {rounds}; "
        f"auto: {explain_precision(auto, device)}"
    )
    print("\n| | batch | fp32 | bf16 | auto | auto / better |", f"|{'---|' * 6}", sep="\n")
    below, broken = [], []
    for name in args.families:
        training = FAMILIES[name]()
        size = QUICK_ROWS if args.quick else training.config.batch_size
        rows = args.batch_size or size
        found = measure(training, device, rows, rounds)
        rates = found.rates
        ratio = rates[auto] / max(rates.values())
        half = cell(rates.get("bf16"), "*" if found.tried else "")
        cells = [name, str(rows), cell(rates["fp32"]), half, auto]
        print(f"| {' | '.join(cells)} | {ratio:.2f} |", flush=True)
        below += [name] if ratio < ENOUGH else []
        broken += [f"{name} in {p}" for p, finite in found.finite.items() if not finite]
    if broken:
        print(f"\ngradient not finite: {', '.join(broken)}")
    print(f"\nauto below {ENOUGH} x the better: {', '.join(below) or 'none'}")


if __name__ == "__main__":
    main()
