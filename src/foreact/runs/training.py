"""A training from start to weights: print the set-up, learn from windows, publish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foreact.checkpoints.format import load_checkpoint, save_checkpoint
from foreact.data.windows.loader import Windows, batches
from foreact.runs.run import R, Run, is_main_process, open_run, resources, say
from foreact.train.checkpoint import Export
from foreact.train.evaluation import Evaluator
from foreact.train.loop import Prepare, TrainResult, train
from foreact.types import Batch


def begin(run: R, device: torch.device, title: str, *, free: Sequence[str] = (), **facts: Any) -> R:
    """Open the run's folder and say what was resolved; see `foreact.runs.run.open_run`.

    Args:
        run: as asked for.
        device: where it trains.
        title, facts: what to say, before what it computes on.
        free: what else a resumed run may change, beside its device and its training settings.

    Returns:
        The run as written.
    """
    run = open_run(run, device, free=("train", "device", "out", *free))
    say(title, **facts, **resources(run.train, device), seed=run.train.seed, out=run.out)
    return run


def train_on(
    windows: Windows,
    model: nn.Module,
    run: Run,
    *,
    verb: str,
    evaluators: Sequence[Evaluator],
    export: Export,
    device: torch.device,
    prepare: Prepare | None = None,
) -> TrainResult:
    """Train on windows, in the order that the run's seed decides; see `foreact.train.loop.train`.

    An interruption ends the program with the line that says how to go on.

    Args:
        windows: what to learn from.
        model: trained in place.
        run: where and how.
        verb: of the command line, such as "train vq".
        evaluators, export, device, prepare: as in `train`.
    """

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
    card: Mapping[str, Any],
    best: bool = False,
    tokenizer: Path | None = None,
    leave_out: tuple[str, ...] = (),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write exported weights and their metrics to `run.out/weights`; returns that folder.

    Their family, spec, statistics and tokenizer are those of the export.

    Args:
        run: where.
        result: of its training.
        config: of the module.
        card: provenance; the steps and the last metrics are added.
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
            card={**card, "steps": result.step, **result.metrics},
        )
        facts = {k: f"{v:.4f}" for k, v in result.metrics.items()} if facts is None else facts
        say("Done", weights=final, hash=digest, **facts)
    return final
