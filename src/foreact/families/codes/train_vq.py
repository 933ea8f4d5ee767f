"""`foreact train vq`: a vector-quantised image tokenizer for any store, small by default."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from foreact.checkpoints.configs import config_from_json
from foreact.checkpoints.format import save_checkpoint
from foreact.checkpoints.start import start_from, weights_of
from foreact.data.windows.augment import RandomShift
from foreact.data.windows.loader import WindowDataset, spread_batches
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.families.codes.released.taming import read_lpips
from foreact.families.codes.training import SHORT, Pictures
from foreact.runs.inputs import Inputs, file_digest
from foreact.runs.options import TrainingRun
from foreact.runs.run import pick_device
from foreact.runs.stores import open_pictures
from foreact.runs.training import begin, publish, train_on
from foreact.runs.verb import TrainingVerb
from foreact.tokenizers.adversarial import AdversarialConfig, AdversarialTraining
from foreact.tokenizers.images import prepare
from foreact.tokenizers.lpips import SMALLEST_SIDE
from foreact.tokenizers.perceptual import PerceptualDistance
from foreact.tokenizers.quantize import codebook_use
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.train.config import TrainConfig

# 48x48 pictures to 6x6 tokens of 512: a million parameters, which two cores train in minutes. So
# small a network keeps its codebook in use only with the entropy term, which the published
# tokenizer does without.
SMALL = VQConfig(
    channels=16,
    multipliers=(1, 2, 4, 4),
    blocks=1,
    features=32,
    codes=512,
    code_dim=8,
    norm_groups=4,
    image_size=(48, 48),
    entropy_weight=0.01,
)


@dataclass(frozen=True, kw_only=True)
class VQRun(TrainingRun, Pictures):
    """Train a vector-quantised tokenizer on the pictures of a task or of any store."""

    init: str | None = None
    """Weights to start from, such as LlamaGen's, converted: a folder or a shipped name.

    Its sizes become the defaults.
    """
    out: Path = Path("runs/vq")
    model: VQConfig = SMALL
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """The adversarial stage, off by default."""
    perceptual: str | None = None
    """Perceptual distance: "module:function" of a function without arguments that returns it."""
    lpips: Path | None = None
    """Checkpoint file of taming or VOC, to take its LPIPS as the perceptual distance."""
    shift: int | None = None
    """Augmentation: move a picture by up to so many pixels, its edges repeated (DrQ: 4)."""
    train: TrainConfig = SHORT


class TokenizerQuality:
    """Mean absolute error of validation frames, in grey levels (0..255), and codebook use."""

    name: str = "val"
    every: int | None = None

    def __init__(self, dataset: WindowDataset, frames: int = 256) -> None:
        self.batches = spread_batches(dataset, at_most=frames, batch_size=32)

    def __call__(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        tokenizer = model.tokenizer if isinstance(model, AdversarialTraining) else model
        assert isinstance(tokenizer, VQTokenizer)
        config, device = tokenizer.config, next(tokenizer.parameters()).device
        errors, tokens = [], []
        for batch in self.batches:
            for frames in batch.video.values():
                video = prepare(frames.to(device), config.image_size, config.preprocessing)
                codes = tokenizer.encode(video)
                errors.append((tokenizer.decode(codes) - video).abs().mean() * 127.5)
                tokens.append(codes.flatten())
        usage, perplexity = codebook_use(torch.cat(tokens), config.codes)
        return {
            "grey_levels": torch.stack(errors).mean().item(),
            "codebook_usage": usage.item(),
            "perplexity": perplexity.item(),
        }


def train_vq(run: VQRun) -> Path:
    """Train; returns the folder of the finished weights, without the adversarial stage."""
    store, cameras = open_pictures(run.task, run.data, run.camera)
    device = pick_device(run.device)
    inputs = Inputs.of(run)
    split = inputs.split(store, run.val_ratio)
    init = None if run.init is None else weights_of(run.init, "vq")
    inputs.start("init", init)
    inputs.note("lpips", file_digest(run.lpips))
    window = Window(video=dict.fromkeys(cameras, (0,)))
    augment = None if run.shift is None else RandomShift(pad=run.shift)
    training = WindowDataset(store, window, split.training, None, augment)
    validation = WindowDataset(store, window, split.validation)
    torch.manual_seed(run.train.seed)
    tokenizer = VQTokenizer(run.model, perceptual=_perceptual(run))
    if init is not None:
        start_from(tokenizer, init)
    model, with_stage = tokenizer, run.adversarial.weight > 0
    if with_stage:
        model = AdversarialTraining(tokenizer, run.adversarial, accumulate=run.train.accumulate)
    run = begin(
        run,
        device,
        "Training a VQ tokenizer",
        data=f"{store.path} ({', '.join(cameras)}): {len(training)} frames to train on, "
        f"{len(validation)} to validate",
        model=f"{sum(p.numel() for p in tokenizer.parameters()):,} parameters, "
        f"{run.model.grid[0]} x {run.model.grid[1]} tokens of {run.model.codes}",
        start=run.init or "random weights",
        adversarial=f"from step {run.adversarial.start}" if with_stage else "none",
    )

    def export(state: dict[str, Tensor], path: Path) -> None:
        if with_stage:
            prefix = "tokenizer."
            of_tokenizer = [key for key in state if key.startswith(prefix)]
            state = {key.removeprefix(prefix): state[key] for key in of_tokenizer}
        save_checkpoint(path, family="vq", config=run.model, state=state, spec=store.spec)

    evaluator = TokenizerQuality(validation)
    result = train_on(
        training,
        model,
        run,
        verb="train vq",
        inputs=inputs,
        evaluators=[evaluator],
        export=export,
        device=device,
    )
    card = {"command": VERB.command(run), "start": run.init}
    return publish(
        run,
        result,
        config=run.model,
        inputs=inputs,
        card=card,
        facts={"steps": result.step, **result.metrics},
    )


def _perceptual(run: VQRun) -> PerceptualDistance | None:
    """The distance that the run names; asked for exactly where its weight is above 0."""
    if run.perceptual is not None and run.lpips is not None:
        raise UserError(
            f"--perceptual {run.perceptual} and --lpips {run.lpips} are two "
            "distances; give one of them."
        )
    distance = run.perceptual or run.lpips
    if (distance is None) != (run.model.perceptual_weight == 0):
        raise UserError(
            f"--perceptual or --lpips (found {distance}) and --model.perceptual-weight (found "
            f"{run.model.perceptual_weight:g}) belong together; give a distance and a weight "
            "above 0, or neither."
        )
    if run.lpips is not None:
        if min(run.model.image_size) < SMALLEST_SIDE:
            raise UserError(
                f"LPIPS needs pictures of at least {SMALLEST_SIDE} pixels along either side, "
                f"found --model.image-size {run.model.image_size}; choose larger pictures or "
                "another "
                "distance."
            )
        return read_lpips(run.lpips)
    if run.perceptual is None:
        return None
    module, _, name = run.perceptual.partition(":")
    try:
        return getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"--perceptual expects 'module:function', and '{run.perceptual}' cannot be imported "
            f"({error})."
        ) from None


def _defaults(chosen: dict[str, str]) -> VQRun:
    run = dataclasses.replace(VQRun(), **chosen)
    if run.init is None:
        return run
    return dataclasses.replace(
        run, model=config_from_json(VQConfig, weights_of(run.init, "vq").config)
    )


VERB = TrainingVerb(name="train vq", cls=VQRun, recipe=_defaults, choices=("task", "init"))


def command(args: Sequence[str]) -> None:
    """`foreact train vq`."""
    train_vq(VERB.parse(args))
