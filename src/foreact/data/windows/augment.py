"""Changes to training pixels; validation and latents never see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from foreact.errors import UserError

Augment = Callable[[Tensor, np.random.Generator], Tensor]
"""uint8 (T, 3, H, W) of one camera and window, and the sample's rng -> same shape and dtype."""


@dataclass(frozen=True, kw_only=True)
class CropAndBlur:
    """UVA's augmentation for PushT: a random crop stretched back to full size, and a Gaussian blur.

    All frames of a window get the same parameters. The reference reached that by seeding torch's
    global generator before every frame, which made its clips repeat; here the sample's own
    generator is used once per window.

    Attributes:
        crop: side of the square crop in pixels.
        crop_probability, blur_probability: chance of each, 0..1.
        kernel: width of the blur in pixels, odd.
        sigma: least and greatest deviation of the blur in pixels, uniform.
    """

    crop: int = 91
    crop_probability: float = 0.5
    blur_probability: float = 0.5
    kernel: int = 5
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if not (0.0 <= self.crop_probability <= 1.0 and 0.0 <= self.blur_probability <= 1.0):
            raise UserError(
                f"Probabilities should lie in 0..1, found {self.crop_probability} and "
                f"{self.blur_probability}."
            )
        if self.kernel < 1 or self.kernel % 2 == 0 or not 0.0 < self.sigma[0] <= self.sigma[1]:
            raise UserError(
                "A blur needs an odd kernel and 0 < least <= greatest sigma, found "
                f"{self.kernel}, {self.sigma}."
            )

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        height, width = video.shape[-2:]
        if not 0 < self.crop <= min(height, width):
            raise UserError(
                f"A crop of {self.crop} pixels does not fit into frames of {height} x {width}."
            )
        # Every number is drawn, used or not, so that one choice never shifts the others.
        crops, blurs = rng.random(2) < (self.crop_probability, self.blur_probability)
        top, left = rng.integers(0, (height - self.crop + 1, width - self.crop + 1))
        sigma = rng.uniform(*self.sigma)
        images = video.float()
        if crops:
            images = images[..., top : top + self.crop, left : left + self.crop]
            images = interpolate(
                images, size=(height, width), mode="bilinear", antialias=True, align_corners=False
            )
        if blurs:
            images = gaussian_blur(images, self.kernel, float(sigma))
        return images.clamp(0.0, 255.0).round().to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class RandomShift:
    """Shift pictures by whole pixels, repeating edges: DrQ-v2 (arXiv 2107.09645, section 3.1).

    All frames of a window move alike.

    Attributes:
        pad: greatest distance in pixels, down, up, right and left.
    """

    pad: int = 4

    def __post_init__(self) -> None:
        if self.pad < 1:
            raise UserError(f"A random shift should be by at least 1 pixel, found {self.pad}.")

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        shift = torch.from_numpy(rng.integers(0, 2 * self.pad + 1, size=(1, 2)))
        return random_shift(video[None], shift, self.pad)[0]


def random_shift(images: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """Pad by repeating the edges, then crop every row to the old size at its own position.

    The published code samples bilinearly at pixel positions up to rounding; this takes the pixels.

    Args:
        images: (N, ..., H, W) of any dtype.
        shifts: integer (N, 2), x and y of the cut in 0..2 * pad; `pad` is no shift.
        pad: pixels on every side.

    Returns:
        The same shape and dtype.
    """
    height, width = images.shape[-2:]
    x, y = shifts.to(images.device, torch.int64).unbind(dim=1)
    columns = (torch.arange(width, device=images.device) + x[:, None] - pad).clamp(0, width - 1)
    rows = (torch.arange(height, device=images.device) + y[:, None] - pad).clamp(0, height - 1)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.flatten(1, -3)[each, :, rows[:, :, None], columns[:, None, :]]  # (N, H, W, ...)
    return moved.movedim(-1, 1).reshape(images.shape)


def gaussian_blur(images: Tensor, kernel: int, sigma: float) -> Tensor:
    """Blur float (T, C, H, W) with a `kernel`-wide Gaussian of `sigma` pixels, reflecting edges."""
    half = kernel // 2
    weights = torch.exp(-0.5 * (torch.arange(-half, half + 1, dtype=images.dtype) / sigma) ** 2)
    weights = (weights / weights.sum()).to(images.device)
    channels = images.shape[1]
    padded = pad(images, (half, half, half, half), mode="reflect")
    rows = conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
