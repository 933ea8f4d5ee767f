"""A training from start to weights: print the set-up, learn from windows, publish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foreact.checkpoints.format import load_checkpoint, save_checkpoint
from foreact.data.windows.loader import Windows, batches
from foreact.files import finite
from foreact.runs.inputs import Inputs
from foreact.runs.run import R, Run, check_run, is_main_process, resources, say, write_run
from foreact.train.checkpoint import Export, newest_record
from foreact.train.config import TrainConfig
from foreact.train.evaluation import Evaluator
from foreact.train.loop import Prepare, TrainResult, train
from foreact.types import Batch


def begin(run: R, device: torch.device, title: str, **facts: Any) -> R:
    """Check the run and say what was resolved; its folder is written to by `train_on` alone.

    Args:
        run: as asked for.
        device: where it trains.
        title, facts: what to say, before what it computes on.

    Returns:
        The run as it will be written; see `foreact.runs.run.check_run`.
    """
    run = check_run(run, device)
    if (record := newest_record(run.out)) is not None:
        facts["start"] = f"step {record['step']} of {run.out}"
    schedule = describe_schedule(run.train)
    facts = {**facts, "schedule": schedule, **resources(run.train, device)}
    say(title, **facts, seed=run.train.seed, out=run.out)
    return run


def describe_schedule(config: TrainConfig) -> str:
    """One line for people: how many steps, and what the learning rate does in them."""
    length = config.schedule_steps or config.steps
    parts = [
        f"{config.steps} steps",
        f"{config.schedule} over {length}" if length != config.steps else config.schedule,
        *([f"warm-up {config.warmup}"] if config.warmup else []),
        *([f"drop {config.drop}"] if config.drop else []),
    ]
    return ", ".join(parts)


def train_on(
    windows: Windows,
    model: nn.Module,
    run: Run,
    *,
    verb: str,
    inputs: Inputs,
    evaluators: Sequence[Evaluator],
    export: Export,
    device: torch.device,
    prepare: Prepare | None = None,
) -> TrainResult:
    """Train on windows, in the order that the run's seed decides; see `foreact.train.loop.train`.

    What the run is, is written down once its folder is locked and nothing refuses it any more. An
    interruption ends the program with the line that says how to go on.

    Args:
        windows: what to learn from.
        model: trained in place.
        run: where and how.
        verb: of the command line, such as "train vq".
        inputs: what it learns from and starts with; kept in the run's folder.
        evaluators, export, device, prepare: as in `train`.
    """

    inputs.require_all()

    def micro_batches(start: int, rank: int, world: int) -> Iterator[Batch]:
        return batches(
            windows,
            batch_size=run.train.batch_size,
            seed=run.train.seed,
            workers=run.train.loader_processes(device),
            start=start,
            rank=rank,
            world=world,
        )

    result = train(
        model,
        micro_batches,
        run.train,
        run.out,
        prepare=prepare,
        evaluators=evaluators,
        export=export,
        device=device,
        begin=lambda: write_run(run, inputs),
    )
    if result.interrupted:
        if is_main_process():
            print(
                f"Stopped after step {result.step}; everything is saved. Go on with: foreact "
                f"{verb} --from {run.out}"
            )
        raise SystemExit(130)
    return result


def publish(
    run: Run,
    result: TrainResult,
    *,
    config: Any,
    inputs: Inputs,
    card: Mapping[str, Any],
    best: bool = False,
    tokenizer: Path | None = None,
    leave_out: tuple[str, ...] = (),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write exported weights and their metrics to `run.out/weights`; returns that folder.

    Their family, spec, statistics, tokenizer and instructions are those of the export.

    Args:
        run: where.
        result: of its training.
        config: of the module.
        inputs: what it learned from and began with, for the card.
        card: further provenance; the steps and the last metrics are added.
        best: take the best weights where checkpoints are ranked, instead of the newest.
        tokenizer: checkpoint of the tokenizer that the export only refers to, to embed.
        leave_out: how the names of tensors begin that nothing but the training needs.
        facts: what to say of the result; None: the last metrics, to four digits.
    """
    final = run.out / "weights"
    if is_main_process():
        exported = (result.best if best else None) or result.weights
        assert exported is not None
        trained = load_checkpoint(exported)
        digest = save_checkpoint(
            final,
            family=trained.family,
            config=config,
            state={name: t for name, t in trained.state.items() if not name.startswith(leave_out)},
            spec=trained.spec,
            stats=trained.stats,
            tokenizer=tokenizer or trained.tokenizer_path or trained.tokenizer,
            text=trained.text,
            # JSON knows no infinity, such as the PSNR of equal pictures.
            card={**card, **inputs.to_json(), "steps": result.step, **finite(result.metrics)},
        )
        facts = {k: f"{v:.4f}" for k, v in result.metrics.items()} if facts is None else facts
        say("Done", weights=final, hash=digest, **facts)
    return final
