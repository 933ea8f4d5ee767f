"""`foreact train kl-vae`: an image autoencoder for any store, by default a small one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foreact.checkpoints.format import build, load_checkpoint, save_checkpoint
from foreact.data.windows.loader import WindowDataset, spread_batches
from foreact.data.windows.window import Window
from foreact.families.codes.training import SHORT, Pictures
from foreact.runs.inputs import Inputs
from foreact.runs.options import TrainingRun
from foreact.runs.run import is_main_process, pick_device
from foreact.runs.stores import open_pictures
from foreact.runs.training import begin, publish, train_on
from foreact.runs.verb import TrainingVerb
from foreact.tokenizers.images import prepare
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig, with_scale
from foreact.train.config import TrainConfig
from foreact.types import Batch

# 48x48 pictures to latents of 8 x 6 x 6: a million parameters, which two cores train in minutes.
SMALL = KLVAEConfig(
    channels=16,
    multipliers=(1, 2, 4, 4),
    blocks=1,
    latent_channels=8,
    norm_groups=8,
    image_size=(48, 48),
    kl_weight=1e-3,
)


@dataclass(frozen=True, kw_only=True)
class KLVAERun(TrainingRun, Pictures):
    """Train a KL autoencoder on the pictures of a task or of a store."""

    out: Path = Path("runs/kl-vae")
    model: KLVAEConfig = SMALL
    train: TrainConfig = SHORT


class ReconstructionError:
    """Mean absolute error of decoded validation frames, in grey levels (0..255)."""

    name: str = "val"
    every: int | None = None

    def __init__(self, dataset: WindowDataset, frames: int = 256) -> None:
        self.batches = spread_batches(dataset, at_most=frames, batch_size=32)

    def __call__(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, KLVAE)
        errors = []
        for batch in self.batches:
            for video in self.videos(model, batch):
                errors.append((model.decode(model.encode(video)) - video).abs().mean() * 127.5)
        return {"grey_levels": torch.stack(errors).mean().item()}

    def videos(self, model: KLVAE, batch: Batch) -> list[Tensor]:
        """Of every camera, as the model sees them."""
        device = next(model.parameters()).device
        return [prepare(v.to(device), model.config.image_size) for v in batch.video.values()]


def train_kl_vae(run: KLVAERun) -> Path:
    """Train, then measure the latents' scale; returns the folder of the finished weights."""
    store, cameras = open_pictures(run.task, run.data, run.camera)
    device = pick_device(run.device)
    inputs = Inputs.of(run)
    split = inputs.split(store, run.val_ratio)
    window = Window(video=dict.fromkeys(cameras, (0,)))
    training = WindowDataset(store, window, split.training)
    validation = WindowDataset(store, window, split.validation)
    torch.manual_seed(run.train.seed)
    model = KLVAE(run.model)
    run = begin(
        run,
        device,
        "Training a KL autoencoder",
        data=f"{store.path} ({', '.join(cameras)}): {len(training)} frames to train on, "
        f"{len(validation)} to validate",
        model=f"{sum(p.numel() for p in model.parameters()):,} parameters, latents "
        f"{run.model.latent_channels} x {run.model.grid[0]} x {run.model.grid[1]}",
    )

    def export(state: dict[str, Tensor], path: Path) -> None:
        save_checkpoint(path, family="kl_vae", config=run.model, state=state, spec=store.spec)

    evaluator = ReconstructionError(validation)
    result = train_on(
        training,
        model,
        run,
        verb="train kl-vae",
        inputs=inputs,
        evaluators=[evaluator],
        export=export,
        device=device,
    )
    assert result.weights is not None
    config = with_measured_scale(result.weights, evaluator) if is_main_process() else run.model
    card = {"command": VERB.command(run), "task": run.task}
    facts = {"scale": f"{config.scale:.4f}", "steps": result.step, **result.metrics}
    return publish(run, result, config=config, inputs=inputs, card=card, facts=facts)


@torch.no_grad()
def with_measured_scale(weights: Path, evaluator: ReconstructionError) -> KLVAEConfig:
    """The config with the scale that gives this autoencoder's latents unit variance."""
    model = build(load_checkpoint(weights))
    assert isinstance(model, KLVAE)
    means = [
        model.moments(video.flatten(0, 1)).chunk(2, dim=1)[0]
        for batch in itertools.islice(evaluator.batches, 8)
        for video in evaluator.videos(model, batch)
    ]
    return with_scale(model.config, torch.cat(means))


def _defaults(chosen: dict[str, str]) -> KLVAERun:
    return dataclasses.replace(KLVAERun(), **chosen)


VERB = TrainingVerb(name="train kl-vae", cls=KLVAERun, recipe=_defaults, choices=("task",))


def command(args: Sequence[str]) -> None:
    """`foreact train kl-vae`."""
    train_kl_vae(VERB.parse(args))
