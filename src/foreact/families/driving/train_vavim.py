"""`foreact train vavim`: the video model of driving, in its authors' two stages, at any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from foreact.checkpoints.shipped import resolve
from foreact.checkpoints.start import start_from, weights_of
from foreact.errors import UserError
from foreact.families.driving.sources import load_driving
from foreact.families.driving.training import DrivingRun, accumulation, fit, show_plan
from foreact.families.driving.vavim import SIZES, VaViM, VaViMConfig
from foreact.runs.inputs import Inputs
from foreact.runs.parse import checked
from foreact.runs.run import pick_device
from foreact.runs.verb import TrainingVerb
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig

Stage = Literal["pretrain", "finetune"]

PER_PROCESS = {"debug": 4, "S": 6, "B": 3, "L": 2}
"""Windows per process and micro-batch: the published ones, and some for a laptop."""


@dataclass(frozen=True, kw_only=True)
class VaViMRun(DrivingRun):
    """Train VaViM, the next-token model of driving video."""

    stage: Stage = "pretrain"
    """pretrain: warmup, constant rate. finetune: from there (--train.start-from), to a tenth."""
    init: str | None = None
    """Weights to start from, without optimiser state."""
    out: Path = Path("runs/vavim")
    model: VaViMConfig = field(default_factory=VaViMConfig)


def recipe(size: str = "debug", stage: Stage = "pretrain") -> VaViMRun:
    """The defaults for a size and a stage.

    The published sizes follow the authors: 384 windows per step, AdamW with betas 0.9 and 0.95 and
    decay 1e-7, base rate 0.0041 under muP; 155,293 steps with a tenth of warmup, of which nine
    tenths were run before fine-tuning on OpenDV 0.4, nuPlan 0.5872 and nuScenes 0.0128
    (--data.ratios) of 5,963,251 windows (--data.total).
    """
    common: dict[str, Any] = {
        "batch_size": PER_PROCESS[size],
        "schedule": "wsd",
        "ema": EMAConfig(enabled=False),
        "seed": 84924,
        "best_k": 0,
    }
    schedule: dict[str, Any]
    if size == "debug":  # a laptop sees too few tokens for the published schedule
        common |= {"lr": 0.004, "weight_decay": 1e-4, "save_every": 250, "eval_every": 250}
        schedule = {"steps": 300, "drop": 300}
        if stage == "pretrain":
            schedule = {"steps": 1000, "warmup": 50, "drop": 200}
    else:
        common |= {"lr": 0.0041, "weight_decay": 1e-7}
        common |= {"accumulate": accumulation(PER_PROCESS[size])}
        schedule = {"steps": 15_529, "drop": 15_529}
        if stage == "pretrain":
            # Each quarter, and the end of the nine tenths, were fine-tuned and released.
            keep_at = (38_823, 77_646, 116_469, 139_763)
            schedule = {"steps": 155_293, "warmup": 15_529, "keep_at": keep_at}
    settings: dict[str, Any] = {**common, "warmup": 0, **schedule}
    return VaViMRun(size=size, stage=stage, model=SIZES[size], train=TrainConfig(**settings))


def train_vavim(run: VaViMRun) -> Path:
    """Train; returns the folder of the finished weights, `run.out/weights`."""
    if run.plan:
        show_plan(run, VaViM, run.model.frames * run.model.tokens_per_frame, run.model.vocab)
        return run.out / "weights"
    if run.stage == "finetune" and run.init is None and run.train.start_from is None:
        raise UserError(
            "Fine-tuning goes on from a pre-trained model, and none is given: name its run with "
            "--train.start-from, or its weights with --init."
        )
    device = pick_device(run.device)
    split = load_driving(run.data, run.model, horizon=None, inputs=Inputs.of(run))
    torch.manual_seed(run.train.seed)
    model = VaViM(run.model)
    start = "random weights"
    if run.train.start_from is not None:
        start = f"weights and moments of {run.train.start_from}"
    init = None if run.init is None else weights_of(run.init, "vavim", "--init")
    split.inputs.start("init", init)
    if init is not None:
        start_from(model, init, tokenizer=split.tokenizer and split.tokenizer.hash)
        start = f"weights of {run.init}"
    tokenizer = None if run.tokenizer is None else resolve(run.tokenizer)
    return fit(
        run, VERB, model, split, tokenizer=tokenizer, device=device, start=start, stage=run.stage
    )


def _defaults(chosen: dict[str, str]) -> VaViMRun:
    return recipe(**checked(chosen, size=[*SIZES], stage=["pretrain", "finetune"]))


VERB = TrainingVerb(name="train vavim", cls=VaViMRun, recipe=_defaults, choices=("size", "stage"))


def command(args: Sequence[str]) -> None:
    """`foreact train vavim`."""
    train_vavim(VERB.parse(args))
