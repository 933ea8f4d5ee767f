"""What training VaViM and VaVAM have in common: published batch, loop, finished weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foreact.checkpoints.format import content_hash, family_of, save_checkpoint
from foreact.errors import UserError
from foreact.families.driving.sources import DrivingData, DrivingSplit
from foreact.runs.options import TrainingRun
from foreact.runs.plan import plan
from foreact.runs.run import process_count
from foreact.runs.training import begin, publish, train_on
from foreact.runs.validation import ValidationLoss
from foreact.runs.verb import TrainingVerb

GLOBAL_BATCH = 384
"""Windows per optimiser step in all stages of the released models."""


@dataclass(frozen=True, kw_only=True)
class Drives:
    """What to learn from, and at which size."""

    size: str = "debug"
    """debug (two cores), or a published size: S, B, L. Sets the defaults below."""
    data: DrivingData = field(default_factory=DrivingData)
    tokenizer: str | None = None
    """Checkpoint of the tokenizer that made the tokens, to embed in the finished weights."""


@dataclass(frozen=True, kw_only=True)
class DrivingRun(TrainingRun, Drives):
    """What the runs of both families have."""

    free_on_resume: ClassVar[tuple[str, ...]] = (
        *TrainingRun.free_on_resume,
        "plan",
        "plan_tflops",
    )

    plan: bool = False
    """Print what the run would cost (parameters, memory, steps, tokens) and stop."""
    plan_tflops: float | None = None
    """With --plan: measured sustained TFLOP/s per process, for an estimate of the time."""


def accumulation(batch_size: int) -> int:
    """Micro-batches per step that make the published global batch with torchrun's processes."""
    per_round = batch_size * process_count()
    if GLOBAL_BATCH % per_round:
        raise UserError(
            f"{process_count()} processes with {batch_size} windows each do not divide the "
            f"published batch of {GLOBAL_BATCH}; start another number of processes."
        )
    return GLOBAL_BATCH // per_round


def show_plan(
    run: DrivingRun, model: type[nn.Module], tokens_per_sample: int | Mapping[str, int], vocab: int
) -> None:
    """Print what the run would cost, without data or training; see `foreact.runs.plan.plan`."""
    with torch.device("meta"):
        shapes_only = model(run.model)
    cost = plan(
        shapes_only,
        run.train,
        tokens_per_sample=tokens_per_sample,
        processes=process_count(),
        vocab=vocab,
        tflops=run.plan_tflops,
    )
    print(cost)


def embedded_tokenizer(path: Path | None, split: DrivingSplit) -> Path | None:
    """The tokenizer checkpoint to embed in the finished weights, checked against the tokens'."""
    if path is None:
        return None
    if (family := family_of(path)) != "vq":
        raise UserError(
            f"--tokenizer expects the tokenizer that made the tokens, a vq; {path} "
            f"holds a {family}."
        )
    if split.tokenizer is not None and (hash_ := content_hash(path)) != split.tokenizer.hash:
        raise UserError(
            f"The tokens were made with the tokenizer {split.tokenizer.hash}, {path} has the hash "
            f"{hash_}; name the one that made them, or tokenize again."
        )
    return path


def fit(
    run: DrivingRun,
    verb: TrainingVerb[Any],
    model: nn.Module,
    split: DrivingSplit,
    *,
    tokenizer: Path | None,
    device: torch.device,
    start: str,
    stage: str,
) -> Path:
    """Train; returns the folder of the finished weights, `run.out/weights`, with `tokenizer`."""
    family = verb.name.removeprefix("train ")
    tokenizer = embedded_tokenizer(tokenizer, split)
    inputs = split.inputs
    tokens = None if split.tokenizer is None else split.tokenizer.hash
    inputs.note("tokenizer", tokens if tokenizer is None else content_hash(tokenizer))
    evaluator = ValidationLoss(split.validation)  # reads its windows, before anything is written
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run = begin(
        run,
        device,
        f"Training {family}, stage '{stage}'",
        data=split.about,
        windows=f"{len(split.training)} to train on, {len(split.validation)} to validate, "
        f"{run.data.rate_hz:g} Hz",
        model=f"{run.size}, {trainable:,} of {parameters:,} parameters learn",
        start=start,
    )

    def export(state: Mapping[str, Tensor], path: Path) -> None:
        save_checkpoint(
            path,
            family=family,
            config=run.model,
            state=state,
            spec=split.spec,
            tokenizer=split.tokenizer,
        )

    result = train_on(
        split.training,
        model,
        run,
        verb=verb.name,
        inputs=inputs,
        evaluators=[evaluator],
        export=export,
        device=device,
    )
    card = {
        "command": verb.command(run),
        "stage": stage,
        "start": start,
        "sources": split.about,
    }
    return publish(
        run, result, config=run.model, inputs=inputs, card=card, best=True, tokenizer=tokenizer
    )
