"""`foreact generate` for driving models: what VaViM foresees of a drive, beside what happened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor
from tyro.conf import arg

from foreact.data.stores.fingerprint import fingerprint
from foreact.evals.video import VideoQuality, save_examples
from foreact.families.driving import measuring
from foreact.families.driving.evals.driving_video import driving_video
from foreact.families.driving.vavim import VaViM
from foreact.machine import choose_precision
from foreact.nn.weight_only import WeightPrecision, reduce_weights
from foreact.progress import Progress
from foreact.runs.command_line import options_of
from foreact.runs.results import open_results
from foreact.runs.run import pick_device, say
from foreact.seeds import require_seeds


@dataclass(frozen=True, kw_only=True)
class Imagining:
    """Which model imagines, from which drives, and how."""

    weights: str
    """a checkpoint of VaViM or VaVAM."""
    data: Path
    """a store with the camera's pictures."""
    tokenizer: str | None = None
    """checkpoint folder, shipped name or TorchScript encoder, where the model does not embed it."""
    decoder: Path | None = None
    """TorchScript decoder that belongs to a TorchScript encoder."""
    context: int = 4
    """frames that the model sees."""
    future: int = 4
    """frames that it imagines; beyond its window it goes on from the last frames."""
    windows: int = 4
    """how many, spread evenly over the store."""
    stride: int | None = None
    """frames of the store from one of the model's to the next; default: by the model's rate."""
    temperature: float = 1.0
    """of the draws."""
    top_k: int = 1
    """draw among the k likeliest tokens; 1 takes the likeliest."""
    precision: Literal["auto"] | WeightPrecision = "auto"
    """of the weights; bf16 and int8 read less memory. auto: bf16 where it is faster than fp32."""
    seed: int = 0
    """of the draws."""
    out: Path = Path("runs/generate")
    """folder of the pictures."""
    device: str | None = None
    """where to compute; default CUDA if there is one."""


def generate(asked: Annotated[Imagining, arg(name="")]) -> None:  # --weights, not --asked.weights
    """Imagine how drives go on; each window gives a PNG strip and an mp4 with marked frames.

    Shown are the true frames, what the tokenizer makes of them, and the imagined ones, with PSNR
    and SSIM over all windows.
    """
    require_seeds(asked.seed, option="--seed")
    device = pick_device(asked.device)
    models = measuring.open_models(asked.weights, device)
    tokenizer = measuring.code_tokenizer(models, asked.tokenizer, device, decoder=asked.decoder)
    precision = (
        "int8" if asked.precision == "int8" else choose_precision(asked.precision, device, "rows")
    )
    reduce_weights(models.vavim, precision)
    pictures = measuring.open_pictures(
        asked.data,
        tokenizer,
        weights=models.checkpoint.path,
        frames=asked.context + asked.future,
        stride=asked.stride,
        most=asked.windows,
        rate_hz=models.rate_hz,
    )
    hashes = {"weights": models.checkpoint.hash, "data": fingerprint(pictures.store).digest}
    folder = open_results(asked.out, "generate", options_of(asked), **hashes)
    say(
        "Imagining drives",
        weights=f"{asked.weights} {models.checkpoint.hash[:19]}",
        data=asked.data,
        drives=pictures.about,
        windows=f"{len(pictures.chosen)} of {asked.context} + {asked.future} frames, "
        f"{pictures.windows.stride} apart",
        sampling=f"temperature {asked.temperature}, top_k {asked.top_k}, seed {asked.seed}, "
        f"weights {precision}",
        device=device,
        out=asked.out,
    )
    quality = imagine(asked, models.vavim, pictures, device)
    for name, value in quality.estimates.items():
        print(f"  {name:<16}{value}")
    for path in save_examples(quality, asked.out, fps=pictures.store.spec.fps):
        print(path)
    folder.finish()


def imagine(
    asked: Imagining, vavim: VaViM, pictures: measuring.PictureWindows, device: torch.device
) -> VideoQuality:
    """What the model makes of every window, with a bar over its tokens."""
    windows = len(pictures.chosen)
    rng = torch.Generator(device).manual_seed(asked.seed)
    tokens_to_draw = windows * asked.future * vavim.config.tokens_per_frame
    with Progress(total=tokens_to_draw, unit="token", desc="imagine") as bar:

        def draw(tokens: Tensor, frames: int) -> Tensor:
            return vavim.generate(
                tokens,
                frames=frames,
                temperature=asked.temperature,
                top_k=asked.top_k,
                rng=rng,
                on_token=bar.update,
            )

        imaginer, stride = pictures.imaginer(asked.context, draw, device), pictures.windows.stride
        return driving_video(
            pictures.batches(1), imaginer, stride=stride, seed=asked.seed, examples=windows
        ).quality
