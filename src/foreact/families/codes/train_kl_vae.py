"""`foreact train kl-vae`: an image autoencoder for any store, small enough for a laptop by default."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from foreact.checkpoints.format import load_checkpoint, save_checkpoint
from foreact.data.windows.loader import WindowDataset, spread_batches
from foreact.data.windows.window import Window
from foreact.runs.run import is_main_process, open_run, parse_run, pick_device, resources, say, train_on
from foreact.runs.stores import open_task_store, split_store
from foreact.tasks import find_task
from foreact.tokenizers.images import prepare
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig, with_scale
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig
from foreact.types import Batch

# 48x48 pictures to latents of 8 x 6 x 6: a million parameters, which two cores train in minutes.
SMALL = KLVAEConfig(
    channels=16, multipliers=(1, 2, 4, 4), blocks=1, latent_channels=8, norm_groups=8, image_size=(48, 48),
    kl_weight=1e-3,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class KLVAERun:
    """Train a KL autoencoder on a task's pictures."""

    task: str = "pusht"
    """A built-in task or the import path of a module that exports TASK."""
    data: Path | None = None
    """Store to learn from; None: the task's own, data/<task>.zarr."""
    out: Path = Path("runs/kl-vae")
    """Folder of the run; an interrupted run in it is resumed."""
    val_ratio: float = 0.05
    """Share of the episodes kept for validation."""
    device: str | None = None
    """Where to train; None: CUDA if there is one."""
    model: KLVAEConfig = field(default_factory=lambda: SMALL)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=2000, batch_size=32, lr=1e-3, warmup=100, eval_every=500, save_every=500, best_k=0,
            weight_decay=0.0, ema=EMAConfig(max=0.995),
        )
    )  # fmt: skip


class ReconstructionError:
    """Mean absolute error of decoded validation frames, in grey levels (0..255)."""

    name: str = "val"
    every: int | None = None

    def __init__(self, dataset: WindowDataset, camera: str, frames: int = 256) -> None:
        self.batches = spread_batches(dataset, at_most=frames, batch_size=32)
        self.camera = camera

    def __call__(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, KLVAE)
        errors = []
        for batch in self.batches:
            video = self.video(model, batch)
            errors.append((model.decode(model.encode(video)) - video).abs().mean() * 127.5)
        return {"grey_levels": torch.stack(errors).mean().item()}

    def video(self, model: KLVAE, batch: Batch) -> Tensor:
        device = next(model.parameters()).device
        return prepare(batch.video[self.camera].to(device), model.config.image_size)


def train_kl_vae(run: KLVAERun) -> Path:
    """Train, then measure the latents' scale; returns the folder of the finished weights."""
    task = find_task(run.task)
    store = open_task_store(task, run.data)
    device = pick_device(run.device)
    train_episodes, val_episodes = split_store(store, run.val_ratio, run.train.seed)
    window = Window(video={task.camera: (0,)})
    training, validation = (WindowDataset(store, window, e, None) for e in (train_episodes, val_episodes))
    torch.manual_seed(run.train.seed)
    model = KLVAE(run.model)
    run = open_run(run, device, free=("train", "device", "out"))
    say(
        "Training a KL autoencoder",
        task=task.name,
        data=f"{store.path}: {len(training)} frames to train on, {len(validation)} to validate",
        model=f"{sum(p.numel() for p in model.parameters()):,} parameters, latents {run.model.latent_channels} x "
        f"{run.model.grid[0]} x {run.model.grid[1]}",
        **resources(run.train, device),
        seed=run.train.seed,
        out=run.out,
    )

    def export(state: dict[str, Tensor], path: Path) -> None:
        save_checkpoint(path, family="kl_vae", config=run.model, state=state, spec=store.spec)

    evaluator = ReconstructionError(validation, task.camera)
    result = train_on(training, model, run, verb="train kl-vae", evaluators=[evaluator], export=export, device=device)
    assert result.weights is not None
    if not is_main_process():
        return run.out / "weights"
    return finish(result.weights, run, evaluator, {"steps": result.step, **result.metrics})


@torch.no_grad()
def finish(weights: Path, run: KLVAERun, evaluator: ReconstructionError, facts: dict[str, float]) -> Path:
    """Write `run.out/weights`, with the scale that gives this autoencoder's latents unit variance."""
    checkpoint = load_checkpoint(weights)
    model = KLVAE(run.model)
    model.load_state_dict(checkpoint.state)
    model.eval()
    means = [
        model.moments(evaluator.video(model, batch).flatten(0, 1)).chunk(2, dim=1)[0]
        for batch in itertools.islice(evaluator.batches, 8)
    ]
    config = with_scale(run.model, torch.cat(means))
    final = run.out / "weights"
    digest = save_checkpoint(
        final, family="kl_vae", config=config, state=checkpoint.state, spec=checkpoint.spec,
        card={"recipe": "foreact train kl-vae", "task": run.task, **facts},
    )  # fmt: skip
    say("Done", weights=final, hash=digest, scale=f"{config.scale:.4f}", **facts)
    return final


def command(args: Sequence[str]) -> None:
    """`foreact train kl-vae`."""

    def recipe(chosen: dict[str, str]) -> KLVAERun:
        return dataclasses.replace(KLVAERun(), **chosen)

    train_kl_vae(parse_run(KLVAERun, args, prog="foreact train kl-vae", recipe=recipe, choices=("task",)))
