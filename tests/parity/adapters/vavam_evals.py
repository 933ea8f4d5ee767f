"""Cases about measuring: Frechet distance, dense probing and
its metrics, distance of planned paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
from parity.registry import Case, adapter
from torch import Tensor

from foreact.evals.frechet import Accumulation, Moments, frechet_distance
from foreact.families.driving.evals.dense import ProbeConfig, build_memory, probe
from foreact.families.driving.evals.dense_metrics import Confusion, DepthErrors
from foreact.families.driving.evals.open_loop import min_ade


@adapter("vavam", "frechet_distance")
def frechet(case: Case) -> None:
    def moments(name: str, accumulation: Accumulation) -> Moments:
        found = Moments(accumulation)
        for part in np.array_split(case.io[name].numpy(), 3):
            found.add(part)
        return found

    tolerance = case.meta["tolerance"]["rtol"]
    for accumulation in ("reference", "exact"):
        real, fake = moments("real", accumulation), moments("fake", accumulation)
        expected = case.meta["fid"]
        assert abs(frechet_distance(real, fake) - expected) <= tolerance * abs(expected), (
            accumulation
        )
        # What is left of equal sets is rounding, in proportion to what cancels.
        scale = 2 * np.trace(real.covariance)
        same = frechet_distance(real, moments("real", accumulation))
        assert abs(same - case.meta["fid_identical_sets"]) <= tolerance * scale, accumulation


@adapter("vavam", "min_ade")
def distance_of_plans(case: Case) -> None:
    error, nearest = min_ade(case.io["pred"], case.io["gt"])
    case.check("none", error)
    case.check("idx", nearest)
    case.check("mean", error.mean())
    case.check("sum", error.sum())


@adapter("vavam", "dense_metrics")
def dense_metrics(case: Case) -> None:
    errors = DepthErrors()
    errors.add(case.io["pred"], case.io["gt"])
    for name, value in errors.scores().items():
        case.check_value(value, case.meta["depth_metrics"][name], name)
    found = []
    for truth, predicted in zip(case.io["y_true"], case.io["y_pred"], strict=True):
        confusion = Confusion(case.config["num_classes"])
        confusion.add(predicted, truth)
        found.append(confusion)
    case.check("confusion", torch.stack([c.counts for c in found]))
    check_iou(case, torch.stack([c.iou() for c in found]), case.io["iou"], "iou")


def check_iou(case: Case, got: Tensor, expected: Tensor, label: str) -> None:
    """Classes that do not occur are NaN on both sides."""
    assert torch.equal(got.isnan(), expected.isnan()), label
    case.check_value(got.nan_to_num(), expected.nan_to_num(), label)


@adapter("vavam", "hummingbird")
def hummingbird(case: Case) -> None:
    patch = case.config["patch_size"]
    # The depth bins of the bounded memory span a batch, and the case states the batches in words.
    sizes = re.search(r"train batch (\d+), eval batch (\d+)", case.meta["shows"])
    assert sizes is not None
    train_batch, val_batch = int(sizes[1]), int(sizes[2])

    def features(images: Tensor) -> Tensor:
        tiles = images.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, C, h, w, py, px)
        return tiles.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2) @ case.io["projection"]

    for label in case.meta["logs"]:
        task, size = label.split("_")
        config = ProbeConfig(
            task=task,
            classes=case.config["num_classes"],
            patch=patch,
            neighbours=case.config["num_neighbour"],
            temperature=case.config["beta"],
            per_image=None if size == "all" else int(size.removeprefix("x")),
            reference=True,
        )
        stream = "masks" if task == "segmentation" else "depth"

        def batches(split: str, size: int, stream: str = stream) -> Iterator[tuple[Tensor, Tensor]]:
            images, target = case.io[f"{split}_images"], case.io[f"{split}_{stream}"]
            return zip(images.split(size), target.split(size), strict=True)

        memory = build_memory(
            batches("train", train_batch), features, config, draws=recorded(case, label)
        )
        case.check(f"{label}.feature_memory", memory.features)
        if f"{label}.label_memory" in case.io:
            labels = case.io[f"{label}.label_memory"]
            # The reference keeps every pixel's depth and averages after the vote.
            labels = labels if task == "segmentation" else labels.mean(1, keepdim=True)
            case.check_value(memory.labels, labels, f"{label}.label_memory")

        predictions: list[Tensor] = []
        result = probe(
            batches("train", train_batch),
            batches("val", val_batch),
            features,
            config,
            draws=recorded(case, label),
            keep=lambda _images, _truth, predicted, into=predictions: into.append(predicted),
        )
        case.check(f"{label}.prediction", torch.cat(predictions)[:, None])
        expected = case.meta["logs"][label]
        for name, value in result.scores.items():
            case.check_value(value, expected[name], f"{label}.{name}")
        if task == "segmentation":
            iou, wanted = (
                torch.tensor([float("nan") if v is None else v for v in values])
                for values in (result.iou, expected["IoU"])
            )
            check_iou(case, iou, wanted, f"{label}.IoU")


def recorded(case: Case, label: str) -> Callable[[int], Tensor]:
    """The reference's own uniform draws, handed out in order."""
    draws = iter(case.io.get(f"{label}.uniforms", torch.zeros(0)).tolist())
    return lambda n: torch.tensor([next(draws) for _ in range(n)])
