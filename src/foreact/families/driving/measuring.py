"""What the verbs that measure a driving model share: model, tokenizer, windows, the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from foreact.checkpoints.format import Checkpoint, build, load_checkpoint
from foreact.checkpoints.shipped import resolve
from foreact.checkpoints.tokenizers import LoadedTokenizer, open_tokenizer, tokenizer_of
from foreact.data.stores.store import ZarrStore, open_store
from foreact.data.windows.loader import spread
from foreact.errors import UserError
from foreact.evals.report import write_report
from foreact.families.driving.data.drives import FRONT
from foreact.families.driving.data.windows import DrivingWindows
from foreact.families.driving.evals.driving_video import Generate, Imaginer
from foreact.families.driving.sources import even_stride
from foreact.families.driving.vavam import VaVAM
from foreact.families.driving.vavim import VaViM
from foreact.files import write_json
from foreact.runs.unseen import episodes_to_measure
from foreact.types import Batch, to_uint8

MODEL_HZ = 2.0
"""Frames per second that the published models see; taken for weights that do not say."""


class DrivingModels(NamedTuple):
    """A checkpoint's video model, and the action model around it where it is a VaVAM."""

    vavim: VaViM
    vavam: VaVAM | None
    checkpoint: Checkpoint

    @property
    def rate_hz(self) -> float:
        """Frames per second that the model sees."""
        return MODEL_HZ if self.checkpoint.spec is None else self.checkpoint.spec.fps


def open_models(weights: str, device: torch.device) -> DrivingModels:
    """Read a checkpoint folder, or a shipped name."""
    checkpoint = load_checkpoint(resolve(weights), of=("vavim", "vavam"))
    model = build(checkpoint, device)
    if isinstance(model, VaVAM):
        return DrivingModels(model.vavim, model, checkpoint)
    assert isinstance(model, VaViM)
    return DrivingModels(model, None, checkpoint)


def code_tokenizer(
    models: DrivingModels | None,
    ref: str | None,
    device: torch.device,
    *,
    decoder: Path | None = None,
) -> LoadedTokenizer:
    """The tokenizer of a model's tokens, or the one named by itself."""
    if models is not None:
        loaded = tokenizer_of(models.checkpoint, ref, device, decoder=decoder)
    elif ref is not None:
        loaded = open_tokenizer(ref, device, decoder=decoder)
    else:
        raise UserError(
            "Name a model with --weights, or a tokenizer to measure alone with --tokenizer."
        )
    if loaded.tokenizer.vocab is None:
        source = ref if models is None else models.checkpoint.path
        raise UserError(
            f"{ref or source} brings a tokenizer of continuous latents; driving models read tokens."
        )
    return loaded


class PictureWindows(NamedTuple):
    """Windows of a store's pictures, the numbers of those to measure, and their tokenizer."""

    store: ZarrStore
    windows: DrivingWindows
    chosen: np.ndarray
    tokenizer: LoadedTokenizer
    about: str

    def batches(self, size: int) -> Iterator[Batch]:
        """Pictures at the tokenizer's size, without tokens, which it makes anew."""
        for numbers in np.array_split(self.chosen, -(-len(self.chosen) // size)):
            frames = self.store.gather(FRONT, self.windows.rows(numbers))  # (B, T, H, W, 3)
            pictures = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 2)
            video = to_uint8(self.tokenizer.prepare(pictures))
            index = torch.from_numpy(self.windows.anchors.at(numbers))
            yield Batch(video={FRONT: video}, index=index)

    def imaginer(self, context: int, generate: Generate | None, device: torch.device) -> Imaginer:
        """What sees the first `context` frames of a window and draws how `generate` goes on."""
        return Imaginer(
            tokenizer=self.tokenizer.tokenizer,
            camera=FRONT,
            context=context,
            generate=generate,
            device=device,
        )


def open_pictures(
    data: Path,
    tokenizer: LoadedTokenizer,
    *,
    weights: Path | None,
    frames: int,
    stride: int | None,
    rate_hz: float,
    most: int | None,
) -> PictureWindows:
    """At most so many windows of a store, of `frames` frames `stride` apart, or at `rate_hz`."""
    store = open_store(data)
    stride = model_stride(str(data), store.spec.fps, rate_hz, stride)
    episodes, about = episodes_to_measure(weights, store)
    windows = DrivingWindows(store, frames=frames, stride=stride, horizon=None, episodes=episodes)
    return PictureWindows(store, windows, choose(windows, most), tokenizer, about)


def model_stride(label: str, rate_hz: float, model_hz: float, stride: int | None) -> int:
    """Frames of the data from one of the model's to the next: as asked, or by its rate."""
    return stride or even_stride(label, rate_hz, model_hz, "choose the nearest with --stride")


def choose(windows: DrivingWindows, most: int | None) -> np.ndarray:
    """Numbers of the windows to measure: all, or at most `most` spread evenly."""
    if most is not None and most < 1:
        raise UserError(f"--max-windows should be at least 1, found {most}.")
    return spread(len(windows), len(windows) if most is None else most)


def require_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"--batch-size should be at least 1, found {batch_size}.")


def conclude(out: Path, title: str, result: dict[str, Any], **page: Any) -> None:
    """Write metrics.json and report.html (`page`: see `write_report`), and say where they lie."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", result)
    report = write_report(out / "report.html", title=title, **page)
    print(f"Metrics: {out / 'metrics.json'}\nReport: {report}")
