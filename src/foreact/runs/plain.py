"""Training from windows of a task's episodes alone, such as for a family of yours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreact.checkpoints.format import save_checkpoint
from foreact.checkpoints.start import start_from, weights_of
from foreact.data.windows.loader import WindowDataset
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.plugs import Family
from foreact.runs.inputs import Inputs
from foreact.runs.options import Episodes, TrainingRun
from foreact.runs.run import pick_device
from foreact.runs.stores import open_task_store
from foreact.runs.training import begin, publish, train_on
from foreact.runs.validation import ValidationLoss
from foreact.runs.verb import TrainingVerb
from foreact.tasks import find_task
from foreact.train.config import TrainConfig
from foreact.types import StreamSpec


@dataclass(frozen=True, kw_only=True)
class PlainRun(TrainingRun, Episodes):
    """Train on windows of a task's episodes."""

    task: str
    init: str | None = None
    """Weights of the same sizes to start from."""
    out: Path = Path("runs/plain")
    model: Any = None


def train_plain(
    family: Family,
    args: Sequence[str],
    *,
    task: str,
    window: Callable[[Any], Window],
    fit: Callable[[Any, StreamSpec], Any] | None = None,
    train: TrainConfig | None = None,
) -> Path:
    """`foreact train NAME` of a family that learns from windows: parse, train, write weights.

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
        "PlainRun",
        [("model", config, field(default_factory=config))],
        bases=(PlainRun,),
        frozen=True,
        kw_only=True,
    )
    cls.__doc__ = f"Train {family.title}."
    default = cls(task=task, out=Path("runs") / family.verb, train=train or TrainConfig())
    verb = TrainingVerb[PlainRun](
        name=f"train {family.verb}",
        cls=cls,
        recipe=lambda chosen: dataclasses.replace(default, **chosen),
        choices=("task",),
    )
    run = verb.parse(args)

    device = pick_device(run.device)
    store = open_task_store(find_task(run.task), run.data)
    if fit is not None:
        run = dataclasses.replace(run, model=fit(run.model, store.spec))
    inputs = Inputs.of(run)
    split = inputs.split(store, run.val_ratio)
    init = None if run.init is None else weights_of(run.init, family.name)
    inputs.start("init", init)
    normalizer = Normalizer.fit_store(store, split.fitted, "limits")
    training, validation = (
        WindowDataset(store, window(run.model), side, normalizer)
        for side in (split.training, split.validation)
    )
    torch.manual_seed(run.train.seed)
    model = module(run.model)
    if init is not None:
        start_from(model, init)
    run = begin(
        run,
        device,
        f"Training {family.title}",
        data=f"{store.path}: {len(training)} windows to train on, {len(validation)} to validate",
        model=f"{sum(p.numel() for p in model.parameters()):,} parameters",
        start=run.init or "random weights",
    )

    def export(state: Mapping[str, Tensor], path: Path) -> None:
        save_checkpoint(
            path,
            family=family.name,
            config=run.model,
            state=state,
            spec=store.spec,
            stats=normalizer,
        )

    result = train_on(
        training,
        model,
        run,
        verb=verb.name,
        inputs=inputs,
        evaluators=[ValidationLoss(validation)],
        export=export,
        device=device,
    )
    card = {"command": verb.command(run)}
    return publish(run, result, config=run.model, inputs=inputs, card=card, best=True)
