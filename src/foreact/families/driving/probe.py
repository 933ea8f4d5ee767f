"""`foreact eval probe`: what a driving model's features know about classes and depth; depth labels to ask with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from foreact.data.formats.video import save_image
from foreact.errors import UserError
from foreact.evals.features import FeatureNetwork, open_features
from foreact.evals.report import Media
from foreact.families.driving.evals.dense import ProbeConfig
from foreact.families.driving.evals.dense import probe as run_probe
from foreact.families.driving.evals.dense_data import (
    CLASSES,
    SIZE,
    DenseData,
    DepthFormat,
    cityscapes,
    kitti_step,
    read_depth,
    write_depth,
)
from foreact.families.driving.evals.dense_pictures import probe_picture
from foreact.families.driving.evaluate import code_tokenizer, conclude, open_models, require_batch_size
from foreact.machine import AnyPrecision, autocast, choose_precision
from foreact.runs.run import pick_device, say
from foreact.types import to_model_range

Dataset = Literal["cityscapes", "kitti", "kitti-video"]


def probe(
    weights: str,
    data: Path,
    dataset: Dataset = "cityscapes",
    task: Literal["segmentation", "depth"] = "segmentation",
    tokenizer: str | None = None,
    depth: Path | None = None,
    depth_format: DepthFormat = "gray16",
    layer: int = 12,
    per_image: int | None = None,
    neighbours: int = 30,
    search: Literal["exact", "faiss"] = "exact",
    reference: bool = False,
    train_split: str = "train",
    split: str = "val",
    batch_size: int = 8,
    seed: int = 0,
    examples: int = 4,
    precision: AnyPrecision = "fp32",
    out: Path = Path("runs/probe"),
    device: str | None = None,
) -> None:
    """What a layer of VaViM knows about classes or depth: label patches by their nearest neighbours (HummingBird).

    Args:
        weights: a checkpoint of VaViM or VaVAM.
        data: folder of the data set.
        dataset: its kind; "kitti-video" shows the model 8 frames, 5 apart, of which the last is labelled.
        task: "segmentation" or "depth".
        tokenizer: checkpoint folder, shipped name or TorchScript encoder, where the model does not embed it.
        depth: folder of the depth files, for the task "depth".
        depth_format: 16-bit grey, or the red channel of colour files, as the reference reads them.
        layer: block whose output is probed, from 0.
        per_image: patches kept of each training picture; default 10, for depth 100; 0 keeps all.
        neighbours: how many vote.
        search: exact, or faiss: faster on large memories, misses some neighbours.
        reference: count pixels without a class as class 0 in memory, as the reference does.
        train_split: split that fills the memory.
        split: split to score.
        batch_size: pictures per call.
        seed: decides which patches are kept.
        examples: held-out pictures to draw.
        precision: of the features; with auto, what is fast here, the numbers depend on the machine.
        out: folder of the results.
        device: where to compute; default CUDA if there is one.
    """
    require_batch_size(batch_size)
    where = pick_device(device)
    computed = choose_precision(precision, where)
    models = open_models(weights, where)
    vavim = models.vavim
    found = code_tokenizer(models, tokenizer, where)
    rows, columns = vavim.config.grid
    if SIZE[0] % rows or SIZE[0] // rows * columns != SIZE[1]:
        raise UserError(
            f"Pictures of {SIZE[0]} x {SIZE[1]} pixels do not fit a model of {rows} x {columns} tokens; the probe "
            "needs a model of that aspect ratio."
        )
    if task == "depth" and depth is None:
        raise UserError("The task 'depth' needs a folder of depth files; name it with --depth.")
    default = 10 if task == "segmentation" else 100
    config = ProbeConfig(
        task=task,
        classes=CLASSES,
        patch=SIZE[0] // rows,
        neighbours=neighbours,
        per_image=default if per_image is None else per_image or None,
        search=search,
        reference=reference,
    )

    labels = depth if task == "depth" else None
    train, held_out = (
        open_dense(data, dataset, part, depth=labels, depth_format=depth_format) for part in (train_split, split)
    )
    facts: dict[str, Any] = {
        "weights": f"{weights} {models.checkpoint.hash}",
        "layer": layer,
        "data": f"{dataset} {data}: {len(train)} to remember, {len(held_out)} to label",
        "memory": "every patch" if config.per_image is None else f"{config.per_image} patches per picture",
        "neighbours": f"{neighbours}, {search} search",
        "precision": computed,
        "labels": "as the reference" if reference else "pixels without a class left out",
    }
    say(f"Probing for {task}", **facts, device=where, out=out)

    def features(images: Tensor) -> Tensor:
        with autocast(where, computed):
            return vavim.features(found.tokenizer.encode(found.prepare(images.to(where))), layer)[:, -1].flatten(1, 2)

    def bar(part: DenseData, name: str) -> Iterable[tuple[Tensor, Tensor]]:
        return tqdm(part.batches(task, batch_size), total=-(-len(part) // batch_size), desc=name, unit="batch")

    shown: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(images: Tensor, truth: Tensor, predicted: Tensor) -> None:
        room = examples - sum(len(s[0]) for s in shown)
        if room > 0:
            shown.append((images[:room], truth[:room], predicted[:room]))

    rng = torch.Generator().manual_seed(seed)
    result = run_probe(
        bar(train, "remember"),
        bar(held_out, "label"),
        features,
        config,
        draws=lambda n: torch.rand(n, generator=rng),
        keep=keep,
    )
    facts |= {name: f"{value:.4f}" for name, value in result.scores.items()}
    print("  ".join(f"{name} {value:.4f}" for name, value in result.scores.items()))
    pictures = []
    if shown:
        path = out / "examples.png"
        save_image(path, probe_picture(*(torch.cat(parts) for parts in zip(*shown, strict=True))))
        pictures.append(Media(path, "what was seen, what is true, what was found"))
    conclude(out, f"Probing for {task}", {"facts": facts} | result.to_json(), facts=facts, pictures=pictures)


def pseudo_depth(
    network: str,
    data: Path,
    out: Path,
    dataset: Literal["cityscapes", "kitti"] = "cityscapes",
    split: str = "train",
    preprocessing: str = "dinov2",
    device: str | None = None,
) -> None:
    """Let a depth network label pictures for the probe: one 16-bit PNG each, from its own least to its greatest value.

    Files that are there and can be read stay as they are, so work that was cut short goes on.

    Args:
        network: a TorchScript file or "module:function"; pictures (N, 3, H, W) -> depth (N, H, W) or (N, 1, H, W).
        data: folder of the data set.
        out: folder of the depth files; the probe's --depth.
        dataset: its kind.
        split: which part.
        preprocessing: what the network expects; see `foreact eval video`.
        device: where to compute; default CUDA if there is one.
    """
    where = pick_device(device)
    opened = open_features(network, preprocessing=preprocessing, device=where)
    pictures = open_dense(data, dataset, split, depth=out, depth_exists=False)
    say("Depth labels", network=f"{opened.name} {opened.hash}", data=f"{data}: {len(pictures)} pictures", out=out)
    made = 0
    for i in tqdm(range(len(pictures)), desc="depth", unit="picture"):
        path = pictures.samples[i].depth
        assert path is not None
        if not _readable(path):
            write_depth(path, _depth(opened, pictures.images(i)))
            made += 1
    print(f"{made} of {len(pictures)} depth files were made, the others were there: {out / split}")


@torch.no_grad()
def _depth(network: FeatureNetwork, images: Tensor) -> np.ndarray:
    """uint8 (1, 3, H, W) -> float32 (H, W)."""
    found = network.forward(network.preprocessing(to_model_range(images.to(network.device))))
    if not isinstance(found, Tensor) or found.ndim not in (3, 4) or found.shape[:-2].numel() != 1:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"A depth network should return (N, H, W) or (N, 1, H, W), '{network.name}' gave {shape}.")
    maps = found.float().reshape(1, 1, *found.shape[-2:])
    maps = functional.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return maps[0, 0].cpu().numpy()


def _readable(path: Path) -> bool:
    try:
        read_depth(path)
    except UserError:
        return False
    return True


def open_dense(data: Path, dataset: Dataset, split: str, **options: Any) -> DenseData:
    """Cityscapes, KITTI-STEP, or its clips of 8 frames, 5 apart."""
    if dataset == "cityscapes":
        return cityscapes(data, split, **options)
    return kitti_step(data, split, frames=8 if dataset == "kitti-video" else 1, **options)
