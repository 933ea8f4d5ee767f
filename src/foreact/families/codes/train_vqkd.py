"""`foreact train vqkd`: codes of what a teacher sees, for any store, small by default."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from foreact.checkpoints.configs import config_from_json
from foreact.checkpoints.format import save_checkpoint
from foreact.checkpoints.start import start_from, weights_of
from foreact.data.windows.loader import WindowDataset, spread_batches
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.evals.features import open_features
from foreact.families.codes.tokenize import own_device
from foreact.families.codes.training import SHORT, Pictures
from foreact.runs.inputs import Inputs, file_digest
from foreact.runs.options import TrainingRun
from foreact.runs.parse import checked
from foreact.runs.run import pick_device, process_count
from foreact.runs.stores import open_pictures
from foreact.runs.training import begin, publish, train_on
from foreact.runs.verb import TrainingVerb
from foreact.tokenizers.quantize import codebook_use
from foreact.tokenizers.vqkd import VQKD, Teacher, VQKDConfig
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig

Size = Literal["small", "base"]

SIZES: dict[Size, VQKDConfig] = {
    # 48x48 pictures to 6x6 codes of 256, learned from a teacher as wide as DINO's ViT-S: minutes on
    # two cores. In so short a run latents move fast, and a codebook with the published decay of
    # 0.99 trails behind them.
    "small": VQKDConfig(
        patch=8,
        width=64,
        depth=2,
        heads=2,
        codes=256,
        code_dim=16,
        features=384,
        position_grid=(6, 6),
        image_size=(48, 48),
        codebook_decay=0.9,
    ),
    "base": VQKDConfig(),
}

PUBLISHED_BATCH = 512
"""Pictures per optimiser step of the released tokenizer: 8 processes of 64."""

LATENTS_PER_CODE = 4
"""Latents, per code, from which k-means finds the first codebook."""


@dataclass(frozen=True, kw_only=True)
class VQKDRun(TrainingRun, Pictures):
    """Train VQ-KD, a tokenizer of what a teacher sees, on pictures of a task or any store."""

    size: Size = "small"
    """small (two cores), or base, the published ViT-B/16 with 8192 codes. Sets the defaults below.
    """
    teacher: str | None = None
    """Frozen network to learn from, such as a DINO: a TorchScript file, or "module:function".

    The function has no arguments and returns an nn.Module. The network takes pictures (N, 3, H, W)
    and gives a feature for each patch, (N, h w, D), on the grid of the codes. It is not saved.
    """
    teacher_preprocessing: str = "none"
    """What pictures in [-1, 1] go through before the teacher; "imagenet" is for DINO."""
    init: str | None = None
    """Weights to start from, such as BEiT v2's, converted. Their sizes become the defaults."""
    out: Path = Path("runs/vqkd")
    model: VQKDConfig = SIZES["small"]


def recipe(size: Size = "small") -> VQKDRun:
    """The defaults for a size; base is as released, but for random crops of ImageNet."""
    if size == "small":
        training = dataclasses.replace(
            SHORT, betas=(0.9, 0.99), weight_decay=1e-4, ema=EMAConfig(enabled=False)
        )
        return VQKDRun(train=training)
    training = TrainConfig(
        steps=250_000,
        batch_size=64,
        accumulate=max(1, PUBLISHED_BATCH // (64 * process_count())),
        lr=2e-4,
        betas=(0.9, 0.99),
        warmup=25_000,
        weight_decay=1e-4,
        clip_grad=None,
        eval_every=5000,
        save_every=5000,
        best_k=0,
        ema=EMAConfig(enabled=False),
    )
    return VQKDRun(size=size, model=SIZES[size], teacher_preprocessing="imagenet", train=training)


class TeacherQuality:
    """Distance (1 - cosine) to the teacher's features on validation frames, and codebook use."""

    name: str = "val"
    every: int | None = None

    def __init__(self, dataset: WindowDataset, frames: int = 256) -> None:
        self.batches = spread_batches(dataset, at_most=frames, batch_size=32)

    def __call__(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, VQKD)
        device = next(model.parameters()).device
        results = [model.compare(batch.to(device)) for batch in self.batches]
        codes = torch.cat([quantized.codes for _, quantized in results])
        usage, perplexity = codebook_use(codes, model.config.codes)
        return {
            "distance": sum(len(q.codes) * distance.item() for distance, q in results) / len(codes),
            "codebook_usage": usage.item(),
            "perplexity": perplexity.item(),
        }


def train_vqkd(run: VQKDRun) -> Path:
    """Train; returns the folder of the finished weights, which know nothing of the teacher."""
    store, cameras = open_pictures(run.task, run.data, run.camera)
    device = own_device(pick_device(run.device))
    inputs = Inputs.of(run)
    split = inputs.split(store, run.val_ratio)
    init = None if run.init is None else weights_of(run.init, "vqkd")
    inputs.start("init", init)
    inputs.note("teacher", file_digest(run.teacher))
    window = Window(video=dict.fromkeys(cameras, (0,)))
    training = WindowDataset(store, window, split.training)
    validation = WindowDataset(store, window, split.validation)
    teacher = open_teacher(run, device)  # before the seed: making one may draw
    torch.manual_seed(run.train.seed)
    model = VQKD(run.model, teacher=teacher)
    if init is not None:
        start_from(model, init)
    model.to(device)
    try_teacher(model, device)
    if not model.quantizer.initialised:
        start_codebook(model, training, run.train.seed)
    run = begin(
        run,
        device,
        "Training VQ-KD",
        data=f"{store.path} ({', '.join(cameras)}): {len(training)} frames to train on, "
        f"{len(validation)} to validate",
        model=f"{sum(p.numel() for p in model.parameters()):,} parameters, {run.model.grid[0]} x "
        f"{run.model.grid[1]} codes of {run.model.codes}",
        teacher=f"{run.teacher}, preprocessing {run.teacher_preprocessing}",
        start=run.init or "random weights, codebook by k-means",
    )

    def export(state: dict[str, Tensor], path: Path) -> None:
        save_checkpoint(path, family="vqkd", config=run.model, state=state, spec=store.spec)

    evaluator = TeacherQuality(validation)
    result = train_on(
        training,
        model,
        run,
        verb="train vqkd",
        inputs=inputs,
        evaluators=[evaluator],
        export=export,
        device=device,
    )
    card = {
        "command": VERB.command(run),
        "teacher": run.teacher,
        "start": run.init,
    }
    return publish(
        run,
        result,
        config=run.model,
        inputs=inputs,
        card=card,
        facts={"steps": result.step, **result.metrics},
    )


def open_teacher(run: VQKDRun, device: torch.device) -> Teacher:
    """The run's teacher behind its preprocessing."""
    if run.teacher is None:
        raise UserError(
            "VQ-KD learns what a teacher sees, and none is named; give a TorchScript file or "
            "'module:function' with --teacher."
        )
    network = open_features(run.teacher, preprocessing=run.teacher_preprocessing, device=device)

    def teacher(images: Tensor) -> Tensor:
        return network.forward(network.preprocessing(images))

    return teacher


def try_teacher(model: VQKD, device: torch.device) -> None:
    """Ask the teacher about one picture.

    Raises:
        UserError: it fails, or does not give features that fit the model's config.
    """
    height, width = model.config.image_size
    try:
        model.teach(torch.zeros(1, 3, height, width, device=device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"--teacher fails on a picture of {height} x {width} pixels ({reason}); choose "
            "--teacher-preprocessing and --model.image-size that fit it."
        ) from None


@torch.no_grad()
def start_codebook(model: VQKD, dataset: WindowDataset, seed: int) -> None:
    """Set the codebook by k-means over the latents of frames from everywhere in the data.

    Raises:
        UserError: there are fewer latents than codes.
    """
    codes, per_frame = model.config.codes, math.prod(model.grid)
    device = next(model.parameters()).device
    frames = spread_batches(
        dataset, at_most=math.ceil(LATENTS_PER_CODE * codes / per_frame), batch_size=32
    )
    z = torch.cat([model.latents(model.frames(batch.to(device))) for batch in frames])
    latents = len(z) * per_frame
    if latents < codes:
        raise UserError(
            f"A codebook of {codes} starts from as many latents, and {len(z)} frames of "
            f"{per_frame} give {latents}; lower --model.codes or give more data."
        )
    order = torch.randperm(latents, generator=torch.Generator().manual_seed(seed))
    model.quantizer.initialise(z, order.to(device))


def _defaults(chosen: dict[str, str]) -> VQKDRun:
    options = checked(chosen, size=[*SIZES])
    run = dataclasses.replace(recipe(options.get("size", "small")), **options)
    if run.init is None:
        return run
    return dataclasses.replace(
        run, model=config_from_json(VQKDConfig, weights_of(run.init, "vqkd").config)
    )


VERB = TrainingVerb(
    name="train vqkd", cls=VQKDRun, recipe=_defaults, choices=("size", "task", "init")
)


def command(args: Sequence[str]) -> None:
    """`foreact train vqkd`."""
    train_vqkd(VERB.parse(args))
