"""Training a model that learns from windows of a task's episodes and needs nothing else, such as a family of yours."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreact.checkpoints.format import load_checkpoint, save_checkpoint
from foreact.checkpoints.start import start_from, weights_of
from foreact.data.windows.loader import WindowDataset
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.plugs import Family
from foreact.runs.run import is_main_process, open_run, parse_run, pick_device, resources, say, train_on
from foreact.runs.stores import open_task_store, split_store
from foreact.runs.validation import ValidationLoss
from foreact.tasks import find_task
from foreact.train.config import TrainConfig
from foreact.types import StreamSpec


@dataclass(frozen=True, kw_only=True)
class PlainRun:
    """Train on windows of a task's episodes."""

    task: str
    """A built-in task or the import path of a module that exports TASK."""
    data: Path | None = None
    """Store to learn from; None: the task's own, data/<task>.zarr."""
    init: str | None = None
    """Weights of the same sizes to start from."""
    out: Path = Path("runs/plain")
    """Folder of the run; an interrupted run in it is resumed."""
    val_ratio: float = 0.1
    """Share of the episodes kept for validation."""
    device: str | None = None
    """Where to train; None: CUDA if there is one."""
    model: Any = None
    train: TrainConfig = field(default_factory=TrainConfig)


def train_plain(
    family: Family,
    args: Sequence[str],
    *,
    task: str,
    window: Callable[[Any], Window],
    fit: Callable[[Any, StreamSpec], Any] | None = None,
    train: TrainConfig | None = None,
) -> Path:
    """The verb `foreact train NAME` of a family that learns from windows: parse, train, write the weights.

    Statistics of actions and states are fitted on the training side; both are brought to [-1, 1].

    Args:
        family: whose config and module are trained.
        args: command line after the verb.
        task: the default task.
        window: config -> the steps of one sample.
        fit: config and the data's spec -> the config with the sizes that the data decide.
        train: default schedule.

    Returns:
        The folder of the finished weights, `run.out / "weights"`.
    """
    config, module = family.get("config"), family.get("module")
    cls = dataclasses.make_dataclass(
        "PlainRun", [("model", config, field(default_factory=config))], bases=(PlainRun,), frozen=True, kw_only=True,
    )  # fmt: skip
    cls.__doc__ = f"Train {family.title}."
    default = cls(task=task, out=Path("runs") / family.verb, train=train or TrainConfig())
    prog = f"foreact train {family.verb}"
    run: PlainRun = parse_run(
        cls, args, prog=prog, recipe=lambda chosen: dataclasses.replace(default, **chosen), choices=("task",)
    )

    device = pick_device(run.device)
    store = open_task_store(find_task(run.task), run.data)
    if fit is not None:
        run = dataclasses.replace(run, model=fit(run.model, store.spec))
    sides = split_store(store, run.val_ratio, run.train.seed)
    normalizer = Normalizer.fit_store(store, sides[0], "limits")
    training, validation = (WindowDataset(store, window(run.model), side, normalizer) for side in sides)
    torch.manual_seed(run.train.seed)
    model = module(run.model)
    if run.init is not None:
        start_from(model, weights_of(run.init, family.name))
    run = open_run(run, device, free=("train", "device", "out"))
    say(
        f"Training {family.title}",
        data=f"{store.path}: {len(training)} windows to train on, {len(validation)} to validate",
        model=f"{sum(p.numel() for p in model.parameters()):,} parameters",
        start=run.init or "random weights",
        **resources(run.train, device),
        seed=run.train.seed,
        out=run.out,
    )

    def export(state: Mapping[str, Tensor], path: Path) -> None:
        save_checkpoint(path, family=family.name, config=run.model, state=state, spec=store.spec, stats=normalizer)

    result = train_on(
        training, model, run, verb=f"train {family.verb}", evaluators=[ValidationLoss(validation)], export=export,
        device=device,
    )  # fmt: skip
    final = run.out / "weights"
    if is_main_process():
        chosen = load_checkpoint(result.best or result.weights)  # pyright: ignore[reportArgumentType]
        card = {"recipe": shlex.join(["foreact", "train", family.verb, *args]), "steps": result.step, **result.metrics}
        digest = save_checkpoint(
            final, family=family.name, config=run.model, state=chosen.state, spec=store.spec, stats=normalizer,
            card=card,
        )  # fmt: skip
        say("Done", weights=final, hash=digest, **{k: f"{v:.4f}" for k, v in result.metrics.items()})
    return final
