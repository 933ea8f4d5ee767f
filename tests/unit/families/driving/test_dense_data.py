from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foreact.errors import UserError
from foreact.families.driving.evals.dense_data import (
    CITYSCAPES_CLASSES,
    cityscapes,
    cityscapes_classes,
    kitti_step,
    read_depth,
    write_depth,
)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def ramp(height: int, width: int) -> np.ndarray:
    """Red rises with the row, green with the column."""
    rows, columns = np.meshgrid(
        np.linspace(0, 250, height), np.linspace(0, 250, width), indexing="ij"
    )
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    """Two pictures in the layout and size of Cityscapes; labels are 7
    (road) left and 26 (car) right of the middle.
    """
    for city, stem in (("bonn", "bonn_000000_000019"), ("ulm", "ulm_000001_000019")):
        save(tmp_path / "leftImg8bit/val" / city / f"{stem}_leftImg8bit.png", ramp(1024, 2048))
        labels = np.full((1024, 2048), 7, np.uint8)
        labels[:, 1024:] = 26
        labels[1000:] = 1  # the ego vehicle, which is no class
        save(tmp_path / "gtFine/val" / city / f"{stem}_gtFine_labelIds.png", labels)
        depth = np.linspace(0, 65535, 512).astype(np.uint16)[None].repeat(288, 0)
        save(tmp_path / "depth/val" / f"{stem}_leftImg8bit_depth.png", depth)
    return tmp_path


def test_cityscapes_crop_and_classes(streets: Path) -> None:
    data = cityscapes(streets, "val", depth=streets / "depth")
    assert len(data) == 2
    images, masks = next(data.batches("segmentation", 2))
    assert images.shape == (2, 1, 3, 288, 512)
    assert images.dtype == torch.uint8
    # Rows 16..1023 of 0..250 shrunk by 3.5; columns: 585 of which the middle 512, from 36 on.
    row = images[0, 0, 0, :, 0].float()
    assert row[0].item() == pytest.approx(250 * (16 + 1.25) / 1023, abs=1.5)
    assert row[-1].item() == pytest.approx(250 * (1023 - 1.25) / 1023, abs=1.5)
    column = images[0, 0, 1, 0].float()
    assert column[0].item() == pytest.approx(250 * 36.5 / 585, abs=1.5)
    assert column[-1].item() == pytest.approx(250 * 547.5 / 585, abs=1.5)
    assert masks.shape == (2, 1, 288, 512)
    assert masks[0].unique().tolist() == [0, 13, 255]
    # The middle of 2048 columns is at 292.5 of 585, 256.5 after the crop; row 1000 at (1000 - 16) /
    # 3.5 = 281.
    assert (masks[0, 0, 100] == 13).nonzero()[0].item() in (256, 257)
    assert (masks[0, 0, :, 0] == 255).nonzero()[0].item() in (281, 282)
    depth = data.depth(0)
    assert depth.shape == (1, 288, 512)
    assert (depth[0, 0, 0].item(), depth[0, 0, -1].item()) == (0.0, 1.0)


def test_the_nineteen_classes_and_nothing_else() -> None:
    found = cityscapes_classes(np.arange(256, dtype=np.uint8))
    assert [int(found[i]) for i in CITYSCAPES_CLASSES] == list(range(19))
    assert (found != 255).sum() == 19


@pytest.fixture
def tracks(tmp_path: Path) -> Path:
    """Sequences of 12 and 3 frames in the layout of KITTI-STEP;
    red is the class, here the frame's number.
    """
    for sequence, frames in (("0002", 12), ("0006", 3)):
        for i in range(frames):
            save(
                tmp_path / f"images/val/{sequence}/{i:06d}.png",
                np.full((370, 1224, 3), 10 * i, np.uint8),
            )
            panoptic = np.zeros((370, 1224, 3), np.uint8)
            panoptic[..., 0], panoptic[..., 1] = i, 99
            panoptic[:, :612, 0] = 255
            save(tmp_path / f"panoptic_maps/val/{sequence}/{i:06d}.png", panoptic)
            depth = np.tile(np.linspace(0, 1, 1224), (370, 1))
            write_depth(tmp_path / f"depth/val/{sequence}_{i:06d}_depth.png", depth)
    return tmp_path


def test_kitti_pictures(tracks: Path) -> None:
    data = kitti_step(tracks, "val", depth=tracks / "depth")
    assert len(data) == 15
    images, masks = list(data.batches("segmentation", 8))[1]
    assert images.shape == (7, 1, 3, 288, 512)
    assert masks[0, 0, 0, -1].item() == 8
    assert masks[0].unique().tolist() == [8, 255]
    depth = data.depth(0)
    # 1224 columns become 952, of which the middle 512 remain.
    assert depth[0, 0, 0].item() == pytest.approx(220.5 / 952, abs=2e-3)
    assert depth[0, 0, -1].item() == pytest.approx(731.5 / 952, abs=2e-3)


def test_kitti_clips_end_at_the_labelled_frame(tracks: Path) -> None:
    data = kitti_step(tracks, "val", frames=3, stride=5)
    # 12 - ((3 - 1) * 5 + 1) + 1 windows; the sequence of 3 frames has none.
    assert len(data) == 2
    assert data.images(1)[:, 0, 0, 0].tolist() == [10, 60, 110]
    assert data.mask(1)[0, 0, -1].item() == 11


def test_depth_survives_the_file_and_is_scaled_by_the_picture(tmp_path: Path) -> None:
    depth = np.random.default_rng(0).uniform(3.0, 80.0, (9, 11))
    write_depth(tmp_path / "a_depth.png", depth)
    found = read_depth(tmp_path / "a_depth.png")
    np.testing.assert_allclose(
        found, (depth - depth.min()) / (depth.max() - depth.min()), atol=1e-5
    )
    write_depth(tmp_path / "flat.png", np.full((4, 4), 7.0))
    assert (read_depth(tmp_path / "flat.png") == 0).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_depth.png", "flat.png"]
    with pytest.raises(UserError, match="finite"):
        write_depth(tmp_path / "b.png", np.array([[np.nan]]))


def test_the_references_colour_files_are_read_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "colour.png", np.full((4, 4, 3), (51, 9, 200), np.uint8))
    assert read_depth(path, "red8") == pytest.approx(0.2)
    with pytest.raises(UserError, match="found mode RGB; name the depth format"):
        read_depth(path)
    write_depth(tmp_path / "gray.png", np.eye(4))
    with pytest.raises(UserError, match="8-bit colours"):
        read_depth(tmp_path / "gray.png", "red8")


def test_missing_and_damaged_files_are_one_sentence(streets: Path, tracks: Path) -> None:
    with pytest.raises(UserError, match="should be a folder with Cityscapes pictures"):
        cityscapes(streets, "test")
    with pytest.raises(UserError, match="has no label at"):
        cityscapes(streets, "val", depth=streets / "elsewhere")
    with pytest.raises(UserError, match="no sequence that is long enough"):
        kitti_step(tracks, "val", frames=9)
    with pytest.raises(UserError, match="found 0 and 5"):
        kitti_step(tracks, "val", frames=0)
    with pytest.raises(UserError, match="without depth files"):
        cityscapes(streets, "val").depth(0)
    data = cityscapes(streets, "val")
    data.samples[0].frames[0].write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read as a picture"):
        data.images(0)
    save(data.samples[0].mask, ramp(1024, 2048))
    with pytest.raises(UserError, match="labels in mode L, found RGB"):
        data.mask(0)
    clips = kitti_step(tracks, "val")
    save(clips.samples[0].mask, ramp(375, 1242)[..., 0])
    with pytest.raises(UserError, match="labels in mode RGB, found L"):
        clips.mask(0)
    save(data.samples[1].frames[0], ramp(100, 200))
    with pytest.raises(UserError, match="size of the published data set"):
        data.images(1)
