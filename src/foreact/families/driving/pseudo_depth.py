"""`foreact data pseudo-depth`: depth labels for the probe, by any depth network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foreact.errors import UserError
from foreact.evals.features import FeatureNetwork, open_features
from foreact.families.driving.evals.dense_data import open_dense, read_depth, write_depth
from foreact.progress import Progress
from foreact.runs.run import pick_device, say
from foreact.types import to_model_range


def pseudo_depth(
    network: str,
    data: Path,
    out: Path,
    dataset: Literal["cityscapes", "kitti"] = "cityscapes",
    split: str = "train",
    preprocessing: str = "dinov2",
    device: str | None = None,
) -> None:
    """Let a depth network label pictures for the probe: one 16-bit PNG each, of its own range.

    Files that are there and can be read stay as they are, so work that was cut short goes on.

    Args:
        network: a TorchScript file or "module:function"; pictures (N, 3, H, W) -> depth (N, H, W)
            or (N, 1, H, W).
        data: folder of the data set.
        out: folder of the depth files; the probe's --depth.
        dataset: its kind.
        split: which part.
        preprocessing: what the network expects; see `foreact eval video`.
        device: where to compute; default CUDA if there is one.
    """
    chosen_device = pick_device(device)
    depth_network = open_features(network, preprocessing=preprocessing, device=chosen_device)
    pictures = open_dense(data, dataset, split, depth=out, depth_exists=False)
    say(
        "Depth labels",
        network=f"{depth_network.name} {depth_network.hash}",
        data=f"{data}: {len(pictures)} pictures",
        out=out,
    )
    made = 0
    for i in Progress(range(len(pictures)), desc="depth", unit="picture"):
        path = pictures.samples[i].depth
        assert path is not None
        if not _readable(path):
            write_depth(path, _depth(depth_network, pictures.images(i)))
            made += 1
    print(f"{made} of {len(pictures)} depth files were made, the others were there: {out / split}")


@torch.no_grad()
def _depth(network: FeatureNetwork, images: Tensor) -> np.ndarray:
    """uint8 (1, 3, H, W) -> float32 (H, W)."""
    depth = network.forward(network.preprocessing(to_model_range(images.to(network.device))))
    if not isinstance(depth, Tensor) or depth.ndim not in (3, 4) or depth.shape[:-2].numel() != 1:
        shape = tuple(depth.shape) if isinstance(depth, Tensor) else type(depth).__name__
        raise UserError(
            "A depth network should return (N, H, W) or (N, 1, H, W), "
            f"'{network.name}' gave {shape}."
        )
    depth = depth.float().reshape(1, 1, *depth.shape[-2:])
    size = images.shape[-2:]
    depth = functional.interpolate(depth, size=size, mode="bilinear", align_corners=False)
    return depth[0, 0].cpu().numpy()


def _readable(path: Path) -> bool:
    try:
        read_depth(path)
    except UserError:
        return False
    return True
