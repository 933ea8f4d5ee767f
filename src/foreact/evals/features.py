"""Feature networks for FID and FVD: a TorchScript file or module, preprocessing, weight hash.

A Frechet distance is a property of the network and of the preprocessing as much as of the pictures,
so every score is reported with `FeatureNetwork.describe()`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.checkpoints.manifest import sha256_of
from foreact.checkpoints.torchscript import open_script
from foreact.errors import UserError
from foreact.types import to_model_range

COMPARABLE = (
    "Scores are comparable only under the same network hash, preprocessing and numbers of samples."
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to pictures in [-1, 1] before the network sees them.

    Attributes:
        size: (height, width) to resize to, or None to keep the size.
        crop: resize the short side to `size` and cut out the centre, instead of stretching to
            `size`.
        multiple: without `size`, height and width are resized down to multiples of this.
        antialias: whether shrinking averages over source pixels.
        range: what `mean` and `std` are taken off: "model" [-1, 1], "unit" [0, 1] or "bytes" [0,
            255].
        mean, std: per channel.
        clip_frames: for networks over clips: frames are repeated evenly until the clip has so many;
            None keeps them.
    """

    size: tuple[int, int] | None = None
    crop: bool = False
    multiple: int = 1
    antialias: bool = True
    range: Literal["model", "unit", "bytes"] = "model"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    clip_frames: int | None = None

    def __post_init__(self) -> None:
        if self.crop and (self.size is None or self.size[0] != self.size[1]):
            raise UserError(f"Cropping needs a square size, found {self.size}; give size=(S, S).")
        if self.multiple < 1 or min(self.std) <= 0:
            raise UserError(
                f"Preprocessing needs multiple >= 1 and std > 0, found multiple {self.multiple}, "
                f"std {self.std}."
            )

    def __call__(self, images: Tensor) -> Tensor:
        """float32 (N, 3, H, W) in [-1, 1] -> float32 (N, 3, H', W')."""
        images = self._resized(images)
        if self.range == "unit":
            images = (images + 1.0) / 2.0
        elif self.range == "bytes":
            images = (images + 1.0) * 127.5
        mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def clip(self, clips: Tensor) -> Tensor:
        """float32 (N, T, 3, H, W) in [-1, 1] -> (N, 3, T', H', W'), as video networks expect."""
        n, frames = clips.shape[:2]
        if self.clip_frames is not None:
            if self.clip_frames % frames:
                raise UserError(
                    f"Clips of {frames} frames cannot be repeated evenly to {self.clip_frames}; "
                    "choose another number."
                )
            clips = clips.repeat_interleave(self.clip_frames // frames, dim=1)
        return self(clips.flatten(0, 1)).unflatten(0, (n, -1)).transpose(1, 2)

    def _resized(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.size is None:
            target = (
                height // self.multiple * self.multiple,
                width // self.multiple * self.multiple,
            )
        elif self.crop:
            short = min(height, width)
            target = (
                math.ceil(height * self.size[0] / short),
                math.ceil(width * self.size[1] / short),
            )
        else:
            target = self.size
        if min(target) < 1:
            raise UserError(
                f"Pictures of {height} x {width} pixels are smaller than multiples of "
                f"{self.multiple}."
            )
        if target != (height, width):
            images = functional.interpolate(
                images, size=target, mode="bilinear", align_corners=False, antialias=self.antialias
            )
        if self.crop and self.size is not None:
            top, left = (target[0] - self.size[0]) // 2, (target[1] - self.size[1]) // 2
            images = images[..., top : top + self.size[0], left : left + self.size[1]]
        return images


PREPROCESSING = {
    "none": Preprocessing(),
    "bytes": Preprocessing(range="bytes"),
    "imagenet": Preprocessing(
        size=(224, 224), crop=True, range="unit", mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    "inception": Preprocessing(size=(299, 299)),
    "dinov2": Preprocessing(multiple=14, range="unit", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    # The evaluation of VaViM takes the ImageNet statistics, which are of pictures in [0, 1], off
    # pictures in [-1, 1].
    "dinov2-reference": Preprocessing(
        multiple=14, antialias=False, mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    "i3d": Preprocessing(size=(224, 224), crop=True, antialias=False, clip_frames=16),
}
"""Named settings; "-reference" repeats a published mistake, to compare with published numbers."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network from pictures, or clips, to feature rows.

    Attributes:
        name: where it came from, without folders.
        hash: of its weights, as "sha256:...".
        preprocessing: what happens before.
        forward: float32 (N, 3, H, W), or (N, 3, T, H, W) for clips -> (N, D).
        device: where `forward` computes.
    """

    name: str
    hash: str
    preprocessing: Preprocessing
    forward: Callable[[Tensor], Tensor]
    device: torch.device

    def images(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) -> float32 (N, D)."""
        return self._rows(self.preprocessing(self._model_range(images, 4)), len(images))

    def clips(self, clips: np.ndarray) -> np.ndarray:
        """uint8 (N, T, H, W, 3) -> float32 (N, D)."""
        return self._rows(self.preprocessing.clip(self._model_range(clips, 5)), len(clips))

    def describe(self) -> dict[str, Any]:
        """What belongs beside every score."""
        return {
            "network": self.name,
            "hash": self.hash,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "note": COMPARABLE,
        }

    def _model_range(self, images: np.ndarray, dims: int) -> Tensor:
        if images.dtype != np.uint8 or images.ndim != dims or images.shape[-1] != 3:
            shape = "(N, H, W, 3)" if dims == 4 else "(N, T, H, W, 3)"
            raise UserError(
                f"Features are taken of uint8 {shape}, found {images.dtype} {images.shape}."
            )
        return to_model_range(
            torch.from_numpy(np.ascontiguousarray(images)).to(self.device).movedim(-1, -3)
        )

    @torch.no_grad()
    def _rows(self, inputs: Tensor, n: int) -> np.ndarray:
        try:
            rows = self.forward(inputs)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"Feature network '{self.name}' fails on input {tuple(inputs.shape)} ({reason}); "
                "choose preprocessing that fits it."
            ) from error
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != n:
            found = (
                f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            )
            raise UserError(
                f"Feature network '{self.name}' should return one row per input ({n}, "
                f"D), found {found}."
            )
        return rows.float().cpu().numpy()


def open_features(
    source: str, *, preprocessing: str | Preprocessing = "none", device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """Open a feature network.

    Args:
        source: a TorchScript file, or an import path "module:function" of a factory without
            arguments that returns an `nn.Module` with its weights loaded.
        preprocessing: a name of `PREPROCESSING` or the settings themselves.
        device: where to compute.

    Raises:
        UserError: nothing there, nothing that can be opened, or an unknown preprocessing.
    """
    if isinstance(preprocessing, str):
        if preprocessing not in PREPROCESSING:
            raise UserError(
                f"There is no preprocessing '{preprocessing}'; known ones are "
                f"{', '.join(PREPROCESSING)}."
            )
        preprocessing = PREPROCESSING[preprocessing]
    where = torch.device(device)
    path = Path(source).expanduser()
    if path.is_file():
        module, digest, name = open_script(path, "cpu"), "sha256:" + sha256_of(path), path.name
    elif ":" in source and path.suffix not in (".jit", ".pt", ".pth", ".ts"):
        module, name = _import_module(source), source
        digest = _weights_hash(module)
    else:
        raise UserError(
            "Expected a TorchScript file or an import path 'module:function' for features, found "
            f"'{source}', which is neither."
        )
    network = module.eval().to(where)
    return FeatureNetwork(
        name=name, hash=digest, preprocessing=preprocessing, forward=network, device=where
    )


def _import_module(source: str) -> nn.Module:
    module_name, _, function = source.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"'{source}' names no importable function ({error}); give 'module:function' on the "
            "Python path."
        ) from error
    try:
        network = factory()
    except TypeError as error:
        raise UserError(f"'{source}' should be a function without arguments ({error}).") from None
    if not isinstance(network, nn.Module):
        raise UserError(f"'{source}' should return an nn.Module, found {type(network).__name__}.")
    return network


def _weights_hash(module: nn.Module) -> str:
    """Hash of the names, dtypes, shapes and bytes of parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return "sha256:" + digest.hexdigest()
