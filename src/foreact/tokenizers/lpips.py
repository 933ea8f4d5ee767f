"""LPIPS (arXiv 1801.03924): learned perceptual distance of two pictures on VGG16 features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from foreact.tokenizers.perceptual import FeatureDistance

STAGES = (2, 2, 3, 3, 3)
"""Convolutions of each stage of VGG16 (arXiv 1409.1556, configuration D), between two poolings."""

SMALLEST_SIDE = 2 ** (len(STAGES) - 1)
"""Pixels that a picture needs along either axis to reach the last stage."""


def vgg16(widths: Sequence[int]) -> nn.Sequential:
    """The convolutional part of VGG16 up to its last activation, numbered as in torchvision.

    Args:
        widths: feature maps of each of the five stages; published: 64, 128, 256, 512, 512.
    """
    parts: list[nn.Module] = []
    inputs = 3
    for stage, (convolutions, width) in enumerate(zip(STAGES, widths, strict=True)):
        parts += [nn.MaxPool2d(2)] if stage else []
        for _ in range(convolutions):
            parts += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
    return nn.Sequential(*parts)


def last_of_stages() -> list[str]:
    """Names in `vgg16` of the last activation of each stage, whose outputs are compared."""
    names, position = [], -1
    for convolutions in STAGES:
        position += 2 * convolutions
        names.append(str(position))
        position += 1
    return names


def lpips(
    network: Mapping[str, Tensor],
    weights: Sequence[Tensor],
    *,
    shift: Sequence[float],
    scale: Sequence[float],
) -> FeatureDistance:
    """The distance made of given weights; the widths follow from their shapes.

    Args:
        network: state dict of `vgg16`.
        weights: one per stage, float (C,), of the squared differences of unit-length features.
        shift, scale: per-channel statistics of pictures in [-1, 1] that the network expects to be
            taken off.

    Raises:
        ValueError: the tensors make no VGG16 or do not belong together.
    """
    heads = [f"{int(last) - 1}.weight" for last in last_of_stages()]
    if missing := [name for name in heads if name not in network]:
        raise ValueError(f"the network lacks {', '.join(missing)}")
    if odd := [name for name in heads if network[name].ndim != 4]:
        raise ValueError(f"{odd[0]} of the network is no convolution's")
    widths = [len(network[name]) for name in heads]
    expected, actual = [*widths, 3, 3], [len(values) for values in (*weights, shift, scale)]
    if actual != expected:
        raise ValueError(
            f"its weights, shift and scale should be of {expected} channels, found {actual}"
        )
    with torch.device("meta"):
        features = vgg16(widths)
    try:
        features.load_state_dict(dict(network), assign=True)
    except RuntimeError as error:
        raise ValueError("; ".join(line.strip() for line in str(error).splitlines())) from None
    return FeatureDistance(
        features,
        last_of_stages(),
        weights=weights,
        mean=[(1.0 + v) / 2.0 for v in shift],
        std=[v / 2.0 for v in scale],
    )
