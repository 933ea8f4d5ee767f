"""`foreact train uva`: both stages of the paper's training, at any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from foreact.checkpoints.format import Checkpoint, TokenizerRef, build, save_checkpoint
from foreact.checkpoints.partial import load_partial
from foreact.checkpoints.start import weights_of
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.windows.augment import CropAndBlur
from foreact.data.windows.loader import WindowDataset, spread_batches
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.evals.closed_loop import closed_loop
from foreact.families.uva.config import SIZES, state_offsets
from foreact.families.uva.model import UVA, UVAConfig, uva_config
from foreact.families.uva.policy import UVAPolicy
from foreact.families.uva.released.read import init_from_mar
from foreact.families.uva.timing import (
    action_offsets,
    context_offsets,
    frame_stride,
    future_offsets,
)
from foreact.released.content import is_foreign
from foreact.runs.inputs import Inputs, Split, file_digest
from foreact.runs.options import Episodes, TrainingRun
from foreact.runs.parse import checked
from foreact.runs.run import pick_device
from foreact.runs.stores import ensure_latents, open_task_store
from foreact.runs.training import begin, publish, train_on
from foreact.runs.verb import TrainingVerb
from foreact.seeds import require_seeds
from foreact.tasks import find_task
from foreact.tokenizers.images import prepare
from foreact.tokenizers.kl_vae import KLVAE
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig
from foreact.types import Batch
from foreact.worlds import Task

TOKENIZERS = {"pusht": "kl-vae-pusht", "pusht-m": "kl-vae-pusht"}


@dataclass(frozen=True, kw_only=True)
class UVARun(TrainingRun, Episodes):
    """Train the Unified Video Action model."""

    free_on_resume: ClassVar[tuple[str, ...]] = (*TrainingRun.free_on_resume, "eval_seeds")

    task: str = "pusht"
    size: str = "pocket"
    """pocket (two cores) or a published size: tiny, small, base, large, huge. Sets the defaults."""
    stage: Literal["video", "joint"] = "joint"
    """As in the paper: video alone first, then all questions, from the first stage's weights."""
    tokenizer: str = ""
    """KL autoencoder: a checkpoint folder or a shipped name; empty: the task's own."""
    init: str | None = None
    """Weights to start from, such as the first stage's, or the file of the image model MAR from
    which the paper's first stage starts; tensors that do not fit are listed."""
    out: Path = Path("runs/uva")
    pixels: bool = False
    """Learn from augmented pictures, encoded in every step, instead of stored latents."""
    val_ratio: float = 0.02
    eval_seeds: int = 0
    """Closed-loop episodes per evaluation during training; 0: none."""
    model: UVAConfig = field(default_factory=UVAConfig)


# Seeds of closed-loop checks during training; the tables in the docs are measured on seeds from
# 100,000 on.
CHECK_SEED = 90_000


def recipe(
    task: str = "pusht", size: str = "pocket", stage: Literal["video", "joint"] = "joint"
) -> UVARun:
    """The defaults for a task, a size and a stage.

    The published sizes follow the paper (UVA sec. V): AdamW at 1e-4 with betas 0.9 and 0.95, decay
    0.02, 1000 steps of warmup, cosine to zero, EMA. `pocket` is ours: it sees two frames of 2 x 2
    tokens and the robot's own position, plans eight actions, has flow-matching heads, and learns
    where things are as a side task.
    """
    loaded_task = find_task(task)
    spec = loaded_task.spec
    modes = {"video": 1.0} if stage == "video" else {}
    common: dict[str, Any] = {"camera": loaded_task.camera, "predict_action": stage == "joint"}
    if spec.action is None and stage == "joint":
        raise UserError(f"Task '{task}' has no actions; train it with --stage video.")
    common["action_dim"] = 1 if spec.action is None else spec.action.dim
    if size != "pocket":
        model = uva_config(size, **common, **({"modes": modes} if modes else {}))
        return UVARun(
            task=task, size=size, stage=stage, model=model, train=TrainConfig(steps=100_000)
        )
    if not modes:
        modes = {"policy": 0.6, "joint": 0.15, "video": 0.05, "dynamics": 0.1, "inverse": 0.1}
    model = UVAConfig(
        **common,
        latent_channels=8,
        grid=(6, 6),
        patch=3,
        frames=2,
        horizon=8,
        width=256,
        depth=3,
        heads=4,
        decoder_width=256,
        decoder_depth=2,
        decoder_heads=4,
        dropout=0.0,
        attention_dropout=0.0,
        head="flow",
        video_head_depth=2,
        video_head_width=128,
        action_head_depth=2,
        action_head_width=192,
        video_sampling_steps="20",
        action_sampling_steps="10",
        modes=modes,
        proprioception=loaded_task.proprioception,
        proprioception_steps=2,
        proprioception_prediction={name: len(dims) for name, dims in spec.state.items()},
    )
    training = TrainConfig(
        steps=4000,
        batch_size=128,
        lr=1e-3,
        schedule="wsd",  # so that a longer run goes on from before the drop
        warmup=200,
        drop=800,
        floor=0.0,
        weight_decay=0.02,
        ema=EMAConfig(max=0.999),
        log_every=20,
        save_every=500,
        eval_every=1000,
    )
    return UVARun(task=task, size=size, stage=stage, model=model, train=training)


def window_of(config: UVAConfig, *, pixels: bool) -> Window:
    """Steps of one sample: F context frames up to now, F frames ahead, K actions from now on.

    As in the reference, frames lie K / F steps apart and a window may reach 1 step before an
    episode and K / 2 - 1 beyond it. Unlike there it may also begin with an episode: the context of
    the first steps is filled with the first frame, as it is when acting.
    """
    stride = frame_stride(config.horizon, config.frames)
    offsets = (*context_offsets(config.frames, stride), *future_offsets(config.frames, stride))
    past_states = tuple(state_offsets(config)) if config.proprioception else ()
    future_states = tuple(range(1, config.horizon + 1)) if config.proprioception_prediction else ()
    state_streams = [*config.proprioception, *config.proprioception_prediction]
    actions = action_offsets(config.horizon, first_now=True) if config.predict_action else []
    return Window(
        video={config.camera: offsets} if pixels else {},
        latents={} if pixels else {config.camera: offsets},
        actions=tuple(actions),
        state=dict.fromkeys(state_streams, past_states + future_states),
        pad_before=-offsets[0],
        pad_after=max(config.horizon // 2 - 1, 0),
    )


class ValidationLoss:
    """Loss on validation windows, per question, with the same draws at every evaluation."""

    name = "val"
    every: int | None = None

    def __init__(self, dataset: WindowDataset, prepare: Any, windows: int = 512) -> None:
        self.batches = spread_batches(dataset, at_most=windows, batch_size=64)
        self.prepare = prepare

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, UVA)
        sums: dict[str, list[float]] = {}
        for mode, weight in model.config.modes.items():
            if weight == 0:
                continue
            for i, batch in enumerate(self.batches):
                rng = torch.Generator(device=model.device).manual_seed(i)
                batch = self.prepare(batch.to(model.device), rng)
                logs = model.loss(batch, model.draw(batch, rng, mode=mode)).logs
                for name, value in logs.items():
                    sums.setdefault(f"{mode}_{name}", []).append(value.item())
        return {name: float(np.mean(values)) for name, values in sums.items()}


@dataclass
class ClosedLoopCheck:
    """Mean score of a few closed-loop episodes, on seeds apart from the test's."""

    task: Task
    vae: KLVAE
    normalizer: Normalizer
    seeds: int
    name: str = "closed_loop"
    every: int | None = None

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, UVA)
        assert self.task.env is not None
        policy = UVAPolicy(model, self.vae, self.normalizer, self.task.spec, device=model.device)
        seeds = range(CHECK_SEED, CHECK_SEED + self.seeds)
        result = closed_loop(self.task.env, policy, seeds, progress=False)
        return {"score": result.score.mean}


@dataclass(frozen=True)
class Data:
    """What a run learns from."""

    store: EpisodeStore
    training: WindowDataset
    validation: WindowDataset
    normalizer: Normalizer


def load_data(run: UVARun, store: EpisodeStore, split: Split) -> Data:
    """Fit statistics on the training side, and cut windows."""
    normalizer = Normalizer.fit_store(store, split.fitted, "limits")
    window = window_of(run.model, pixels=run.pixels)
    augment = CropAndBlur() if run.pixels else None
    return Data(
        store=store,
        training=WindowDataset(store, window, split.training, normalizer, augment),
        validation=WindowDataset(store, window, split.validation, normalizer),
        normalizer=normalizer,
    )


def train_uva(run: UVARun) -> Path:
    """Train; returns the folder of the finished weights, `run.out/weights`."""
    task = find_task(run.task)
    _require_trainable(run, task)
    device = pick_device(run.device)
    reference = weights_of(run.tokenizer or _default_tokenizer(task), "kl_vae", "--tokenizer")
    vae = build(reference, device)
    assert isinstance(vae, KLVAE)
    _require_grid(run.model, vae)
    store = open_task_store(task, run.data)
    inputs = Inputs.of(run)
    data = load_data(run, store, inputs.split(store, run.val_ratio))
    inputs.note("tokenizer", reference.hash)
    torch.manual_seed(run.train.seed)
    model = UVA(run.model)
    start = "random weights"
    if run.init is not None:
        start = start_from(model, run.init, task, inputs)
    run = begin(
        run,
        device,
        f"Training UVA, stage '{run.stage}'",
        task=task.name,
        data=f"{store.path}: {len(data.training)} windows to train on, {len(data.validation)} to "
        "validate",
        model=f"{run.size}, {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{run.model.tokens} tokens",
        start=start,
        tokenizer=f"{reference.path} {reference.hash[:19]}",
    )
    if not run.pixels:
        ensure_latents(store, run.model.camera, vae, reference.hash, device=str(device))

    def prepare(batch: Batch, rng: torch.Generator) -> Batch:
        return encode_batch(batch, vae, rng) if run.pixels else batch

    def export(state: dict[str, Tensor], path: Path) -> None:
        save_checkpoint(
            path,
            family="uva",
            config=run.model,
            state=state,
            spec=store.spec,
            stats=data.normalizer,
            tokenizer=TokenizerRef(family="kl_vae", hash=reference.hash),
        )

    evaluators: list[Any] = [ValidationLoss(data.validation, prepare)]
    if run.eval_seeds:
        evaluators.append(ClosedLoopCheck(task, vae, data.normalizer, run.eval_seeds))
    result = train_on(
        data.training,
        model,
        run,
        verb="train uva",
        inputs=inputs,
        evaluators=evaluators,
        export=export,
        device=device,
        prepare=prepare,
    )
    card = {
        "command": VERB.command(run),
        "start": run.init,
    }
    # The head that foresees states shapes the features in training and is never asked again.
    config = dataclasses.replace(run.model, proprioception_prediction={})
    return publish(
        run,
        result,
        config=config,
        inputs=inputs,
        card=card,
        best=True,
        tokenizer=reference.path,
        leave_out=("heads.proprioception.",),
    )


def start_from(model: UVA, init: str, task: Task, inputs: Inputs) -> str:
    """Fill `model` from weights of ours or from the image model MAR; returns the account of both.

    Args:
        model: changed in place.
        init: a checkpoint folder, a shipped name, or MAR's own file.
        task: what the weights should be for, where they say.
        inputs: of the run; the weights are noted there.

    Raises:
        UserError: it is none of these, of another task, or nothing of it fits.
    """
    if is_foreign(Path(init)):
        inputs.note("init", file_digest(init))
        return f"the image model MAR in {init}: {init_from_mar(model, Path(init))}"
    checkpoint = weights_of(init, "uva")
    inputs.start("init", checkpoint)
    return fill_from(model, checkpoint, task)


def fill_from(model: UVA, checkpoint: Checkpoint, task: Task) -> str:
    """Copy the tensors that fit into `model`; returns what was left out, by name."""
    if checkpoint.spec is not None:
        task.spec.require_equal(checkpoint.spec, f"task '{task.name}'", str(checkpoint.path))
    return str(load_partial(model, checkpoint.state, source=str(checkpoint.path)))


@torch.no_grad()
def encode_batch(batch: Batch, vae: KLVAE, rng: torch.Generator) -> Batch:
    """Add the latents of every camera's video."""
    for camera, video in batch.video.items():
        batch.latents[camera] = vae.encode(prepare(video, vae.config.image_size), rng=rng)
    return batch


def _default_tokenizer(task: Task) -> str:
    if task.name not in TOKENIZERS:
        raise UserError(
            f"No autoencoder comes with task '{task.name}'; train one with `foreact train kl-vae "
            f"--task {task.name}` and name it with --tokenizer."
        )
    return TOKENIZERS[task.name]


NO_DATA = ("wrist_camera", "text_dim", "past_actions")
"""Inputs of the released models that no training gives its model yet."""


def _require_trainable(run: UVARun, task: Task) -> None:
    """Refuse, before anything is read or written, what the training would ignore or fail at."""
    config, default = run.model, UVAConfig()
    for name in NO_DATA:
        if getattr(config, name) != getattr(default, name):
            raise UserError(
                f"--model.{name.replace('_', '-')} needs data that no training reads yet; leave it "
                "out."
            )
    without_effect = {
        "wrist_context": "a wrist camera",
        "wrist_prediction": "a wrist camera",
        "text_tokens": "instructions",
        "text_drop": "instructions",
        "past_action_keep": "past actions",
    }
    other_head = ("flow_time", "flow_solver")
    if config.head == "flow":
        other_head = ("video_diffusion_steps", "action_diffusion_steps")
    without_effect |= dict.fromkeys(other_head, "the other --model.head")
    for name, needed in without_effect.items():
        if getattr(config, name) != getattr(default, name):
            raise UserError(
                f"--model.{name.replace('_', '-')} has no effect without {needed}; leave it out."
            )
    if run.eval_seeds < 0:
        raise UserError(f"--eval-seeds should be 0 or more, found {run.eval_seeds}.")
    require_seeds(CHECK_SEED, run.eval_seeds, "--eval-seeds")
    if run.eval_seeds and (task.env is None or not config.predict_action):
        raise UserError(
            "Closed-loop checks need a task with a simulator and a model with "
            "actions; set --eval-seeds 0."
        )


def _require_grid(config: UVAConfig, vae: KLVAE) -> None:
    expected = (config.latent_channels, *config.grid)
    found = (vae.config.latent_channels, *vae.grid)
    if expected != found:
        raise UserError(
            f"The model is configured for latents {expected}, the autoencoder makes {found}; set "
            f"--model.latent-channels {found[0]} --model.grid {found[1]} {found[2]}, or choose "
            "another --tokenizer."
        )


def _defaults(chosen: dict[str, str]) -> UVARun:
    return recipe(**checked(chosen, size=["pocket", *SIZES], stage=["video", "joint"]))


VERB = TrainingVerb(
    name="train uva", cls=UVARun, recipe=_defaults, choices=("task", "size", "stage")
)


def command(args: Sequence[str]) -> None:
    """`foreact train uva`."""
    train_uva(VERB.parse(args))
