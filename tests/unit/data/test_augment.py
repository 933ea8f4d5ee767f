"""Augmentation: one draw per window, equal to a plain computation of crop, blur and shift."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d

from foreact.data.windows.augment import CropAndBlur, RandomShift, gaussian_blur, random_shift
from foreact.errors import UserError


def video(seed: int = 0, frames: int = 3, size: int = 16) -> torch.Tensor:
    one = torch.randint(
        0, 256, (1, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return one.repeat(frames, 1, 1, 1)


def test_all_frames_of_a_window_change_alike() -> None:
    augment = CropAndBlur(crop=12)
    changed = 0
    for seed in range(20):
        out = augment(video(), np.random.default_rng(seed))
        assert out.dtype == torch.uint8
        assert out.shape == video().shape
        assert (out == out[:1]).all()
        changed += not torch.equal(out, video())
    assert 10 <= changed < 20


def test_the_generator_decides_and_nothing_else() -> None:
    augment = CropAndBlur(crop=12, crop_probability=1.0, blur_probability=1.0)
    a = augment(video(), np.random.default_rng(5))
    torch.manual_seed(123)
    np.random.seed(7)
    assert torch.equal(a, augment(video(), np.random.default_rng(5)))
    assert not torch.equal(a, augment(video(), np.random.default_rng(6)))


def test_probabilities_of_zero_change_nothing() -> None:
    augment = CropAndBlur(crop=12, crop_probability=0.0, blur_probability=0.0)
    assert torch.equal(augment(video(), np.random.default_rng(0)), video())


def test_crop_is_a_stretched_part_of_the_picture() -> None:
    ramp = torch.arange(32, dtype=torch.float32).mul(8).to(torch.uint8).expand(1, 3, 32, 32)
    augment = CropAndBlur(crop=24, crop_probability=1.0, blur_probability=0.0)
    out = augment(ramp, np.random.default_rng(1))[0, 0, 0].float()
    slopes = out[4:-4].diff()
    assert slopes.mean() == pytest.approx(8 * 24 / 32, abs=0.2)


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_equals_scipy(sigma: float) -> None:
    images = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)) * 255
    taps = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    taps /= taps.sum()
    expected = correlate1d(
        correlate1d(images.numpy(), taps, axis=2, mode="mirror"), taps, axis=3, mode="mirror"
    )
    np.testing.assert_allclose(
        gaussian_blur(images, 5, sigma).numpy(), expected, rtol=1e-4, atol=1e-3
    )


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"does not fit into frames of 16 x 16"):
        CropAndBlur(crop=17)(video(), np.random.default_rng(0))
    refused: tuple[dict[str, Any], ...] = (
        {"crop_probability": 1.5},
        {"kernel": 4},
        {"sigma": (0.0, 1.0)},
        {"sigma": (2.0, 1.0)},
    )
    for options in refused:
        with pytest.raises(UserError):
            CropAndBlur(**options)


# --- random shift ---------------------------------------------------------------------------------


@given(
    data=st.data(), distance=st.integers(1, 5), height=st.integers(1, 9), width=st.integers(1, 9)
)
@settings(deadline=None, max_examples=40)
def test_a_shift_is_a_cut_out_of_the_picture_with_repeated_edges(
    data: st.DataObject, distance: int, height: int, width: int
) -> None:
    images = torch.arange(2 * 3 * height * width).view(2, 3, height, width)
    places = [data.draw(st.tuples(*2 * [st.integers(0, 2 * distance)])) for _ in images]
    shifted = random_shift(images, torch.tensor(places), distance)
    assert shifted.dtype == images.dtype
    for image, found, (x, y) in zip(images.numpy(), shifted.numpy(), places, strict=True):
        wide = np.pad(image, ((0, 0), (distance, distance), (distance, distance)), mode="edge")
        np.testing.assert_array_equal(found, wide[:, y : y + height, x : x + width])


def test_frames_of_a_window_move_alike_and_windows_by_their_own_generators() -> None:
    augment, still = RandomShift(pad=2), video(frames=3)
    found = set()
    for seed in range(60):
        out = augment(still, np.random.default_rng(seed))
        assert out.dtype == torch.uint8
        assert out.shape == still.shape
        assert (out == out[:1]).all()
        assert torch.equal(out, augment(still, np.random.default_rng(seed)))
        found.add(out.numpy().tobytes())
    assert len(found) > 20  # of 25 places
    assert still.numpy().tobytes() in found  # the middle one


def test_any_number_of_axes_and_types_are_shifted() -> None:
    images = torch.rand(2, 4, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    shifts = torch.tensor([[0, 3], [4, 2]])
    out = random_shift(images, shifts, 2)
    assert torch.equal(out, random_shift(images.flatten(1, 2), shifts, 2).view(images.shape))
    assert torch.equal(random_shift(images, torch.full((2, 2), 2), 2), images)


def test_a_shift_by_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1 pixel"):
        RandomShift(pad=0)
