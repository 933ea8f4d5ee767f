"""`foreact eval probe`: what a driving model's features know about classes and depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from tyro.conf import arg

from foreact.data.formats.video import save_image
from foreact.errors import UserError
from foreact.evals.report import Media
from foreact.families.driving import measuring
from foreact.families.driving.evals import dense
from foreact.families.driving.evals.dense_data import (
    CLASSES,
    SIZE,
    Dataset,
    DenseData,
    DepthFormat,
    open_dense,
)
from foreact.families.driving.evals.dense_pictures import probe_picture
from foreact.machine import AnyPrecision, Precision, autocast, choose_precision
from foreact.progress import Progress
from foreact.runs.command_line import options_of
from foreact.runs.results import open_results
from foreact.runs.run import pick_device, say
from foreact.seeds import require_seeds


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Which features to ask, on which pictures, and how."""

    weights: str
    """a checkpoint of VaViM or VaVAM."""
    data: Path
    """folder of the data set."""
    dataset: Dataset = "cityscapes"
    """its kind; "kitti-video" shows the model 8 frames, 5 apart, of which the last is labelled."""
    task: Literal["segmentation", "depth"] = "segmentation"
    """"segmentation" or "depth"."""
    tokenizer: str | None = None
    """checkpoint folder, shipped name or TorchScript encoder, where the model does not embed it."""
    depth: Path | None = None
    """folder of the depth files, for the task "depth"."""
    depth_format: DepthFormat = "gray16"
    """16-bit grey, or the red channel of colour files, as the reference reads them."""
    layer: int = 12
    """block whose output is probed, from 0."""
    per_image: int | None = None
    """patches kept of each training picture; default 10, for depth 100; 0 keeps all."""
    neighbours: int = 30
    """how many vote."""
    search: Literal["exact", "faiss"] = "exact"
    """exact, or faiss: faster on large memories, misses some neighbours."""
    reference: bool = False
    """count pixels without a class as class 0 in memory, as the reference does."""
    train_split: str = "train"
    """split that fills the memory."""
    split: str = "val"
    """split to score."""
    batch_size: int = 8
    """pictures per call."""
    seed: int = 0
    """decides which patches are kept."""
    examples: int = 4
    """held-out pictures to draw."""
    precision: AnyPrecision = "fp32"
    """of the features; with auto, what is fast here, the numbers depend on the machine."""
    out: Path = Path("runs/probe")
    """folder of the results."""
    device: str | None = None
    """where to compute; default CUDA if there is one."""


def probe(asked: Annotated[Probe, arg(name="")]) -> None:  # --weights, not --asked.weights
    """What a VaViM layer knows about classes or depth: nearest patches vote (HummingBird)."""
    opened = Opened(asked)
    facts = opened.describe()
    say(f"Probing for {asked.task}", **facts, device=opened.device, out=asked.out)
    opened.report(facts, opened.measure())


class Opened:
    """The model, the pictures to remember and to label, and the settings of the probe."""

    def __init__(self, asked: Probe) -> None:
        measuring.require_batch_size(asked.batch_size)
        require_seeds(asked.seed, option="--seed")
        self.asked = asked
        self.device = pick_device(asked.device)
        self.precision: Precision = choose_precision(asked.precision, self.device)
        self.models = measuring.open_models(asked.weights, self.device)
        self.tokenizer = measuring.code_tokenizer(self.models, asked.tokenizer, self.device)
        self.results = open_results(
            asked.out, "eval probe", options_of(asked), weights=self.models.checkpoint.hash
        )
        rows, columns = self.models.vavim.config.grid
        if SIZE[0] % rows or SIZE[0] // rows * columns != SIZE[1]:
            raise UserError(
                f"Pictures of {SIZE[0]} x {SIZE[1]} pixels do not fit a model of {rows} x "
                f"{columns} tokens; the probe needs a model of that aspect ratio."
            )
        if asked.task == "depth" and asked.depth is None:
            raise UserError("The task 'depth' needs a folder of depth files; name it with --depth.")
        usual = 10 if asked.task == "segmentation" else 100
        self.config = dense.ProbeConfig(
            task=asked.task,
            classes=CLASSES,
            patch=SIZE[0] // rows,
            neighbours=asked.neighbours,
            per_image=usual if asked.per_image is None else asked.per_image or None,
            search=asked.search,
            reference=asked.reference,
        )
        depth = asked.depth if asked.task == "depth" else None
        self.train, self.held_out = (
            open_dense(
                asked.data, asked.dataset, part, depth=depth, depth_format=asked.depth_format
            )
            for part in (asked.train_split, asked.split)
        )
        # Pictures, true labels and predicted ones, to be drawn.
        self.examples: list[tuple[Tensor, Tensor, Tensor]] = []

    def describe(self) -> dict[str, Any]:
        asked, per_image = self.asked, self.config.per_image
        return {
            "command": self.results.command,
            "weights": f"{asked.weights} {self.models.checkpoint.hash}",
            "layer": asked.layer,
            "data": f"{asked.dataset} {asked.data}: {len(self.train)} to remember, "
            f"{len(self.held_out)} to label",
            "memory": "every patch" if per_image is None else f"{per_image} patches per picture",
            "neighbours": f"{asked.neighbours}, {asked.search} search",
            "precision": self.precision,
            "labels": "as the reference" if asked.reference else "pixels without a class left out",
        }

    def measure(self) -> dense.ProbeResult:
        rng = torch.Generator().manual_seed(self.asked.seed)
        return dense.probe(
            self._batches(self.train, "remember"),
            self._batches(self.held_out, "label"),
            self._features,
            self.config,
            draws=partial(torch.rand, generator=rng),
            keep=self._keep,
        )

    def report(self, facts: dict[str, Any], result: dense.ProbeResult) -> None:
        scores = {name: f"{value:.4f}" for name, value in result.scores.items()}
        print("  ".join(f"{name} {value}" for name, value in scores.items()))
        facts |= scores
        pictures = []
        if self.examples:
            path = self.asked.out / "examples.png"
            images, truth, predicted = (torch.cat(p) for p in zip(*self.examples, strict=True))
            save_image(path, probe_picture(images, truth, predicted))
            pictures.append(Media(path, "what was seen, what is true, what was found"))
        title, raw = f"Probing for {self.asked.task}", {"facts": facts} | result.to_json()
        measuring.conclude(self.asked.out, title, raw, facts=facts, pictures=pictures)
        self.results.finish()

    def _batches(self, part: DenseData, name: str) -> Iterable[tuple[Tensor, Tensor]]:
        size = self.asked.batch_size
        batches = part.batches(self.asked.task, size)
        return Progress(batches, total=-(-len(part) // size), desc=name, unit="batch")

    def _features(self, images: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            tokens = self.tokenizer.tokenizer.encode(self.tokenizer.prepare(images.to(self.device)))
            features = self.models.vavim.features(tokens, self.asked.layer)  # (B, T, h, w, width)
            return features[:, -1].flatten(1, 2)  # of the last frame, which is labelled

    def _keep(self, images: Tensor, truth: Tensor, predicted: Tensor) -> None:
        room = self.asked.examples - sum(len(images) for images, _, _ in self.examples)
        if room > 0:
            self.examples.append((images[:room], truth[:room], predicted[:room]))
