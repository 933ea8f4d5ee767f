"""LPIPS: VGG16 by its published counts, the distance by its
formula, and how it is read from released files.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.taming_files import WIDTHS, network, perceptual_state, released
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

from foreact.errors import UserError
from foreact.families.codes.released.taming import read_lpips
from foreact.tokenizers.lpips import SMALLEST_SIDE, last_of_stages, vgg16


def pictures(seed: int, side: int = 20) -> Tensor:
    return torch.rand(2, 3, side, side + 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({"state_dict": released(network())}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def plain_lpips(x: Tensor, y: Tensor) -> Tensor:
    """The published formula over the file's own names."""
    state = perceptual_state()
    slices = (
        ("1", (0, 2)),
        ("2", (5, 7)),
        ("3", (10, 12, 14)),
        ("4", (17, 19, 21)),
        ("5", (24, 26, 28)),
    )

    def features(z: Tensor) -> list[Tensor]:
        z = (z - state["scaling_layer.shift"]) / state["scaling_layer.scale"]
        found = []
        for number, convolutions in slices:
            z = max_pool2d(z, 2) if found else z
            for index in convolutions:
                name = f"net.slice{number}.{index}"
                z = conv2d(z, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).relu()
            found.append(z / (z.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    total = torch.zeros(len(x), 1, 1, 1)
    for k, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        total = total + conv2d((a - b).square(), state[f"lin{k}.model.1.weight"]).mean(
            dim=(2, 3), keepdim=True
        )
    return total.flatten()


def test_vgg16_has_the_published_parameters_and_activations() -> None:
    with torch.device("meta"):
        network = vgg16((64, 128, 256, 512, 512))
    assert sum(p.numel() for p in network.parameters()) == 14_714_688
    assert last_of_stages() == ["3", "8", "15", "22", "29"]
    assert all(isinstance(network[int(name)], nn.ReLU) for name in last_of_stages())


def test_the_distance_of_a_file_is_the_published_formula(file: Path) -> None:
    distance, x, y = read_lpips(file), pictures(0), pictures(1)
    torch.testing.assert_close(distance(x, y), plain_lpips(x, y), rtol=1e-4, atol=1e-6)
    assert (distance(x, y) > 0).all()
    assert distance(x, x).tolist() == [0.0, 0.0]


def test_pictures_get_a_gradient_and_the_network_none(file: Path) -> None:
    distance, x = read_lpips(file), pictures(0).requires_grad_()
    distance(x, pictures(1)).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()
    assert not any(p.requires_grad for p in distance.network.parameters())


def test_the_smallest_pictures_have_a_distance(file: Path) -> None:
    distance = read_lpips(file)
    small = torch.zeros(1, 3, SMALLEST_SIDE, SMALLEST_SIDE)
    assert distance(small, small + 0.5).shape == (1,)
    with pytest.raises(RuntimeError, match="too small"):
        distance(small[..., 1:], small[..., 1:])


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("lin3.model.1.weight", "lacks loss.perceptual_loss.lin3.model.1.weight"),
        ("scaling_layer.scale", "lacks loss.perceptual_loss.scaling_layer.scale"),
        ("net.slice2.7.weight", "the network lacks 7.weight"),
        ("net.slice3.10.bias", r'Missing key.*"10.bias"'),
    ],
)
def test_a_distance_that_is_not_whole_is_told(lost: str, said: str, tmp_path: Path) -> None:
    state = released(network())
    del state[f"loss.perceptual_loss.{lost}"]
    torch.save(state, tmp_path / "lost.pth")
    with pytest.raises(UserError, match=said):
        read_lpips(tmp_path / "lost.pth")


@pytest.mark.parametrize(
    ("changed", "shape", "said"),
    [
        (
            "lin1.model.1.weight",
            (1, 9, 1, 1),
            r"should be of \[2, 3, 4, 5, 6, 3, 3\] channels, found \[2, 9, ",
        ),
        ("scaling_layer.shift", (1, 2, 1, 1), r"found \[2, 3, 4, 5, 6, 2, 3\]"),
        ("net.slice1.2.weight", (), "2.weight of the network is no convolution's"),
    ],
)
def test_parts_that_do_not_belong_together_are_told(
    changed: str, shape: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    state = released(network()) | {f"loss.perceptual_loss.{changed}": torch.ones(shape)}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=said):
        read_lpips(tmp_path / "odd.pth")


def test_a_file_without_its_loss_is_told(tmp_path: Path) -> None:
    state = {k: v for k, v in released(network()).items() if not k.startswith("loss.")}
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="no tensors under 'loss"):
        read_lpips(tmp_path / "bare.pth")


def test_widths_follow_from_the_tensors(file: Path) -> None:
    found = read_lpips(file)
    widths = [
        len(found.network.get_parameter(f"{int(name) - 1}.bias")) for name in last_of_stages()
    ]
    assert tuple(widths) == WIDTHS
