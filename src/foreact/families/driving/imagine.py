"""`foreact generate` for driving models: what VaViM foresees from some frames of a drive, beside what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from foreact.data.stores.store import open_store
from foreact.evals.video import save_examples
from foreact.families.driving.data.drives import FRONT, StoreDrives
from foreact.families.driving.data.windows import DrivingWindows
from foreact.families.driving.evals.driving_video import driving_video
from foreact.families.driving.evaluate import NEAREST, choose, code_tokenizer, open_models, picture_batches
from foreact.families.driving.sources import even_stride
from foreact.machine import choose_precision
from foreact.nn.weight_only import WeightPrecision, reduce_weights
from foreact.runs.run import pick_device, say


def generate(
    weights: str,
    data: Path,
    tokenizer: str | None = None,
    decoder: Path | None = None,
    context: int = 4,
    future: int = 4,
    windows: int = 4,
    stride: int | None = None,
    temperature: float = 1.0,
    top_k: int = 1,
    precision: Literal["auto"] | WeightPrecision = "auto",
    seed: int = 0,
    out: Path = Path("runs/generate"),
    device: str | None = None,
) -> None:
    """Imagine how drives go on; each window gives a PNG strip and an mp4 in which every frame is marked.

    Shown are the true frames, what the tokenizer makes of them, and the imagined ones, with PSNR and SSIM over all
    windows.

    Args:
        weights: a checkpoint of VaViM or VaVAM.
        data: a store with the camera's pictures.
        tokenizer: checkpoint folder, shipped name or TorchScript encoder, where the model does not embed it.
        decoder: TorchScript decoder that belongs to a TorchScript encoder.
        context: frames that the model sees.
        future: frames that it imagines; beyond its window it goes on from the last frames.
        windows: how many, spread evenly over the store.
        stride: frames of the store from one frame of the model to the next; default: as makes the model's rate.
        temperature: of the draws.
        top_k: draw among the k likeliest tokens; 1 takes the likeliest.
        precision: of the weights: bf16 and int8 read less memory per token. auto: bf16 where it decodes faster than
            fp32.
        seed: of the draws.
        out: folder of the pictures.
        device: where to compute; default CUDA if there is one.
    """
    where = pick_device(device)
    models = open_models(weights, where)
    vavim = models.vavim
    found = code_tokenizer(models, tokenizer, where, decoder=decoder)
    reduced = precision if precision == "int8" else choose_precision(precision, where, "rows")
    reduce_weights(vavim, reduced)
    store = open_store(data)
    stride = stride or even_stride(str(data), store.spec.fps, models.rate_hz, NEAREST)
    cut = DrivingWindows(StoreDrives(store), frames=context + future, stride=stride, horizon=None)
    chosen = choose(cut, windows)
    rng = torch.Generator(where).manual_seed(seed)
    say(
        "Imagining drives",
        weights=f"{weights} {models.checkpoint.hash[:19]}",
        data=data,
        windows=f"{len(chosen)} of {context} + {future} frames, {stride} apart",
        sampling=f"temperature {temperature}, top_k {top_k}, seed {seed}, weights {reduced}",
        device=where,
        out=out,
    )

    with tqdm(total=len(chosen) * future * vavim.config.tokens_per_frame, unit="token", desc="imagine") as bar:

        def imagine(tokens: Tensor, frames: int) -> Tensor:
            return vavim.generate(
                tokens, frames=frames, temperature=temperature, top_k=top_k, rng=rng, on_token=bar.update
            )

        result = driving_video(
            picture_batches(cut, store, chosen, 1, found),
            found.tokenizer,
            FRONT,
            generate=imagine,
            context=context,
            stride=stride,
            seed=seed,
            examples=len(chosen),
            device=where,
        )
    for name, value in result.quality.estimates.items():
        print(f"  {name:<16}{value}")
    for path in save_examples(result.quality, out, fps=store.spec.fps):
        print(path)
