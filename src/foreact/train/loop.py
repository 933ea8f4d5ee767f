"""The training loop: optimiser steps with averaging, evaluation, saving and exact resume.

A resumed run equals an uninterrupted one because micro-batch m of the whole run depends on m alone
(its samples by `batches(start=m, ...)`, every draw by a generator seeded from (seed, m)), and the
learning rate on the step alone. With R processes and A accumulated micro-batches, rank r's a-th
micro-batch of step s is m = (s A + a) R + r; so one process with A = 2 does what two processes with
A = 1 do.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.files import finite
from foreact.machine import Precision, autocast, choose_precision
from foreact.train import parallel
from foreact.train.checkpoint import (
    BestTable,
    Checkpoints,
    Export,
    capture,
    find_checkpoint,
    require_same_training,
)
from foreact.train.config import TrainConfig, schedule_change
from foreact.train.ema import EMA
from foreact.train.evaluation import (
    Evaluator,
    due,
    filled,
    hollow_copy,
    measure,
    not_finite,
    ranking_value,
    require_known,
)
from foreact.train.logs import Averages, Clock, Logs, ProgressLine, read_log
from foreact.train.optim import build_optimizer, clip_gradients, set_lr
from foreact.train.result import TrainResult
from foreact.train.rng import seeded
from foreact.train.signals import StopSignals, only_run_in
from foreact.types import Batch

Batches = Callable[[int, int, int], Iterator[Batch]]
Prepare = Callable[[Batch, torch.Generator], Batch]


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    run_dir: Path,
    *,
    prepare: Prepare | None = None,
    evaluators: Sequence[Evaluator] = (),
    export: Export | None = None,
    device: torch.device | str | None = None,
    resume: Literal["auto", "never", "must"] = "auto",
    begin: Callable[[], None] | None = None,
) -> TrainResult:
    """Train `model` in place, and leave checkpoints and a log in `run_dir`.

    Started by torchrun, it trains with all processes; then every process makes this same call.

    Args:
        model: a `foreact.types.Trainable` module.
        batches: `batches(start, rank, world)` yields this process's micro-batches start + rank, +
            world, ... of an endless, reproducible sequence.
        config: how to train.
        run_dir: folder of the run; created if missing.
        prepare: work on a batch on the device before the forward, without gradients, such as
            encoding video.
        evaluators: measurements during training.
        export: writes the weights to share (averaged ones if the average is on; CPU tensors by
            name) to the path it is given; called for every checkpoint.
        device: where to train; None for this process's GPU, else the CPU.
        resume: "auto" goes on from the newest checkpoint in `run_dir` if there is one, "must"
            demands one, "never" demands that there is none.
        begin: called on the first process as soon as nothing can refuse the run any more and its
            folder is locked, such as to write down what the run is.

    Returns:
        How it ended; on Ctrl-C too, after the current step is saved.

    Raises:
        UserError: another run's folder, a changed setting, data that end, a full disk, a loss or a
            last evaluation that is not finite.
    """
    began = time.perf_counter()
    if resume not in ("auto", "never", "must"):
        raise UserError(f"resume should be auto, never or must, found '{resume}'.")
    with (
        StopSignals() as signals,
        parallel.world(device, timeout_minutes=config.timeout_minutes) as world,
        only_run_in(run_dir) if world.rank == 0 else nullcontext(),
    ):
        run = _Run(model, config, run_dir, world, list(evaluators), export, prepare)
        run.restore(resume)
        return run.go(batches, signals, began, begin)


class _Run:
    """State of one call of `train`; a checkpoint's train.json restores the counters below."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        run_dir: Path,
        world: parallel.World,
        evaluators: list[Evaluator],
        export: Export | None,
        prepare: Prepare | None,
    ) -> None:
        self.run_dir, self.world = run_dir, world
        self.checkpoints = Checkpoints(run_dir / "checkpoints", world)
        self.config = config = self.with_precision(config)
        self.precision: Precision = choose_precision(config.precision, world.device)
        self.evaluators, self.export, self.prepare = evaluators, export, prepare
        require_known(config.best_metric, evaluators)
        self.model = model.to(world.device)
        self.sharded = config.parallel == "fsdp" and world.size > 1
        self.hollow = (
            hollow_copy(self.model) if self.sharded and world.rank == 0 and evaluators else None
        )
        if self.sharded:
            world.shard(self.model, half=self.precision == "bf16")
        self.optimizer = build_optimizer(
            self.model, lr=config.lr, weight_decay=config.weight_decay, betas=config.betas
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.ema = EMA(self.model, config.ema) if config.ema.enabled else None
        self.rng = torch.Generator(device=world.device)
        self.clock = Clock()
        self.step = 0
        self.saved: int | None = None
        self.superseded: list[int] = []
        self.evaluated = 0
        self.skipped = self.skipped_in_a_row = 0
        self.seconds_before = 0.0
        self.averages = Averages()
        self.best = BestTable(k=config.best_k if config.best_metric else 0, mode=config.best_mode)
        self.metrics: dict[str, float] = {}

    # --- state ------------------------------------------------------------------------------------

    def with_precision(self, config: TrainConfig) -> TrainConfig:
        """The config with one precision for all processes; each times its cores for "auto"."""
        steps = self.world.broadcast(self.checkpoints.steps())
        saved = self.checkpoints.record(steps[-1])["config"] if steps else None
        config = config.with_precision(self.world.device, saved)
        return dataclasses.replace(config, precision=self.world.broadcast(config.precision))

    def restore(self, resume: str) -> None:
        steps = self.world.broadcast(self.checkpoints.steps())
        if resume == "never" and steps:
            raise UserError(
                f"{self.run_dir} already holds a run at step {steps[-1]}; choose another folder, "
                "or allow to resume."
            )
        if resume == "must" and not steps:
            raise UserError(
                f"There is no checkpoint to resume in {self.run_dir}; check the folder."
            )
        if self.world.rank == 0:
            self.checkpoints.sweep()
        if not steps:
            if self.config.start_from is not None:
                self.start_from(self.config.start_from)
            return
        require_same_training(
            self.run_dir, self.checkpoints.record(steps[-1]), self.config, self.world.size
        )
        step = self.world.broadcast(self.checkpoints.newest_of(self.config))
        record = self.checkpoints.record(step)
        self.superseded = [later for later in steps if later > step]
        self.checkpoints.load(step, self.model, self.optimizer, self.ema)
        self.step = self.saved = record["step"]
        self.evaluated = record["evaluated"]
        self.skipped, self.skipped_in_a_row = record["skipped"], record["skipped_in_a_row"]
        self.seconds_before = record["seconds"]
        self.averages = Averages(record["averages"] if self.world.rank == 0 else None)
        self.metrics = {
            name: math.nan if value is None else value
            for name, value in record.get("metrics", {}).items()  # older records have none
        }
        self.earlier_config = record["config"]
        if (record["best_metric"], record["config"]["best_mode"]) == (
            self.config.best_metric,
            self.config.best_mode,
        ):
            # Offered one by one, as best_k may have changed; deleted checkpoints are left out.
            for step, value in record["best"]:
                if step in steps:
                    self.best.offer(step, value)
        if not self.superseded:
            self.prune()

    def start_from(self, path: Path) -> None:
        located = self.world.broadcast(find_checkpoint(path) if self.world.rank == 0 else None)
        if located is None:
            raise UserError(
                f"--train.start-from should be a run folder or one of its checkpoints; {path} "
                "holds none."
            )
        folder, step = located
        Checkpoints(folder, self.world).load_start(step, self.model, self.optimizer)
        if self.ema is not None:
            self.ema = EMA(self.model, self.config.ema)

    def prune(self) -> None:
        if self.world.rank == 0:
            self.checkpoints.prune(
                self.config.keep, protected=[*self.best.steps, *self.config.kept_steps]
            )

    def record(self, seconds: float) -> dict[str, Any]:
        return {
            "step": self.step,
            "config": self.config.to_json(),
            "world": self.world.size,
            "evaluated": self.evaluated,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "seconds": seconds,
            "averages": self.averages.sums,
            "metrics": finite(self.metrics),
            "best_metric": self.config.best_metric,
            "best": [list(entry) for entry in self.best.entries],
        }

    def weights(self) -> dict[str, Tensor]:
        """The weights to share and to measure, whole, on rank 0's CPU; every process calls it."""
        with self.ema.swapped(self.model) if self.ema is not None else nullcontext():
            return self.world.full_state(self.model)

    def save(self, seconds: float) -> None:
        parts = self.world.gather(self.averages.sums)
        self.averages = Averages.merge(parts if self.world.rank == 0 else [])
        self.checkpoints.save(
            self.step,
            capture(self.model, self.optimizer, self.ema),
            self.record(seconds),
            weights=self.weights,
            export=self.export,
        )
        self.saved = self.step
        self.prune()

    def result(self, *, interrupted: bool) -> TrainResult:
        assert self.saved is not None
        folder, best = self.checkpoints.path(self.saved), self.best.best
        inner = "weights" if self.export is not None else ""
        return TrainResult(
            step=self.step,
            finished=self.step >= self.config.steps,
            interrupted=interrupted,
            checkpoint=folder,
            weights=folder / "weights" if self.export is not None else None,
            best=None if best is None else self.checkpoints.path(best[0]) / inner,
            best_value=None if best is None else best[1],
            metrics=self.metrics,
            skipped=self.skipped,
        )

    # --- the loop ---------------------------------------------------------------------------------

    def go(
        self,
        batches: Batches,
        signals: StopSignals,
        began: float,
        begin: Callable[[], None] | None,
    ) -> TrainResult:
        config, world = self.config, self.world
        logs = self.open_logs(begin)
        bar = ProgressLine(start=self.step, total=config.steps, shown=logs is not None)
        stopping = interrupted = False

        def seconds() -> float:
            return self.seconds_before + time.perf_counter() - began

        try:
            if self.saved is not None:
                bar.say(f"resumed at step {self.step} from {self.checkpoints.path(self.saved)}")
                if self.superseded:
                    bar.say(
                        f"steps {self.step + 1} to {self.superseded[-1]}, in which the learning "
                        "rate dropped, are trained again at the rate of a longer run"
                    )
                if change := schedule_change(self.earlier_config, config, self.step):
                    bar.say(change)
            # An interruption left out the evaluation of the restored step.
            if self.evaluated < self.step:
                self.evaluate(logs, bar)
                self.checkpoints.rewrite_record(self.step, self.record(seconds()))
            self.model.train()
            if config.compile:
                self.model.compile()
            module = world.ddp(self.model)
            stream = batches(
                config.micro_batches(self.step).start * world.size, world.rank, world.size
            )
            self.clock.reset()
            while self.step < config.steps and not stopping:
                skipped = self.one_step(module, stream)
                bar.advance()
                timed_out = (
                    config.max_minutes is not None
                    and time.perf_counter() - began > 60 * config.max_minutes
                )
                interrupted, timed_out = world.any(signals.requested, timed_out)
                stopping = interrupted or timed_out
                if self.step % config.log_every == 0 or self.step == config.steps:
                    self.log(logs, bar, seconds())
                if skipped and self.skipped_in_a_row >= config.max_skipped:
                    self.record_divergence(logs)
                    raise UserError(
                        f"The loss or its gradient was not finite in {self.skipped_in_a_row} "
                        f"steps in a row (last: step {self.step}); lower --train.lr, set "
                        "--train.clip-grad, or look for bad samples in the data."
                    )
                paused = time.perf_counter()
                ranked = False if interrupted else self.evaluate(logs, bar)
                if stopping or ranked or self.must_save():
                    self.save(seconds())
                self.clock.leave_out(time.perf_counter() - paused)
            if self.step >= config.steps and (wrong := not_finite(self.metrics)):
                self.record_divergence(logs)
                raise UserError(self.about_divergence(wrong))
            return self.result(interrupted=interrupted)
        finally:
            bar.close()
            if logs is not None:
                logs.close()

    def open_logs(self, begin: Callable[[], None] | None) -> Logs | None:
        """The logs on rank 0, then `begin`; an error of either is raised on every process."""
        logs, error = None, None
        if self.world.rank == 0:
            try:
                if begin is not None:
                    begin()
                logs = Logs(self.run_dir, self.step, self.config)
                for step in self.superseded:  # of a drop that comes later now
                    self.checkpoints.remove(step)
            except UserError as problem:
                error = str(problem)
        if (error := self.world.broadcast(error)) is not None:
            if logs is not None:
                logs.close()
            raise UserError(error)
        return logs

    def record_divergence(self, logs: Logs | None) -> None:
        """The last entry of log.jsonl says how the run ended, once."""
        entry = {"step": self.step, "diverged": 1.0}
        if logs is not None and read_log(logs.path)[-1:] != [entry]:
            logs.write(self.step, {"diverged": 1.0})

    def about_divergence(self, wrong: str) -> str:
        skipped = f", {self.skipped} steps had no finite loss or gradient" if self.skipped else ""
        best = self.best.best
        kept = "" if best is None else f"; the best checkpoint is {self.checkpoints.path(best[0])}"
        return (
            f"The run diverged: after step {self.step} {wrong}{skipped}, so no weights are "
            f"published{kept}; {self.run_dir / 'log.jsonl'} tells when it began: lower --train.lr "
            "or lengthen --train.warmup, in another --out."
        )

    def must_save(self) -> bool:
        config = self.config
        return (
            self.step % config.save_every == 0
            or self.step == config.steps
            or self.step in config.kept_steps
        )

    def one_step(self, module: nn.Module, stream: Iterator[Batch]) -> bool:
        """One optimiser step; returns True if skipped for a non-finite loss or gradient."""
        config, world = self.config, self.world
        self.lr = set_lr(self.optimizer, config.lr_factor(self.step))
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[dict[str, Tensor]] = []
        own_numbers = config.micro_batches(self.step)
        for number in own_numbers:
            micro = number * world.size + world.rank
            wait_start = time.perf_counter()
            batch = next(stream, None)
            if batch is None:
                raise UserError(
                    f"The data ended at micro-batch {micro}; training needs an endless sequence."
                )
            self.clock.add(samples=len(batch) * world.size, waited=time.perf_counter() - wait_start)
            if number == own_numbers[0]:
                # Names the process that hangs, before the others wait for its gradients.
                world.align()
            parts.append(self.one_micro_batch(module, batch, micro, last=number == own_numbers[-1]))
        norm = clip_gradients(self.parameters, config.clip_grad)
        names = [(i, name) for i, part in enumerate(parts) for name in part]
        # One transfer, so that the GPU is waited for once.
        numbers = torch.stack([norm, *(parts[i][name].to(norm) for i, name in names)]).tolist()
        logged = dict(zip(names, numbers[1:], strict=True))
        values = [{name: logged[i, name] for name in part} for i, part in enumerate(parts)]
        bad = not (math.isfinite(numbers[0]) and all(math.isfinite(v["loss"]) for v in values))
        (bad,) = world.any(bad)
        sums: Sequence[Tensor] = getattr(self.model, "step_sums", ())
        if bad:
            for total in sums:
                total.zero_()
            self.skipped += 1
            self.skipped_in_a_row += 1
        else:
            self.skipped_in_a_row = 0
            self.optimizer.step()
            world.sum(sums)
            if (after_step := getattr(self.model, "after_step", None)) is not None:
                after_step()
            if self.ema is not None:
                self.ema.update(self.model)
            for part in values:
                self.averages.add(part)
            self.averages.add({"grad_norm": numbers[0]})
        self.step += 1
        return bad

    def one_micro_batch(
        self, module: nn.Module, batch: Batch, micro: int, *, last: bool
    ) -> dict[str, Tensor]:
        batch = batch.to(self.world.device)
        rng = seeded(self.rng, self.config.seed, micro)
        if self.prepare is not None:
            with torch.no_grad():
                batch = self.prepare(batch, rng)
        with self.world.accumulating(module, last):
            with autocast(self.world.device, self.precision):
                out = module(batch, rng=rng)
            share = 1.0 / self.config.accumulate if self.config.accumulation == "mean" else 1.0
            (out.loss * share).backward()
        logged = {name: value.detach().float().reshape(()) for name, value in out.logs.items()}
        return {**logged, "loss": out.loss.detach().float()}

    def log(self, logs: Logs | None, bar: ProgressLine, seconds: float) -> None:
        merged = Averages.merge(self.world.gather(self.averages.sums))
        self.averages = Averages()
        values = {
            **merged.means(),
            "lr": self.lr,
            "skipped": self.skipped,
            **self.clock.read(),
            "seconds": seconds,
        }
        if logs is not None:
            logs.write(self.step, values)
        bar.show(self.step, values)

    def evaluate(self, logs: Logs | None, bar: ProgressLine) -> bool:
        """Run the evaluators that are due; returns whether the step is now among the best."""
        self.evaluated = self.step
        evaluators = due(self.evaluators, self.step, self.config)
        if not evaluators:
            return False
        metrics: dict[str, float] = {}
        gathered = self.weights() if self.sharded else {}
        if logs is not None:  # rank 0
            bar.say(f"step {self.step}: measuring {', '.join(e.name for e in evaluators)}")
            if self.hollow is None:
                metrics = measure(evaluators, self.model, self.ema, self.step)
            else:
                metrics = measure(
                    evaluators, filled(self.hollow, gathered, self.world.device), None, self.step
                )
            logs.write(self.step, metrics)
            bar.say("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
            if (wrong := not_finite(metrics)) and self.step < self.config.steps:
                bar.say(
                    f"step {self.step}: {wrong}; the training has diverged, or validation data are "
                    "bad: stop it (Ctrl-C) and lower --train.lr, unless you expect this."
                )
        metrics = self.metrics = self.world.broadcast(metrics)
        value = ranking_value(metrics, self.config.best_metric, evaluators)
        return value is not None and self.best.offer(self.step, value)
