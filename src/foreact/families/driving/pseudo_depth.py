"""`foreact data pseudo-depth`: depth labels for the probe, by any depth network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from foreact.errors import UserError
from foreact.evals.features import FeatureNetwork, open_features
from foreact.families.driving.evals.dense_data import open_dense, read_depth, write_depth
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
    """Let a depth network label pictures for the probe: one 16-bit PNG each, from its own least to
    its greatest value.

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
    where = pick_device(device)
    opened = open_features(network, preprocessing=preprocessing, device=where)
    pictures = open_dense(data, dataset, split, depth=out, depth_exists=False)
    say(
        "Depth labels",
        network=f"{opened.name} {opened.hash}",
        data=f"{data}: {len(pictures)} pictures",
        out=out,
    )
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
        raise UserError(
            "A depth network should return (N, H, W) or (N, 1, H, W), "
            f"'{network.name}' gave {shape}."
        )
    maps = found.float().reshape(1, 1, *found.shape[-2:])
    maps = functional.interpolate(
        maps, size=images.shape[-2:], mode="bilinear", align_corners=False
    )
    return maps[0, 0].cpu().numpy()


def _readable(path: Path) -> bool:
    try:
        read_depth(path)
    except UserError:
        return False
    return True
