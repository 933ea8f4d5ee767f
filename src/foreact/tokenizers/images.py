"""Frames on their way into tokenizers: resizing and the value range of each network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foreact.types import to_model_range

Preprocessing = Literal["symmetric", "legacy"]
"""How frames were shown to a network. "symmetric": bilinear resize, values in [-1, 1]. "legacy":
nearest resize and x / 255 - mean / std, what the released weights and stored codes of Video
Occupancy Models (arXiv 2407.09533) were made with: their normalisation lacks a pair of brackets, so
that values are shifted and never divided by the deviation.
"""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(
    frames: Tensor, size: tuple[int, int] | None, preprocessing: Preprocessing = "symmetric"
) -> Tensor:
    """Frames as a tokenizer's `encode` takes them, alike in training, tokenizing and acting.

    Args:
        frames: uint8 (..., 3, H, W).
        size: (height, width) that the tokenizer wants; None takes them as they are.
        preprocessing: decides how they are resized. The range is [-1, 1] with either: a network
            that wants another one converts by itself.

    Returns:
        float32 (..., 3, height, width) in [-1, 1].
    """
    video = to_model_range(frames)
    if size is None:
        return video
    return resize_video(video, size, mode="nearest" if preprocessing == "legacy" else "bilinear")


def require_video(video: Tensor, *, multiple_of: int) -> None:
    """Raise a `ValueError` unless `video` is float (B, T, 3, H, W), H and W such multiples."""
    sizes = video.shape[3:]
    if (
        not video.is_floating_point()
        or video.ndim != 5
        or video.shape[2] != 3
        or any(s % multiple_of for s in sizes)
    ):
        raise ValueError(
            "encode expects floats in [-1, 1] of shape (B, T, 3, H, W) with H and W multiples of "
            f"{multiple_of}, found {video.dtype} {tuple(video.shape)}; use "
            "foreact.tokenizers.images.prepare first"
        )


def resize_video(
    video: Tensor,
    size: tuple[int, int],
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    antialias: bool = False,
) -> Tensor:
    """Resize every frame. Bilinear is UVA's image path: corners not aligned, no antialiasing.

    Args:
        video: float (..., C, H, W) in any range; values stay inside the range they had.
        size: (height, width) in pixels of the result.
        mode: interpolation; "nearest" takes the pixel at floor(i * H / height).
        antialias: smooth before shrinking, so that details below the new pixel size fade instead of
            flicker; bilinear only. Without it the result is what the released models were trained
            on.

    Returns:
        (..., C, height, width) of the same dtype; `video` itself where it has the size already.

    Raises:
        TypeError: `video` is not floating point; convert with `foreact.types.to_model_range` first.
    """
    if not video.is_floating_point():
        raise TypeError(
            f"resize_video expects floating point frames, found {video.dtype}; use "
            "to_model_range first"
        )
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    frames = video.reshape(-1, *video.shape[-3:])
    if mode == "nearest":
        frames = interpolate(frames, size=tuple(size), mode="nearest")
    else:
        frames = interpolate(
            frames, size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias
        )
    return frames.reshape(*video.shape[:-2], *size)


def to_legacy_range(images: Tensor) -> Tensor:
    """Float (..., 3, H, W) in [-1, 1] -> x / 255 - mean / std, about [-2.12, -0.80].

    x are the pixel values, 0..255.
    """
    return (images + 1.0) / 2.0 - _legacy_offset(images)


def from_legacy_range(images: Tensor) -> Tensor:
    """The inverse of `to_legacy_range`."""
    return (images + _legacy_offset(images)) * 2.0 - 1.0


def _legacy_offset(images: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(v, dtype=images.dtype, device=images.device)
        for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (mean / std).view(3, 1, 1)
