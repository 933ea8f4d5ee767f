"""Resizing of videos before they are tokenized."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate


def resize_video(video: Tensor, size: tuple[int, int], *, antialias: bool = False) -> Tensor:
    """Bilinear resize of every frame (UVA's image path: corners not aligned, no antialiasing).

    Args:
        video: float (..., C, H, W) in any range; values stay inside the range they had.
        size: (height, width) in pixels of the result.
        antialias: smooth before shrinking, so that details below the new pixel size fade instead of flicker. Without
            it the result is what the released models were trained on.

    Returns:
        (..., C, height, width) of the same dtype; `video` itself where it has the size already.

    Raises:
        TypeError: `video` is not floating point; convert with `foreact.types.to_model_range` first.
    """
    if not video.is_floating_point():
        raise TypeError(f"resize_video expects floating point frames, found {video.dtype}; use to_model_range first")
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    frames = video.reshape(-1, *video.shape[-3:])
    frames = interpolate(frames, size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias)
    return frames.reshape(*video.shape[:-2], *size)
