"""`foreact train musik`: codes that keep what actions change, for any store with actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foreact.checkpoints.format import save_checkpoint
from foreact.data.stores.opening import open_episodes
from foreact.data.windows.augment import RandomShift
from foreact.data.windows.future import FutureWindows
from foreact.data.windows.loader import WindowDataset, spread_batches
from foreact.data.windows.normalize import Mode, Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.families.codes.training import SHORT, Pictures
from foreact.runs.inputs import Inputs
from foreact.runs.options import TrainingRun
from foreact.runs.run import pick_device
from foreact.runs.stores import DEFAULT_TASK, open_pictures
from foreact.runs.training import begin, publish, train_on
from foreact.runs.verb import TrainingVerb
from foreact.tasks import find_task
from foreact.tokenizers.images import prepare
from foreact.tokenizers.musik import Musik, MusikConfig
from foreact.tokenizers.quantize import codebook_use
from foreact.train.config import TrainConfig
from foreact.types import ActionSpec, StreamSpec

# 48x48 pictures to 6x6 tokens of 512, as the small VQ tokenizer makes them; its codebook, too,
# stays in use by the entropy term.
SMALL = MusikConfig(
    actions=2,
    channels=16,
    multipliers=(1, 2, 4, 4),
    blocks=1,
    features=32,
    codes=512,
    code_dim=8,
    normalized=True,
    summary=64,
    norm_groups=4,
    image_size=(48, 48),
    entropy_weight=0.01,
)


@dataclass(frozen=True, kw_only=True)
class MusikRun(TrainingRun, Pictures):
    """Train codes that keep what actions change (multi-step inverse kinematics)."""

    data: Path | None = None
    """Store to learn from, with actions; None: the task's own, data/<task>.zarr."""
    camera: str | None = None
    """Camera to learn from; None: the task's, or the only one of a store without a task."""
    reach: int = 14
    """Greatest number of steps between the two states of a sample."""
    shift: int | None = 4
    """Augmentation: move a window's pictures, all alike, by up to so many pixels; None: off."""
    out: Path = Path("runs/musik")
    model: MusikConfig = SMALL
    train: TrainConfig = field(default_factory=lambda: replace(SHORT, weight_decay=0.01))


class InverseQuality:
    """On validation windows: how well the first action is told, and the use of the codebook."""

    name: str = "val"
    every: int | None = None

    def __init__(self, dataset: FutureWindows, windows: int = 256) -> None:
        self.batches = spread_batches(dataset, at_most=windows, batch_size=32)

    def __call__(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, Musik)
        config, device = model.config, next(model.parameters()).device
        # The same rivals of the true actions at every evaluation.
        rng = torch.Generator(device).manual_seed(0)
        sums = dict.fromkeys(("infonce", "accuracy"), 0.0)
        codes, count = [], 0
        for batch in (b.to(device) for b in self.batches):
            logs = model(batch, rng=rng).logs
            sums = {name: total + len(batch) * logs[name].item() for name, total in sums.items()}
            count += len(batch)
            (video,) = batch.video.values()
            stack = prepare(video[:, : config.frames], config.image_size)
            codes.append(model.encode(stack).flatten())
        usage, perplexity = codebook_use(torch.cat(codes), config.codes)
        means = {name: total / count for name, total in sums.items()}
        return {**means, "codebook_usage": usage.item(), "perplexity": perplexity.item()}


def train_musik(run: MusikRun) -> Path:
    """Train the codes; returns the folder of the finished weights."""
    config = run.model
    store, cameras = open_pictures(run.task, run.data, run.camera)
    if len(cameras) > 1:
        raise UserError(
            f"{store.path} has the cameras {cameras}, and MUSIK learns from one; "
            "choose it with --camera."
        )
    if store.spec.action is None:
        raise UserError(
            f"{store.path} has no actions, which MUSIK learns from; use a store with actions."
        )
    if store.spec.action.dim != config.actions:
        raise UserError(
            f"{store.path} has actions of {store.spec.action.dim} numbers, and --model.actions is "
            f"{config.actions}; give --model.actions {store.spec.action.dim}."
        )
    device = pick_device(run.device)
    inputs = Inputs.of(run)
    split = inputs.split(store, run.val_ratio)
    normalizer = Normalizer.fit_store(store, split.fitted, actions_mode(store.spec.action))
    # The span leaves a step after every anchor, for the later state; before an episode its first
    # frame stands in.
    window = Window(
        video={cameras[0]: tuple(range(1 - config.frames, 1))}, actions=(0,), span=(0, 1)
    )

    def windows(chosen: np.ndarray, shift: int | None) -> FutureWindows:
        augment = None if shift is None else RandomShift(pad=shift)
        plain = WindowDataset(store, window, chosen, normalizer)
        return FutureWindows(plain, frames=config.frames, reach=run.reach, augment=augment)

    training, validation = windows(split.training, run.shift), windows(split.validation, None)
    torch.manual_seed(run.train.seed)
    model = Musik(config)
    run = begin(
        run,
        device,
        "Training MUSIK codes",
        data=f"{store.path} ({cameras[0]}): {len(training)} windows to train on, "
        f"{len(validation)} to validate",
        model=f"{sum(p.numel() for p in model.parameters()):,} parameters, {config.grid[0]} x "
        f"{config.grid[1]} tokens of {config.codes}",
        actions=f"{config.actions} numbers, the first of up to {run.reach} steps",
    )

    def export(state: dict[str, Tensor], path: Path) -> None:
        save_checkpoint(
            path, family="musik", config=config, state=state, spec=store.spec, stats=normalizer
        )

    evaluator = InverseQuality(validation)
    result = train_on(
        training,
        model,
        run,
        verb="train musik",
        inputs=inputs,
        evaluators=[evaluator],
        export=export,
        device=device,
    )
    card = {"command": VERB.command(run)}
    return publish(
        run,
        result,
        config=config,
        inputs=inputs,
        card=card,
        facts={"steps": result.step, **result.metrics},
    )


def actions_mode(action: ActionSpec) -> Mode:
    """How actions are brought to [-1, 1]: not at all where their bounds are that already.

    Rivals of the true actions are drawn from there.
    """
    unit = set(action.low or ()) == {-1.0} and set(action.high or ()) == {1.0}
    return "identity" if unit else "limits"


def _defaults(chosen: dict[str, str]) -> MusikRun:
    data = Path(chosen["data"]) if "data" in chosen else None
    run = MusikRun(task=chosen.get("task"), data=data)
    action = _spec(run).action
    return run if action is None else replace(run, model=replace(run.model, actions=action.dim))


VERB = TrainingVerb(name="train musik", cls=MusikRun, recipe=_defaults, choices=("task", "data"))


def command(args: Sequence[str]) -> None:
    """`foreact train musik`."""
    train_musik(VERB.parse(args))


def _spec(run: MusikRun) -> StreamSpec:
    """What the streams mean, by the task or, without one, by the store."""
    if run.task is None and run.data is not None:
        return open_episodes(run.data).spec
    return find_task(run.task or DEFAULT_TASK).spec
