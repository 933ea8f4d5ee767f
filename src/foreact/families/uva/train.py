"""`foreact train uva`: both stages of the paper's training, at any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foreact.checkpoints.format import Checkpoint, TokenizerRef, build, save_checkpoint
from foreact.checkpoints.partial import load_partial
from foreact.checkpoints.start import weights_of
from foreact.checkpoints.text import TextTable
from foreact.data.windows.loader import Windows, spread_batches
from foreact.errors import UserError
from foreact.evals.closed_loop import closed_loop
from foreact.families.uva.config import SIZES
from foreact.families.uva.data import Data, load_data
from foreact.families.uva.model import UVA, UVAConfig
from foreact.families.uva.policy import UVAPolicy
from foreact.families.uva.recipes import UVARun, recipe
from foreact.families.uva.released.read import init_from_mar
from foreact.released.content import is_foreign
from foreact.runs.inputs import Inputs, file_digest
from foreact.runs.parse import checked
from foreact.runs.run import pick_device
from foreact.runs.stores import ensure_latents, policy_spec, task_of
from foreact.runs.training import begin, publish, train_on
from foreact.runs.verb import TrainingVerb
from foreact.seeds import require_seeds
from foreact.text.opening import find_text_encoder
from foreact.tokenizers.images import prepare
from foreact.tokenizers.kl_vae import KLVAE
from foreact.types import Batch, StreamSpec
from foreact.worlds import Task

TOKENIZERS = {"pusht": "kl-vae-pusht", "pusht-m": "kl-vae-pusht"}

# Seeds of closed-loop checks during training; the tables in the docs are measured on seeds from
# 100,000 on.
CHECK_SEED = 90_000


class ValidationLoss:
    """Loss on validation windows, per question, with the same draws at every evaluation."""

    name = "val"
    every: int | None = None

    def __init__(self, dataset: Windows, prepare: Any, windows: int = 512) -> None:
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
    data: Data
    text: TextTable | None
    seeds: int
    name: str = "closed_loop"
    every: int | None = None

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, UVA)
        assert self.task.env is not None
        policy = UVAPolicy(
            model,
            self.vae,
            self.data.normalizer,
            self.data.spec,
            execute=min(8, model.config.horizon),
            device=model.device,
            text_features=None if self.text is None else self.text.features_for,
        )
        seeds = range(CHECK_SEED, CHECK_SEED + self.seeds)
        result = closed_loop(self.task.env, policy, seeds, progress=False)
        return {"score": result.score.mean}


def train_uva(run: UVARun) -> Path:
    """Train; returns the folder of the finished weights, `run.out/weights`."""
    task = task_of(run.task, run.data)
    _require_trainable(run, task)
    device = pick_device(run.device)
    reference = weights_of(run.tokenizer or _default_tokenizer(run, task), "kl_vae", "--tokenizer")
    vae = build(reference, device)
    assert isinstance(vae, KLVAE)
    _require_grid(run.model, vae)
    encoder = None if run.text_encoder is None else find_text_encoder(run.text_encoder, device)
    inputs = Inputs.of(run)
    data = load_data(run, task, inputs, encoder)
    inputs.note("tokenizer", reference.hash)
    inputs.note("text_encoder", None if encoder is None else encoder.hash)
    torch.manual_seed(run.train.seed)
    model = UVA(run.model)
    start = "random weights"
    if run.init is not None:
        start = start_from(model, run.init, data.spec, inputs)
    run = begin(
        run,
        device,
        f"Training UVA, stage '{run.stage}'",
        task=task.name,
        data=f"{data.label}: {len(data.training)} windows to train on, {len(data.validation)} to "
        "validate",
        model=f"{run.size}, {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{run.model.tokens} tokens",
        sees=_sees(run.model),
        start=start,
        tokenizer=f"{reference.path} {reference.hash[:19]}",
        **({} if encoder is None else {"text encoder": f"{encoder.name} {encoder.hash[:19]}"}),
    )
    if not run.pixels:
        for store, cameras in data.stores:
            for camera in cameras:
                ensure_latents(store, camera, vae, reference.hash, device=str(device))
    table = None if data.text is None else TextTable(data.text)

    def prepare(batch: Batch, rng: torch.Generator) -> Batch:
        return encode_batch(batch, vae, rng) if run.pixels else batch

    def export(state: dict[str, Tensor], path: Path) -> None:
        save_checkpoint(
            path,
            family="uva",
            config=run.model,
            state=state,
            spec=data.spec,
            stats=data.normalizer,
            tokenizer=TokenizerRef(family="kl_vae", hash=reference.hash),
            text=table,
        )

    evaluators: list[Any] = [ValidationLoss(data.validation, prepare)]
    if run.eval_seeds:
        evaluators.append(ClosedLoopCheck(task, vae, data, table, run.eval_seeds))
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


def _sees(config: UVAConfig) -> str:
    """What the model is shown and what it foresees, in words."""
    shown = [config.camera, *([config.wrist_camera] if config.wrist_camera else [])]
    shown += [f"{dim} numbers of '{name}'" for name, dim in config.proprioception.items()]
    shown += ["past actions"] * config.past_actions + ["instructions"] * (
        config.text_dim is not None
    )
    return ", ".join(shown)


def start_from(model: UVA, init: str, spec: StreamSpec, inputs: Inputs) -> str:
    """Fill `model` from weights of ours or from the image model MAR; returns the account of both.

    Args:
        model: changed in place.
        init: a checkpoint folder, a shipped name, or MAR's own file.
        spec: what the weights should be for, where they say.
        inputs: of the run; the weights are noted there.

    Raises:
        UserError: it is none of these, of another task, or nothing of it fits.
    """
    if is_foreign(Path(init)):
        inputs.note("init", file_digest(init))
        return f"the image model MAR in {init}: {init_from_mar(model, Path(init))}"
    checkpoint = weights_of(init, "uva")
    inputs.start("init", checkpoint)
    return fill_from(model, checkpoint, spec)


def fill_from(model: UVA, checkpoint: Checkpoint, spec: StreamSpec) -> str:
    """Copy the tensors that fit into `model`; returns what was left out, by name."""
    if checkpoint.spec is not None:
        spec.require_equal(checkpoint.spec, "the data", str(checkpoint.path))
    return str(load_partial(model, checkpoint.state, source=str(checkpoint.path)))


@torch.no_grad()
def encode_batch(batch: Batch, vae: KLVAE, rng: torch.Generator) -> Batch:
    """Add the latents of every camera's video."""
    for camera, video in batch.video.items():
        batch.latents[camera] = vae.encode(prepare(video, vae.config.image_size), rng=rng)
    return batch


def _default_tokenizer(run: UVARun, task: Task) -> str:
    if task.name not in TOKENIZERS:
        options = "" if run.task is None else f" --task {run.task}"
        options += " --data DATA" if run.data is None else f" --data {run.data}"
        if run.data is not None and run.data.suffix == ".json":
            options = f" --task {run.task} --data ONE_OF_ITS_MEMBERS"
        raise UserError(
            f"No autoencoder comes with task '{task.name}'; train one with `foreact train kl-vae"
            f"{options}` and name it with --tokenizer."
        )
    return TOKENIZERS[task.name]


def _require_trainable(run: UVARun, task: Task) -> None:
    """Refuse, before anything is read or written, what the training would ignore or fail at."""
    config, default = run.model, UVAConfig()
    needed_by = {
        "--model.wrist-camera": (config.wrist_camera, ("wrist_context", "wrist_prediction")),
        "--model.text-dim": (config.text_dim, ("text_tokens", "text_drop")),
        "--model.past-actions": (config.past_actions, ("past_action_keep",)),
        "--model.head flow": (config.head == "flow", ("flow_time", "flow_solver")),
        "--model.head diffusion": (
            config.head == "diffusion",
            ("video_diffusion_steps", "action_diffusion_steps"),
        ),
    }
    for option, (is_there, names) in needed_by.items():
        for name in names:
            if not is_there and getattr(config, name) != getattr(default, name):
                raise UserError(
                    f"--model.{name.replace('_', '-')} has no effect without {option}; leave it "
                    "out."
                )
    for camera in config.views.values():
        if camera not in task.spec.cameras:
            raise UserError(
                f"The model is to watch camera '{camera}'; task '{task.name}' has "
                f"{sorted(task.spec.cameras)}."
            )
    states = policy_spec(task).state
    for option in ("proprioception", "proprioception_prediction", "modalities"):
        for stream, dim in getattr(config, option).items():
            if dim > (has := len(states.get(stream, ()))):
                raise UserError(
                    f"--model.{option.replace('_', '-')} asks for {dim} numbers of the state "
                    f"'{stream}', which has {has or 'none'} in task '{task.name}'."
                )
    if config.text_dim is not None and run.text_encoder is None:
        raise UserError(
            f"The model is told what to do by {config.text_dim} numbers; name the encoder that "
            "makes them with --text-encoder, or set --model.text-dim None."
        )
    if run.video_share != UVARun.video_share and not run.video_data:
        raise UserError("--video-share has no effect without --video-data; leave it out.")
    if run.episode_lists is not None and (run.data is None or run.data.suffix != ".json"):
        raise UserError(
            "--episode-lists names episodes of the members of a mixture; give the mixture's .json "
            "file with --data."
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
    name="train uva",
    cls=UVARun,
    recipe=_defaults,
    choices=("task", "data", "size", "stage", "text_encoder"),
)


def command(args: Sequence[str]) -> None:
    """`foreact train uva`."""
    train_uva(VERB.parse(args))
