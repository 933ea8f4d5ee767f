"""Labelled street pictures for dense probing (Cityscapes, KITTI-STEP), cropped as for VaViM.

Layouts::

    cityscapes/leftImg8bit/<split>/<city>/<stem>_leftImg8bit.png
    cityscapes/gtFine/<split>/<city>/<stem>_gtFine_labelIds.png
    depth/<split>/<stem>_leftImg8bit_depth.png

    kitti/images/<split>/<sequence>/<frame>.png
    kitti/panoptic_maps/<split>/<sequence>/<frame>.png
    depth/<split>/<sequence>_<frame>_depth.png
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from foreact.data.formats.video import save_image
from foreact.errors import UserError
from foreact.families.driving.evals.dense import IGNORE
from foreact.files import listed

CITYSCAPES_CLASSES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label ids of the 19 classes that Cityscapes evaluates; their place here is the class."""

CLASSES = 19
SIZE = (288, 512)
"""Height and width of what the model sees."""

DepthFormat = Literal["gray16", "red8"]
"""How depth in 0..1 lies in a PNG: "gray16", one channel, 0..65535; or "red8", the red channel.

The reference writes depth through a colour map and reads back its red channel, 0..255.
"""

Dataset = Literal["cityscapes", "kitti", "kitti-video"]


@dataclass(frozen=True)
class Sample:
    """One labelled picture or clip.

    Attributes:
        frames: files of the frames, in order; the labels belong to the last.
        mask: file of the class labels.
        depth: file of the depth, or None.
    """

    frames: tuple[Path, ...]
    mask: Path
    depth: Path | None


@dataclass(frozen=True)
class DenseData:
    """Samples with the way from file to model.

    Attributes:
        samples: what there is.
        geometry: resizes and crops a tensor (C, H, W) to (C, 288, 512); `nearest` for labels.
        mask_mode: PIL's mode of the mask files, "L" or "RGB".
        classes: from the pixels of a mask file, uint8 (H, W) or (H, W, 3), to classes uint8 (H, W),
            255 for none.
        depth_format: how depth lies in its files.
    """

    samples: Sequence[Sample]
    geometry: Callable[[Tensor, bool], Tensor]
    mask_mode: Literal["L", "RGB"]
    classes: Callable[[np.ndarray], np.ndarray]
    depth_format: DepthFormat = "gray16"

    def __len__(self) -> int:
        return len(self.samples)

    def images(self, i: int) -> Tensor:
        """uint8 (T, 3, 288, 512)."""
        frames = [
            torch.from_numpy(np.array(_open(path).convert("RGB")))
            for path in self.samples[i].frames
        ]
        return torch.stack([self.geometry(frame.movedim(-1, 0), False) for frame in frames])

    def mask(self, i: int) -> Tensor:
        """Classes uint8 (1, 288, 512), 255 for none."""
        path = self.samples[i].mask
        image = _open(path)
        if image.mode != self.mask_mode:
            raise UserError(
                f"{path} should hold labels in mode {self.mask_mode}, found "
                f"{image.mode}; fetch it again."
            )
        return self.geometry(torch.from_numpy(self.classes(np.asarray(image)))[None], True)

    def depth(self, i: int) -> Tensor:
        """float32 (1, 288, 512) in 0..1; files of another size are cropped like pictures."""
        path = self.samples[i].depth
        if path is None:
            raise UserError(
                "This data was opened without depth files; name the folder that holds them."
            )
        depth = torch.from_numpy(read_depth(path, self.depth_format))[None]
        return depth if tuple(depth.shape[1:]) == SIZE else self.geometry(depth, False)

    def batches(
        self, task: Literal["segmentation", "depth"], size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pictures uint8 (B, T, 3, 288, 512) and labels (B, 1, 288, 512), in order."""
        label = self.mask if task == "segmentation" else self.depth
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            yield torch.stack([self.images(i) for i in rows]), torch.stack([label(i) for i in rows])


def open_dense(data: Path, dataset: Dataset, split: str, **options: Any) -> DenseData:
    """Cityscapes, KITTI-STEP, or its clips of 8 frames, 5 apart."""
    if dataset == "cityscapes":
        return cityscapes(data, split, **options)
    return kitti_step(data, split, frames=8 if dataset == "kitti-video" else 1, **options)


def cityscapes(
    root: Path,
    split: str,
    *,
    depth: Path | None = None,
    depth_format: DepthFormat = "gray16",
    depth_exists: bool = True,
) -> DenseData:
    """Cityscapes: 1024 x 2048 pictures lose their top 16 rows, shrink by 3.5 and keep the centre.

    Args:
        root: holds `leftImg8bit` and `gtFine`.
        split: such as "train" or "val".
        depth: holds a folder of depth files for each split.
        depth_format: how depth lies in them.
        depth_exists: False where the files are yet to be made.

    Raises:
        UserError: a folder or a label file is missing.
    """
    folder = _folder(root / "leftImg8bit" / split, "Cityscapes pictures")
    samples = []
    for path in listed(folder, "*/*_leftImg8bit.png"):
        mask_name = path.name.replace("leftImg8bit", "gtFine_labelIds")
        mask = root / "gtFine" / split / path.parent.name / mask_name
        depth_file = None if depth is None else depth / split / f"{path.stem}_depth.png"
        samples.append(Sample((path,), mask, depth_file))
    samples = _present(samples, folder, depth_exists)
    return DenseData(samples, _crop_cityscapes, "L", cityscapes_classes, depth_format)


def kitti_step(
    root: Path,
    split: str,
    *,
    frames: int = 1,
    stride: int = 5,
    depth: Path | None = None,
    depth_format: DepthFormat = "gray16",
    depth_exists: bool = True,
) -> DenseData:
    """KITTI-STEP: pictures are resized to 288 rows and keep the centre.

    Args:
        root: holds `images` and `panoptic_maps`.
        split: such as "train" or "val".
        frames: length of the clips; 1 for single pictures.
        stride: frames from one frame of a clip to the next; every start in a sequence gives a clip.
        depth: holds a folder of depth files for each split.
        depth_format: how depth lies in them.
        depth_exists: False where the files are yet to be made.

    Raises:
        UserError: a folder or a label file is missing, or no sequence is long enough.
    """
    if frames < 1 or stride < 1:
        raise UserError(
            f"Clips need at least 1 frame and a stride of at least 1, found {frames} and {stride}."
        )
    folder = _folder(root / "images" / split, "KITTI-STEP pictures")
    span = (frames - 1) * stride  # from the first frame of a clip to its last
    samples = []
    for sequence in (path for path in listed(folder) if path.is_dir()):
        files = listed(sequence, endings=[".png"])
        for last in range(span, len(files)):
            name = f"{sequence.name}_{files[last].stem}_depth.png"
            mask = root / "panoptic_maps" / split / sequence.name / files[last].name
            clip = tuple(files[last - span : last + 1 : stride])
            samples.append(Sample(clip, mask, None if depth is None else depth / split / name))
    samples = _present(samples, folder, depth_exists)
    return DenseData(samples, _crop_kitti, "RGB", kitti_classes, depth_format)


def cityscapes_classes(ids: np.ndarray) -> np.ndarray:
    """Label ids, uint8 (H, W) -> classes 0..18, 255 for all other ids."""
    table = np.full(256, IGNORE, np.uint8)
    table[list(CITYSCAPES_CLASSES)] = np.arange(CLASSES, dtype=np.uint8)
    return table[ids]


def kitti_classes(panoptic: np.ndarray) -> np.ndarray:
    """Panoptic maps, uint8 (H, W, 3) -> classes (H, W), 255 for none: the red channel.

    Green * 256 + blue is the instance.
    """
    return np.ascontiguousarray(panoptic[..., 0])


def read_depth(path: Path, depth_format: DepthFormat = "gray16") -> np.ndarray:
    """Depth of a PNG, float32 (H, W) in 0..1.

    Raises:
        UserError: no picture, or one of another format.
    """
    image = _open(path)
    pixels = np.asarray(image)
    if depth_format == "gray16" and image.mode.startswith("I") and pixels.ndim == 2:
        return (pixels.astype(np.float64) / 65535.0).astype(np.float32)
    if depth_format == "red8" and image.mode in ("RGB", "RGBA", "L"):
        return (pixels if pixels.ndim == 2 else pixels[..., 0]).astype(np.float32) / 255.0
    expected = "one channel of 16 bits" if depth_format == "gray16" else "8-bit colours"
    raise UserError(
        f"{path} should hold depth as {expected}, found mode {image.mode}; name the "
        "depth format it has."
    )


def write_depth(path: Path, depth: np.ndarray) -> None:
    """Write finite depth (H, W), scaled from its own range to 0..1, as a 16-bit PNG."""
    if depth.ndim != 2 or not np.isfinite(depth).all():
        raise UserError(
            f"A depth map should be finite and (H, W), found shape {depth.shape}; "
            f"{path} was not written."
        )
    low, high = float(depth.min()), float(depth.max())
    scaled = (depth - low) / (high - low) if high > low else np.zeros_like(depth)
    save_image(path, Image.fromarray((scaled * 65535.0).round().astype(np.uint16)))


def _crop_cityscapes(image: Tensor, nearest: bool) -> Tensor:
    image = image[:, 16:]
    return _centre(_resize(image, int(image.shape[1] / 3.5), int(image.shape[2] / 3.5), nearest))


def _crop_kitti(image: Tensor, nearest: bool) -> Tensor:
    short, (height, width) = SIZE[0], image.shape[1:]  # the shorter side becomes 288
    size = (short, short * width // height) if height <= width else (short * height // width, short)
    return _centre(_resize(image, *size, nearest))


def _resize(image: Tensor, height: int, width: int, nearest: bool) -> Tensor:
    if nearest:
        return functional.interpolate(image[None], size=(height, width), mode="nearest-exact")[0]
    return functional.interpolate(
        image[None], size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )[0]


def _centre(image: Tensor) -> Tensor:
    height, width = SIZE
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    if top < 0 or left < 0:
        raise UserError(
            f"After resizing the picture has {image.shape[1]} x {image.shape[2]} pixels, less "
            f"than {height} x {width}; give pictures in the size of the published data set."
        )
    return image[:, top : top + height, left : left + width]


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read as a picture ({error}); fetch the file again."
        ) from error
    return image


def _folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise UserError(
            f"There should be a folder with {what} at {path}; check the root and the split."
        )
    return path


def _present(samples: list[Sample], folder: Path, depth_exists: bool) -> list[Sample]:
    if not samples:
        raise UserError(
            f"{folder} holds no labelled picture of the expected names, or no sequence that is "
            "long enough."
        )
    for sample in samples:
        for path in (sample.mask, sample.depth if depth_exists else None):
            if path is not None and not path.is_file():
                raise UserError(
                    f"{sample.frames[-1]} has no label at {path}; fetch or make the missing file."
                )
    return samples
