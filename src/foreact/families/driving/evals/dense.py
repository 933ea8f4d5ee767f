"""Dense probing without training (HummingBird, arXiv 2306.01667): nearest labelled patches vote.

    training pictures -> features and labels of patches -> memory
    held-out pictures -> features -> neighbours in memory -> labels of patches -> labels of pixels
                      -> IoU | depth error

What the features of a network know about classes or depth shows in the score, since nothing else is
learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from foreact.errors import UserError
from foreact.families.driving.evals.dense_metrics import Confusion, DepthErrors
from foreact.families.driving.evals.neighbours import ExactSearch, FaissSearch

IGNORE = 255
"""Label of pixels that belong to no class."""

DEPTH_BINS = 255

Features = Callable[[Tensor], Tensor]
"""Pictures (B, ...), as the data gives them -> (B, h w, D), patches row by row, on any device."""

Labelled = Iterable[tuple[Tensor, Tensor]]
"""Batches of pictures (B, ...) and labels (B, 1, H, W): integer classes, or float depth."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Settings of the probe; they belong beside the score.

    Attributes:
        task: "segmentation" or "depth".
        classes: number of classes of segmentation.
        patch: pixels along the side of a patch.
        neighbours: how many neighbours vote.
        temperature: of the softmax over their cosines.
        per_image: patches that each training picture leaves in memory; None for all.
        search: "exact" compares with all of memory; "faiss" looks into a tenth of its cells only,
            see `FaissSearch`.
        reference: repeat two habits of the reference evaluation: pixels without a class count as
            class 0 in memory (here they count as nothing), and the depth bins that balance a
            bounded memory span a batch (here a picture, so that the choice does not depend on what
            else is in the batch).
    """

    task: Literal["segmentation", "depth"] = "segmentation"
    classes: int = 19
    patch: int = 16
    neighbours: int = 30
    temperature: float = 0.02
    per_image: int | None = None
    search: Literal["exact", "faiss"] = "exact"
    reference: bool = False

    def __post_init__(self) -> None:
        if self.task not in ("segmentation", "depth") or self.search not in ("exact", "faiss"):
            raise UserError(
                "The probe's task should be 'segmentation' or 'depth' and its search 'exact' or "
                f"'faiss', found '{self.task}' and '{self.search}'."
            )
        for name in ("classes", "patch", "neighbours", "per_image"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} should be at least 1, found {value}.")
        if not self.temperature > 0:
            raise UserError(
                f"The probe's temperature should be positive, found {self.temperature}."
            )


@dataclass(frozen=True)
class Memory:
    """M labelled patches, on the device that the network's features come from.

    Attributes:
        features: float32 (M, D) of length 1.
        labels: float32, class shares (M, C) or depth (M, 1).
    """

    features: Tensor
    labels: Tensor


class Search(Protocol):
    """Nearest neighbours by dot product."""

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(N, D) -> similarities (N, k), descending, and rows of memory, int64 (N, k)."""
        ...


@torch.no_grad()
def build_memory(
    data: Labelled, features: Features, config: ProbeConfig, *, draws: Callable[[int], Tensor]
) -> Memory:
    """Gather labelled patches of training pictures.

    Args:
        data: training pictures with labels.
        features: the network under test.
        config: of the probe.
        draws: n -> uniform numbers in [0, 1), float (n,); decides which patches a bounded memory
            keeps.

    Raises:
        UserError: no labelled patch, or features and labels that do not fit.
    """
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    for images, target in data:
        patches = _unit_features(features, images, target, config)
        patch_labels, classes = _patch_labels(target.cpu(), config)
        if config.per_image is None:
            labelled = classes.any(-1)
            rows.append(patches[labelled.to(patches.device)])
            labels.append(patch_labels[labelled].to(patches.device))
            continue
        for image, chosen in enumerate(choose_patches(classes, config.per_image, draws)):
            rows.append(patches[image, chosen.to(patches.device)])
            labels.append(patch_labels[image, chosen].to(patches.device))
    if not sum(map(len, rows)):
        raise UserError(
            "No training picture has a labelled patch, so there is nothing to compare with."
        )
    return Memory(torch.cat(rows), torch.cat(labels))


def choose_patches(kinds: Tensor, n: int, draws: Callable[[int], Tensor]) -> list[Tensor]:
    """Up to n patches per picture, those with rare classes more likely.

    A patch's score is a uniform number times the sum, over the classes in it, of how many patches
    of the picture hold that class; the lowest scores are kept.

    Args:
        kinds: which classes each patch holds, bool (B, P, C); a patch without any is never chosen.
        draws: n -> float (n,); asked once for all patches that hold a class, in order.

    Returns:
        Per picture the chosen patches, int64 (<= n,), lowest score first.
    """
    labelled = kinds.any(-1)  # (B, P)
    frequency = (kinds * kinds.sum(1, keepdim=True)).sum(-1).float()  # (B, P), high: common classes
    scores = torch.full(labelled.shape, torch.inf)  # patches without a class sort last
    scores[labelled] = frequency[labelled] * draws(int(labelled.sum()))
    order = scores.argsort(dim=1, stable=True)
    return [row[: min(n, int(count))] for row, count in zip(order, labelled.sum(1), strict=True)]


def open_search(memory: Memory, config: ProbeConfig) -> Search:
    """The search that the config asks for, over the memory's features.

    Raises:
        UserError: memory holds fewer patches than neighbours vote, or FAISS is not installed.
    """
    if len(memory.features) < config.neighbours:
        raise UserError(
            f"Memory holds {len(memory.features)} patches and {config.neighbours} neighbours are "
            "to vote; give more pictures or ask for fewer neighbours."
        )
    return (
        FaissSearch(memory.features) if config.search == "faiss" else ExactSearch(memory.features)
    )


@torch.no_grad()
def predict(
    patches: Tensor, grid: tuple[int, int], memory: Memory, search: Search, config: ProbeConfig
) -> Tensor:
    """Labels of every pixel from features of patches.

    Args:
        patches: their features, float (B, h w, D) of length 1.
        grid: (h, w).

    Returns:
        (B, 1, H, W): int64 classes, or float32 depth.
    """
    similarity, rows = search(patches.flatten(0, 1), config.neighbours)  # (B h w, k)
    weights = (similarity / config.temperature).softmax(-1)
    votes = (weights[..., None] * memory.labels[rows]).sum(1)  # (B h w, C | 1)
    maps = votes.view(len(patches), *grid, -1).movedim(-1, 1)  # (B, C | 1, h, w)
    size = (grid[0] * config.patch, grid[1] * config.patch)
    pixels = functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return pixels.argmax(1, keepdim=True) if config.task == "segmentation" else pixels


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Result of `probe`.

    Attributes:
        scores: "mIoU", or "d1", "d2", "d3", "abs_rel", "sq_rel" and "rmse".
        iou: per class, None where the class occurs neither in truth nor in prediction; empty for
            depth.
        config: of the probe.
        memory: patches in memory.
        images: held-out pictures.
    """

    scores: dict[str, float]
    iou: list[float | None]
    config: ProbeConfig
    memory: int
    images: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@torch.no_grad()
def probe(
    train: Labelled,
    held_out: Labelled,
    features: Features,
    config: ProbeConfig,
    *,
    draws: Callable[[int], Tensor],
    keep: Callable[[Tensor, Tensor, Tensor], None] | None = None,
) -> ProbeResult:
    """Build a memory from training pictures and score the labels it gives to held-out pictures.

    Args:
        train, held_out: labelled pictures.
        features: the network under test.
        config: settings.
        draws: see `build_memory`.
        keep: called with pictures, truth and prediction of every held-out batch, for pictures of
            them.

    Raises:
        UserError: data that is empty or does not fit.
    """
    memory = build_memory(train, features, config, draws=draws)
    search = open_search(memory, config)
    metric = (
        Confusion(config.classes, ignore=IGNORE) if config.task == "segmentation" else DepthErrors()
    )
    images = 0
    for pictures, target in held_out:
        patches = _unit_features(features, pictures, target, config)
        grid = (target.shape[-2] // config.patch, target.shape[-1] // config.patch)
        predicted = predict(patches, grid, memory, search, config).cpu()
        metric.add(predicted, target.cpu())
        images += len(target)
        if keep is not None:
            keep(pictures, target, predicted)
    return ProbeResult(
        scores=metric.scores(),
        iou=metric.iou_list() if isinstance(metric, Confusion) else [],
        config=config,
        memory=len(memory.features),
        images=images,
    )


def _unit_features(
    features: Features, images: Tensor, target: Tensor, config: ProbeConfig
) -> Tensor:
    """(B, h w, D) of length 1, checked against the grid of the labels."""
    patches = features(images).float()
    height, width = target.shape[-2:]
    expected = (len(target), (height // config.patch) * (width // config.patch))
    if height % config.patch or width % config.patch or patches.shape[:2] != expected:
        raise UserError(
            f"Labels of {height} x {width} pixels in patches of {config.patch} do not fit "
            f"features of shape {tuple(patches.shape)}; features should be (B, patches, D)."
        )
    return functional.normalize(patches, dim=-1)


def _patch_labels(target: Tensor, config: ProbeConfig) -> tuple[Tensor, Tensor]:
    """Labels float32 (B, P, C | 1) of patches, and which classes each holds, bool (B, P, C).

    The classes of depth, which only balance a bounded memory, are bins between its extremes.
    """
    pixels = _patches(target, config.patch)  # (B, P, pixels of a patch)
    if config.task == "depth":
        # Extremes of the batch, (), or of each picture, (B,).
        low, high = pixels.aminmax() if config.reference else pixels.flatten(1).aminmax(dim=1)
        low, high = low.view(-1, 1, 1), high.view(-1, 1, 1)
        bins = ((pixels - low) / (high - low).clamp_min(1e-12) * DEPTH_BINS).long()
        # Averaging over the patch now or after the vote is the same, since the vote is linear.
        return pixels.float().mean(-1, keepdim=True), _occurring(bins, DEPTH_BINS + 1)
    pixels = pixels.long()
    ignored = pixels == IGNORE
    outside = pixels[~ignored & ((pixels < 0) | (pixels >= config.classes))]
    if len(outside):
        raise UserError(
            f"Labels should lie in 0..{config.classes - 1}, or be {IGNORE} for none, found "
            f"{int(outside[0])}."
        )
    # The reference counts a pixel without a class as one of class 0.
    counted = torch.ones_like(ignored) if config.reference else ~ignored
    one_hot = functional.one_hot(pixels.masked_fill(ignored, 0), config.classes)
    counts = (one_hot * counted[..., None]).sum(2)  # (B, P, C)
    return counts / counted.sum(-1, keepdim=True).clamp_min(1), counts > 0


def _occurring(bins: Tensor, n: int) -> Tensor:
    """Which of n values occur in each row: int64 (B, P, N) -> bool (B, P, n)."""
    occurring = torch.zeros(*bins.shape[:2], n, dtype=torch.bool)
    return occurring.scatter_(2, bins, True)


def _patches(images: Tensor, size: int) -> Tensor:
    """(B, 1, H, W) -> (B, P, size * size), patches row by row."""
    # (B, rows, columns, size, size)
    tiles = images[:, 0].unfold(1, size, size).unfold(2, size, size)
    return tiles.flatten(3).flatten(1, 2)
