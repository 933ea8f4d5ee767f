"""`foreact train vavam`: the action expert, as its authors train it, at any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foreact.checkpoints.configs import config_from_json
from foreact.checkpoints.shipped import resolve
from foreact.checkpoints.start import start_from, weights_of
from foreact.errors import UserError
from foreact.families.driving.data.ego import COMMANDS
from foreact.families.driving.sources import load_driving
from foreact.families.driving.training import DrivingRun, accumulation, fit, show_plan
from foreact.families.driving.vavam import SIZES, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViMConfig
from foreact.runs.inputs import Inputs
from foreact.runs.parse import checked
from foreact.runs.run import pick_device
from foreact.runs.verb import TrainingVerb
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig

PER_PROCESS = {"debug": 8, "S": 16, "B": 16, "L": 8}
"""Windows per process and micro-batch: the published ones, and some for a laptop."""


@dataclass(frozen=True, kw_only=True)
class VaVAMRun(DrivingRun):
    """Train VaVAM: plans of waypoints from a video model that stays as it is, or learns too."""

    video: str | None = None
    """Weights of the VaViM to drive from; its shape replaces --model.vavim."""
    tokenizer: str | None = None
    """Checkpoint of the tokens' tokenizer, to embed in the weights; None: that of --video."""
    init: str | None = None
    """Weights of a VaVAM to start from, instead of --video."""
    out: Path = Path("runs/vavam")
    model: VaVAMConfig = field(default_factory=VaVAMConfig)


def recipe(size: str = "debug", video: str | None = None) -> VaVAMRun:
    """The defaults for a size, and the shape of the video model where one is named.

    The published sizes follow the authors: one epoch of nuPlan and nuScenes in 7,251 steps of 384
    windows, base rate 0.0194 under muP, 75 steps of warmup, 725 of drop, the video model frozen.
    """
    common: dict[str, Any] = {
        "batch_size": PER_PROCESS[size],
        "schedule": "wsd",
        "weight_decay": 1e-7,
        "ema": EMAConfig(enabled=False),
        "seed": 84924,
        "best_k": 0,
    }
    schedule: dict[str, Any]
    if size == "debug":
        common |= {"save_every": 250, "eval_every": 250}
        schedule = {"lr": 0.01, "steps": 1000, "warmup": 50, "drop": 200}
    else:
        common |= {"accumulate": accumulation(PER_PROCESS[size])}
        schedule = {"lr": 0.0194, "steps": 7_251, "warmup": 75, "drop": 725}
    model = SIZES[size]
    if video is not None:
        shape = config_from_json(VaViMConfig, weights_of(video, "vavim", "--video").config)
        model = dataclasses.replace(model, vavim=shape)
    return VaVAMRun(size=size, video=video, model=model, train=TrainConfig(**common | schedule))


def train_vavam(run: VaVAMRun) -> Path:
    """Train; returns the folder of the finished weights, `run.out/weights`."""
    vavim = run.model.vavim
    if run.plan:
        tokens = {
            "vavim": vavim.frames * vavim.tokens_per_frame,
            "expert": vavim.frames * run.model.expert.horizon,
        }
        show_plan(run, VaVAM, tokens, vocab=0)
        return run.out / "weights"
    starts = (run.video, run.init, run.train.start_from)
    if all(start is None for start in starts) and not run.model.train_vavim:
        raise UserError(
            "VaVAM drives from a video model, and none is given: name one with --video, or let it "
            "learn from nothing with --model.train-vavim."
        )
    if run.model.expert.commands < len(COMMANDS):
        raise UserError(
            f"The data know {len(COMMANDS)} commands ({', '.join(COMMANDS)}), the expert only "
            f"{run.model.expert.commands}; raise --model.expert.commands."
        )
    device = pick_device(run.device)
    horizon = run.model.expert.horizon
    split = load_driving(run.data, vavim, horizon=horizon, inputs=Inputs.of(run))
    torch.manual_seed(run.train.seed)
    model, start = VaVAM(run.model), "random weights"
    tokenizer = None if run.tokenizer is None else resolve(run.tokenizer)
    if run.train.start_from is not None:
        start = f"weights and moments of {run.train.start_from}"
    video = None if run.video is None else weights_of(run.video, "vavim", "--video")
    split.inputs.start("video", video)
    if video is not None:
        start_from(model.vavim, video, tokenizer=split.tokenizer and split.tokenizer.hash)
        tokenizer = tokenizer or video.tokenizer_path
        start = f"video model {run.video}"
    init = None if run.init is None else weights_of(run.init, "vavam", "--init")
    split.inputs.start("init", init)
    if init is not None:
        start_from(model, init, tokenizer=split.tokenizer and split.tokenizer.hash)
        start = f"weights of {run.init}"
    return fit(
        run, VERB, model, split, tokenizer=tokenizer, device=device, start=start, stage="action"
    )


def _defaults(chosen: dict[str, str]) -> VaVAMRun:
    return recipe(**checked(chosen, size=[*SIZES]))


VERB = TrainingVerb(name="train vavam", cls=VaVAMRun, recipe=_defaults, choices=("size", "video"))


def command(args: Sequence[str]) -> None:
    """`foreact train vavam`."""
    train_vavam(VERB.parse(args))
