"""Videos and pictures are written whole and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.turned_video import turn

from foreact.data.formats.video import (
    contact_sheet,
    read_video,
    save_image,
    side_by_side,
    write_mp4,
)
from foreact.errors import UserError


def gradient(frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth moving colours, which H.264 keeps almost exactly."""
    y, x = np.mgrid[0:height, 0:width]
    t = np.arange(frames)[:, None, None]
    return (
        np.stack([(x + t * 3) % 200 + 0 * y, y + t + 0 * x, 255 - y - x + 0 * t], axis=-1)
        .clip(0, 255)
        .astype(np.uint8)
    )


@pytest.mark.parametrize("fps", [2.0, 10.0, 29.97])
def test_mp4_round_trip(tmp_path: Path, fps: float) -> None:
    frames = gradient()
    write_mp4(tmp_path / "deep" / "v.mp4", frames, fps)
    got, rate = read_video(tmp_path / "deep" / "v.mp4")
    assert got.shape == frames.shape
    assert rate == pytest.approx(fps, abs=0.01)
    assert np.abs(got.astype(int) - frames).mean() < 6
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["v.mp4"]


def test_odd_sizes_are_padded_and_single_frames_work(tmp_path: Path) -> None:
    write_mp4(tmp_path / "v.mp4", gradient(1, 47, 63), 10)
    assert read_video(tmp_path / "v.mp4")[0].shape == (1, 48, 64, 3)


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 3), (180, 2), (270, 1)])
def test_a_turned_camera_comes_upright(tmp_path: Path, degrees: int, turns: int) -> None:
    frames = gradient()
    write_mp4(tmp_path / "v.MP4", frames, 10)
    turn(tmp_path / "v.MP4", degrees)
    got, _ = read_video(tmp_path / "v.MP4")
    assert np.abs(got.astype(int) - np.rot90(frames, turns, axes=(1, 2))).mean() < 6


def test_bad_frames_leave_nothing(tmp_path: Path) -> None:
    for bad in (gradient().astype(np.float32), gradient()[..., :2], gradient()[:0], gradient()[0]):
        with pytest.raises(UserError, match=r"should be uint8 \(T, H, W, 3\)"):
            write_mp4(tmp_path / "v.mp4", bad, 10)
    with pytest.raises(UserError, match="fps > 0"):
        write_mp4(tmp_path / "v.mp4", gradient(), 0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not be written"):
        write_mp4(tmp_path / "file" / "v.mp4", gradient(), 10)
    with pytest.raises(UserError, match="could not be written"):
        save_image(tmp_path / "file" / "v.png", Image.new("RGB", (4, 4)))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_unreadable_videos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no video at"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(UserError, match="cannot be decoded"):
        read_video(tmp_path / "text.mp4")


def test_contact_sheet_places_images_row_by_row(tmp_path: Path) -> None:
    images = [np.full((20, 30, 3), 40 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(images, [f"{i}" for i in range(5)], columns=2)
    pixels = np.asarray(sheet)
    assert pixels.shape == (3 * 36, 2 * 32, 3)
    for i in range(5):
        top, left = i // 2 * 36 + 14, i % 2 * 32
        np.testing.assert_array_equal(pixels[top : top + 20, left : left + 30], images[i])
    assert (pixels[:14, :30] < 128).any(), "the label is drawn"
    save_image(tmp_path / "sheet.png", sheet)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), pixels)
    with pytest.raises(UserError, match="one label each"):
        contact_sheet(images, ["a"])
    with pytest.raises(UserError, match=r"should be uint8 \(H, W, 3\)"):
        contact_sheet([np.zeros((4, 4), np.uint8)], ["a"])


def test_side_by_side_holds_the_last_frame() -> None:
    long, short = gradient(5, 8, 10), gradient(3, 6, 10)
    out = side_by_side({"true": long, "imagined": short}, scale=2)
    assert out.shape == (5, 14 + 16, 2 * 22, 3)
    np.testing.assert_array_equal(out[4, 14:30:2, 1:21:2], long[4])
    np.testing.assert_array_equal(out[2, 14:26:2, 23:43:2], short[2])
    np.testing.assert_array_equal(out[3:, 14:26:2, 23:43:2], short[[2, 2]])
    with pytest.raises(UserError):
        side_by_side({})
    with pytest.raises(UserError, match="Frames of 'a'"):
        side_by_side({"a": np.zeros((2, 3))})
