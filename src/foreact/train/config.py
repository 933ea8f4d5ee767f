"""The typed settings of a training run, and which of them a resumed run may change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from foreact import machine
from foreact.errors import UserError
from foreact.machine import AnyPrecision
from foreact.seeds import require_seeds
from foreact.train.ema import EMAConfig
from foreact.train.schedules import Schedule, lr_factor

# Free to change on resume: they do not affect the gradient of a given step, except the precision,
# which is kept unless another one is asked for (see `with_precision`). `accumulate` is checked
# together with the number of processes.
FREE_ON_RESUME = frozenset(
    {
        "steps",
        "accumulate",
        "workers",
        "log_every",
        "save_every",
        "keep",
        "best_k",
        "best_metric",
        "best_mode",
        "eval_every",
        "compile",
        "max_minutes",
        "max_skipped",
        "timeout_minutes",
        "tensorboard",
        "wandb",
        "parallel",
        "keep_at",
        "precision",
    }
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; what is trained (model, data) is configured elsewhere."""

    steps: int = 10_000
    """Optimiser steps of the run and its schedule; a resumed run may raise it. With a drop
    (schedule wsd) it then goes on from before the drop, bitwise as if it had never stopped.

    On the command line, fewer than a recipe's shorten its warm-up and drop in proportion.
    """
    batch_size: int = 32
    """Samples per micro-batch and process; the global batch is batch_size * accumulate * processes.
    """
    accumulate: int = 1
    """Micro-batches per process and optimiser step."""
    accumulation: Literal["mean", "sum_first_alone"] = "mean"
    """How the gradients of a step's micro-batches combine. sum_first_alone: as in the published VOC
    runs, their sum, and the first step takes one micro-batch alone.
    """
    lr: float = 1e-4
    """Base learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the first and second moment."""
    weight_decay: float = 0.02
    """AdamW's decoupled weight decay, for the parameter groups that want it."""
    schedule: Schedule = "cosine"
    """Learning rate after the warmup."""
    warmup: int = 1000
    """Optimiser steps of linear warmup."""
    schedule_steps: int | None = None
    """Optimiser steps over which the schedule is stretched; None: `steps`. More than `steps` ends
    it half way, as in the published VOC runs; such a run, resumed with more `steps`, is bitwise one
    that had never stopped.
    """
    drop: int = 0
    """Schedule wsd: optimiser steps at the end over which the learning rate falls; 0: none."""
    floor: float = 0.1
    """Schedule wsd: share of the learning rate that is left at the end of the drop."""
    clip_grad: float | None = 1.0
    """Greatest gradient norm; None: no clipping."""
    precision: AnyPrecision = "auto"
    """Autocast type of the forward pass; weights and optimiser stay float32. auto: bf16 where the
    device computes it faster than fp32, and on resume what the run began with.
    """
    ema: EMAConfig = field(default_factory=EMAConfig)
    """Averaged weights."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: ddp, each holds the whole model; fsdp, each holds a share of weights,
    gradients, moments and average (FSDP2).
    """
    start_from: Path | None = None
    """Checkpoint of another run (its run folder: the newest one) whose weights and optimiser
    moments a new run takes over. Steps, schedule, data and average begin anew; the moments' own
    count does not, so there is no second bias correction.
    """
    seed: int = 42
    """Seed of every draw: micro-batch m draws from a generator seeded by (seed, m)."""
    workers: int | Literal["auto"] = "auto"
    """Loader processes. auto: none where the CPU trains, since they would take its cores; else as
    many as there are cores for, up to 8.
    """
    log_every: int = 20
    """Optimiser steps per entry of log.jsonl."""
    save_every: int = 1000
    """Optimiser steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints to keep."""
    keep_at: tuple[int, ...] = ()
    """Steps to save and to keep for good. With a drop, the last step before it always is one."""
    best_k: int = 1
    """Best checkpoints to keep beside the newest; 0: none."""
    best_metric: str | None = None
    """Metric that ranks checkpoints, as "<evaluator>/<metric>"; None: no ranking."""
    best_mode: Literal["max", "min"] = "max"
    """Whether more or less of best_metric is better."""
    eval_every: int = 1000
    """Optimiser steps between evaluations, for evaluators with no rhythm of their own."""
    compile: bool = False
    """Compile the model with torch.compile."""
    max_minutes: float | None = None
    """Stop after this wall time, saved and resumable; None: no limit. Schedules ignore it."""
    max_skipped: int = 20
    """Consecutive steps with a non-finite loss or gradient after which training gives up."""
    timeout_minutes: float = 10.0
    """With several processes: how long one may wait for another before the run ends with an error.
    """
    tensorboard: bool = True
    """Write TensorBoard curves when tensorboard is installed."""
    wandb: str | None = None
    """Weights & Biases project to log to; None: off."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "log_every",
            "save_every",
            "keep",
            "eval_every",
            "max_skipped",
        ):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{spelled(name)} should be at least 1, found {getattr(self, name)}."
                )
        require_seeds(self.seed, option="--train.seed")
        for name in ("warmup", "drop", "workers", "best_k", "weight_decay"):
            if getattr(self, name) != "auto" and getattr(self, name) < 0:
                raise UserError(
                    f"{spelled(name)} should be 0 or more, found {getattr(self, name)}."
                )
        for name in ("lr", "clip_grad", "max_minutes", "timeout_minutes"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"{spelled(name)} should be a positive number, found {value}.")
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise UserError(f"--train.betas should be two numbers in [0, 1), found {self.betas}.")
        for name, choices in (
            ("schedule", get_args(Schedule)),
            ("accumulation", ("mean", "sum_first_alone")),
            ("precision", get_args(AnyPrecision)),
            ("parallel", ("ddp", "fsdp")),
            ("best_mode", ("max", "min")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{spelled(name)} should be one of {', '.join(choices)}, found "
                    f"'{getattr(self, name)}'."
                )
        if self.schedule_steps is not None and self.schedule_steps < self.steps:
            raise UserError(
                f"--train.schedule-steps ({self.schedule_steps}) should be at least --train.steps "
                f"({self.steps})."
            )
        if self.drop and self.schedule != "wsd":
            raise UserError(
                "--train.drop belongs to --train.schedule wsd; leave it out with "
                f"'{self.schedule}', or choose wsd."
            )
        if self.warmup + self.drop > self.steps:
            parts = [f"{spelled(n)} ({v})" for n in ("warmup", "drop") if (v := getattr(self, n))]
            raise UserError(
                f"{' and '.join(parts)} should not exceed --train.steps ({self.steps}); raise the "
                "steps, or lower what comes before."
            )
        if not 0.0 <= self.floor <= 1.0:
            raise UserError(f"--train.floor should be in [0, 1], found {self.floor}.")
        if any(step < 1 for step in self.keep_at):
            raise UserError(f"--train.keep-at should hold steps from 1 on, found {self.keep_at}.")

    def with_precision(
        self, device: torch.device, saved: Mapping[str, Any] | None = None
    ) -> TrainConfig:
        """This config with the precision that "auto" means on a device.

        Args:
            device: where this process trains.
            saved: config of the run to resume, as from `to_json`; its precision is kept.

        Raises:
            UserError: the device cannot compute in the precision that was asked for.
        """
        saved_precision = (saved or {}).get("precision", "auto")
        requested = saved_precision if self.precision == "auto" else self.precision
        if (
            self.precision == "auto"
            and saved_precision == "bf16"
            and not machine.bfloat16(device).possible
        ):
            why = machine.bfloat16(device).why
            raise UserError(f"The run began in bf16, but {why}; go on with --train.precision fp32.")
        return dataclasses.replace(self, precision=machine.choose_precision(requested, device))

    def loader_processes(self, device: torch.device) -> int:
        """How many processes prepare batches for one that trains on a device."""
        return machine.loader_processes(device) if self.workers == "auto" else self.workers

    def lr_factor(self, step: int) -> float:
        """Factor on `lr` at optimiser step `step`, counted from 0."""
        return _factor(vars(self), step)

    def micro_batches(self, step: int) -> range:
        """Numbers, per process, of the micro-batches of optimiser step `step`, counted from 0."""
        first = step * self.accumulate
        if self.accumulation == "sum_first_alone":
            first = max(0, first - self.accumulate + 1)
            return range(first, step * self.accumulate + 1)
        return range(first, first + self.accumulate)

    @property
    def kept_steps(self) -> frozenset[int]:
        """Steps whose checkpoints are never pruned: `keep_at`, and the last before the drop."""
        before_drop = {self.steps - self.drop} if 0 < self.drop < self.steps else set()
        return frozenset(self.keep_at) | before_drop

    def to_json(self) -> dict[str, Any]:
        raw = dataclasses.asdict(self)
        raw["betas"], raw["keep_at"] = list(self.betas), list(self.keep_at)
        raw["start_from"] = None if self.start_from is None else str(self.start_from)
        return raw

    def require_resumable(self, saved: Mapping[str, Any], *, world: int, saved_world: int) -> None:
        """Check that a run started with `saved` (as from `to_json`) may go on with this config.

        Args:
            saved: config of the run to resume.
            world: number of processes now.
            saved_world: number of processes when the checkpoint was written.

        Raises:
            UserError: a setting that changes the mathematics differs, named with both values.
        """
        now = self.to_json()
        # A setting younger than the run was at its default.
        saved = {**TrainConfig().to_json(), **saved}
        for name in sorted(set(now) - FREE_ON_RESUME):
            if saved[name] != now[name]:
                entry, old, new = first_difference(name, saved[name], now[name])
                raise UserError(
                    f"The run to resume has {spelled(entry)} {old}, now it is {new}; give the "
                    "same, or another --out for a new run."
                )
        if self.accumulation == "sum_first_alone" and (self.accumulate, world) != (
            saved["accumulate"],
            saved_world,
        ):
            raise UserError(
                f"With --train.accumulation {self.accumulation} a run goes on as it began, with "
                f"--train.accumulate {saved['accumulate']} on {saved_world} processes; found "
                f"{self.accumulate} on {world}."
            )
        if self.accumulate * world != saved["accumulate"] * saved_world:
            raise UserError(
                f"The run to resume takes {saved['accumulate'] * saved_world} micro-batches per "
                f"step (--train.accumulate {saved['accumulate']} x {saved_world} processes), now "
                f"it would be {self.accumulate * world} ({self.accumulate} x {world}); keep the "
                "product."
            )


def first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Dotted name and values of the first entry in which two unequal JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *old]:
            if old.get(key) != new.get(key):
                return first_difference(f"{name}.{key}", old.get(key), new.get(key))
    return name, old, new


def same_rates(saved: Mapping[str, Any], config: TrainConfig, step: int) -> bool:
    """Whether the learning rates of a run's first `step` steps are those of the settings now.

    Args:
        saved: config of the run, as from `to_json`.
        config: the settings now.
        step: optimiser steps done.
    """
    saved, now = {**TrainConfig().to_json(), **saved}, config.to_json()
    return all(math.isclose(_factor(saved, s), _factor(now, s), abs_tol=1e-9) for s in range(step))


def schedule_change(saved: Mapping[str, Any], config: TrainConfig, step: int) -> str:
    """What the learning rate of a resumed run does, where its schedule is stretched or shortened.

    Args:
        saved: config of the run to resume, as from `to_json`.
        config: the settings now.
        step: optimiser steps done.

    Returns:
        Sentences; empty where the steps done had the learning rates of the schedule as it is now.
    """
    if same_rates(saved, config, step):
        return ""
    saved, now = {**TrainConfig().to_json(), **saved}, config.to_json()
    before, after = _length(saved), _length(now)
    last, following = config.lr * _factor(saved, step - 1), config.lr * _factor(now, step)
    goes_on = ""
    if step < config.steps:
        end = config.lr * _factor(now, config.steps - 1)
        goes_on = f"; over {after} steps it goes on at {following:.3g} and ends at {end:.3g}"
    return (
        f"learning rate: {config.schedule} over {before} steps, it had come to {last:.3g} by step "
        f"{step}{goes_on}. This is another training than {after} steps without a stop; for that, a "
        f"run begins with --train.schedule-steps {after}, or with --train.schedule wsd and a "
        "--train.drop."
    )


def _factor(settings: Mapping[str, Any], step: int) -> float:
    return lr_factor(
        settings["schedule"],
        step,
        warmup=settings["warmup"],
        steps=_length(settings),
        drop=settings["drop"],
        floor=settings["floor"],
    )


def _length(settings: Mapping[str, Any]) -> int:
    """Optimiser steps of the schedule."""
    return settings["schedule_steps"] or settings["steps"]


def spelled(name: str) -> str:
    """A setting as the command line spells it."""
    return f"--train.{name.replace('_', '-')}"
