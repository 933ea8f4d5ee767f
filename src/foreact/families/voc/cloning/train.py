"""`foreact train bc`: behaviour cloning on stored codes, to act or to propose actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from foreact.checkpoints.format import TokenizerRef, load_checkpoint, save_checkpoint
from foreact.checkpoints.shipped import resolve
from foreact.checkpoints.tokenizers import open_tokenizer
from foreact.data.windows.loader import WindowDataset
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.families.voc.cloning.model import Cloning, CloningConfig
from foreact.families.voc.train import normalizer, resolved
from foreact.runs.inputs import Inputs
from foreact.runs.options import Episodes, TrainingRun
from foreact.runs.run import check_run, pick_device
from foreact.runs.stores import ensure_codes, open_task_store
from foreact.runs.training import begin, publish, train_on
from foreact.runs.validation import ValidationLoss
from foreact.runs.verb import TrainingVerb
from foreact.tasks import find_task
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig
from foreact.types import Codes, StreamSpec


@dataclass(frozen=True, kw_only=True)
class CloningRun(TrainingRun, Episodes):
    """Train behaviour cloning on the codes of a store: what was done after a stack of frames."""

    task: str = "cheetah-run"
    data: Path | None = None
    """Store or folder of HDF5 shards to learn from; None: the task's own, data/<task>.zarr."""
    tokenizer: str | None = None
    """Weights of the tokenizer whose codes to read, embedded in the result.

    Codes that a store lacks are made once and kept in it.
    """
    out: Path = Path("runs/bc")
    val_ratio: float = 0.1
    """Share of the episodes kept for validation.

    With the seed of an occupancy model's run, they are the same ones.
    """
    model: CloningConfig = field(default_factory=CloningConfig)
    """Vocab, code_dim, grid, low, high and camera are taken from tokenizer, task and data."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=3000,
            batch_size=256,
            lr=1e-3,
            betas=(0.9, 0.999),
            weight_decay=0.1,
            warmup=100,
            eval_every=250,
            save_every=1000,
            best_metric="val/loss",
            best_mode="min",
            ema=EMAConfig(max=0.995),
        )
    )
    """The finished weights are those of the least validation loss.

    A small set of episodes is soon learned by heart.
    """


def train_bc(run: CloningRun) -> Path:
    """Train; returns the folder of the weights, `run.out/weights`, which embed the tokenizer."""
    if run.tokenizer is None:
        raise UserError(
            "Behaviour cloning reads codes; name the tokenizer that makes them with --tokenizer."
        )
    task = find_task(run.task)
    store = open_task_store(task, run.data)
    device = pick_device(run.device)
    check_run(run, device)  # before codes are made for it
    loaded = open_tokenizer(run.tokenizer, device)
    inputs = Inputs.of(run)
    split = inputs.split(store, run.val_ratio)
    inputs.note("tokenizer", loaded.hash)
    reference = load_checkpoint(resolve(run.tokenizer))
    if not isinstance(loaded.tokenizer, Codes):
        raise UserError(
            f"Behaviour cloning reads rows of a codebook; {run.tokenizer} is a {reference.family}."
        )
    ensure_codes(store, task.camera, loaded, device=device)
    config = fitted(run, task.camera, loaded.tokenizer, store.spec)
    # The last step of an episode has no action.
    window = Window(
        tokens={task.camera: tuple(range(1 - config.frames, 1))},
        actions=tuple(range(config.action_steps)),
        span=(0, config.action_steps),
    )
    training, validation = (
        WindowDataset(store, window, side, normalizer(store.spec))
        for side in (split.training, split.validation)
    )
    torch.manual_seed(run.train.seed)
    model = Cloning(config)
    model.set_codebook(loaded.tokenizer.codebook)
    evaluator = ValidationLoss(validation, at_most=4096, batch_size=min(256, run.train.batch_size))
    run = begin(
        run,
        device,
        "Training behaviour cloning",
        data=f"{store.path}: {len(training)} windows to train on, {len(validation)} to validate",
        codes=f"{config.frames} frames of {config.grid[0]} x {config.grid[1]}, {config.vocab} "
        f"codes of {run.tokenizer}",
        model=f"{sum(p.numel() for p in model.parameters()):,} parameters, {config.action_steps} x "
        f"{config.actions} actions, {config.components} Gaussians",
    )

    def export(state: Mapping[str, Tensor], path: Path) -> None:
        source = TokenizerRef(family=reference.family, hash=loaded.hash)
        save_checkpoint(
            path, family="bc", config=config, state=state, spec=store.spec, tokenizer=source
        )

    result = train_on(
        training,
        model,
        run,
        verb="train bc",
        inputs=inputs,
        evaluators=[evaluator],
        export=export,
        device=device,
    )
    card = {
        "command": VERB.command(run),
        "shadows": store.attrs.get("shadows"),
        "best_val_loss": result.best_value,
    }
    return publish(
        run, result, config=config, inputs=inputs, card=card, best=True, tokenizer=reference.path
    )


def fitted(run: CloningRun, camera: str, codes: Codes, spec: StreamSpec) -> CloningConfig:
    """The model's config with what tokenizer and data decide.

    Raises:
        UserError: the run says otherwise, or the data have no bounded actions.
    """
    if spec.action is None or spec.action.low is None or spec.action.high is None:
        found = "no actions" if spec.action is None else "actions without bounds"
        raise UserError(
            "Behaviour cloning learns actions within bounds, and the data have "
            f"{found}; use other data."
        )
    assert codes.vocab is not None
    derived = {
        "vocab": codes.vocab,
        "code_dim": codes.codebook.shape[1],
        "grid": tuple(codes.grid),
        "camera": camera,
        "low": tuple(spec.action.low),
        "high": tuple(spec.action.high),
    }
    return resolved(run.model, derived)


VERB = TrainingVerb(name="train bc", cls=CloningRun, recipe=lambda _: CloningRun())


def command(args: Sequence[str]) -> None:
    """`foreact train bc`."""
    train_bc(VERB.parse(args))
