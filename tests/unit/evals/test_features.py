from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foreact.errors import UserError
from foreact.evals.features import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PREPROCESSING,
    Preprocessing,
    open_features,
)
from foreact.types import to_model_range


class Means(nn.Module):
    """Channel means times a weight: features whose values are known."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight] * 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).mean(2) * self.weight


def saved(path: Path, module: nn.Module) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def flat(values: tuple[int, int, int], shape: tuple[int, ...] = (2, 28, 42)) -> np.ndarray:
    return np.broadcast_to(np.array(values, np.uint8), (*shape, 3)).copy()


@pytest.fixture
def module_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_features.py").write_text(
        "import torch\n"
        "def network():\n"
        "    layer = torch.nn.Linear(3, 2)\n"
        "    torch.nn.init.ones_(layer.weight); torch.nn.init.zeros_(layer.bias)\n"
        "    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), layer)\n"
        "def number():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_features:network"
    sys.modules.pop("my_features", None)


def test_a_torchscript_file_gives_features_of_pictures_in_model_range(tmp_path: Path) -> None:
    network = open_features(str(saved(tmp_path / "means.jit", Means(2.0))))
    rows = network.images(flat((0, 255, 51)))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[-2.0, 2.0, 2 * (51 / 127.5 - 1)]] * 2, atol=1e-6)


def test_an_import_path_gives_features(module_path: str) -> None:
    network = open_features(module_path)
    np.testing.assert_allclose(network.images(flat((255, 255, 0))), [[1.0, 1.0]] * 2, atol=1e-6)
    assert network.name == module_path


def test_the_hash_follows_the_weights(tmp_path: Path, module_path: str) -> None:
    one, other = (saved(tmp_path / f"{w}.jit", Means(w)) for w in (1.0, 2.0))
    hashes = [open_features(str(p)).hash for p in (one, one, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert open_features(module_path).hash == open_features(module_path).hash
    described = open_features(str(one), preprocessing="dinov2").describe()
    assert described["hash"] == hashes[0]
    assert described["preprocessing"]["multiple"] == 14
    assert "only under the same network hash" in described["note"]


def test_imagenet_statistics_belong_to_pictures_in_zero_to_one() -> None:
    grey = to_model_range(torch.full((1, 3, 28, 42), 102, dtype=torch.uint8))
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    correct = PREPROCESSING["dinov2"](grey)[0, :, 0, 0]
    np.testing.assert_allclose(correct, (0.4 - mean) / std, rtol=1e-5)
    reference = PREPROCESSING["dinov2-reference"](grey)[0, :, 0, 0]
    np.testing.assert_allclose(reference, (-0.2 - mean) / std, rtol=1e-5)


def test_sizes() -> None:
    picture = torch.rand(1, 3, 288, 512)
    assert PREPROCESSING["dinov2"](picture).shape == (1, 3, 280, 504)
    assert PREPROCESSING["inception"](picture).shape == (1, 3, 299, 299)
    assert PREPROCESSING["imagenet"](picture).shape == (1, 3, 224, 224)
    assert torch.equal(PREPROCESSING["none"](picture), picture)
    with pytest.raises(UserError, match="10 x 512"):
        PREPROCESSING["dinov2"](picture[:, :, :10])


@pytest.mark.parametrize("tall", [False, True])
def test_a_crop_keeps_the_centre(tall: bool) -> None:
    # A bright square in the middle of a dark, long picture fills the crop.
    picture = torch.full((1, 3, 32, 96), -1.0)
    picture[..., 32:64] = 1.0
    cropped = Preprocessing(size=(16, 16), crop=True)(picture.mT if tall else picture)
    assert cropped.shape == (1, 3, 16, 16)
    assert cropped[..., 1:-1, 1:-1].min() > 0.99


def test_clips_are_repeated_to_the_length_of_the_network() -> None:
    clips = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 3, 8, 8)
    out = Preprocessing(clip_frames=8).clip(clips)
    assert out.shape == (1, 3, 8, 8, 8)
    assert out[0, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(UserError, match="repeated evenly to 6"):
        Preprocessing(clip_frames=6).clip(clips)


def test_clips_go_through_a_network(tmp_path: Path) -> None:
    network = open_features(str(saved(tmp_path / "means.jit", Means())))
    rows = network.clips(flat((0, 255, 255), (2, 5, 8, 8)))
    np.testing.assert_allclose(rows, [[-1, 1, 1]] * 2)


def test_bad_input_is_one_sentence(tmp_path: Path, module_path: str) -> None:
    (tmp_path / "noise.jit").write_bytes(b"not a network")
    for source, words in (
        (str(tmp_path / "noise.jit"), "no TorchScript file"),
        (str(tmp_path / "missing.jit"), "which is neither"),
        ("my_features:nothing", "names no importable function"),
        ("no_such_module:f", "names no importable function"),
        ("my_features:number", "found int"),
    ):
        with pytest.raises(UserError, match=words):
            open_features(source)
    with pytest.raises(UserError, match="known ones are none"):
        open_features(module_path, preprocessing="sharp")
    network = open_features(module_path)
    with pytest.raises(UserError, match=r"uint8 \(N, H, W, 3\)"):
        network.images(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(UserError, match="fails on input"):
        open_features(module_path).clips(flat((0, 0, 0), (2, 4, 8, 8)))
    maps = saved(tmp_path / "maps.jit", nn.Conv2d(3, 4, 1))
    with pytest.raises(UserError, match=r"one row per input \(2, D\), found shape"):
        open_features(str(maps)).images(flat((0, 0, 0)))


@pytest.mark.parametrize(
    "settings",
    [{"crop": True}, {"size": (4, 8), "crop": True}, {"multiple": 0}, {"std": (0, 1, 1)}],
)
def test_settings_that_make_no_sense_are_refused(settings) -> None:
    with pytest.raises(UserError):
        Preprocessing(**settings)
