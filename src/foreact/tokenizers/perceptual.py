"""Perceptual distances between pictures: the protocol, and one on any frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class PerceptualDistance(Protocol):
    """How different two pictures look; differentiable in both."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Float (N, 3, H, W) in [-1, 1], twice -> float32 (N,), >= 0 and 0 for equal pictures."""
        ...


class FeatureDistance:
    """Weighted squared distance of unit-normalised features, position mean, layer sum.

    The form of LPIPS (arXiv 1801.03924, eq. 1), whose learned weights `foreact.tokenizers.lpips`
    gives; without them every channel counts alike. It is no module, so an autoencoder that trains
    with it does not save it.

    Args:
        network: any module that takes float (N, 3, H, W); frozen and set to evaluation here, and
            moved to the device of the pictures when called.
        layers: names of submodules of `network`, as in `named_modules`, whose outputs (N, C, h, w)
            are compared.
        weights: one float (C,) per layer; the default is the mean over layers, every channel
            counting 1.
        mean, std: per-channel statistics that `network` expects to be taken off pictures in [0, 1];
            the defaults leave pictures in [-1, 1] as they are.

    Raises:
        ValueError: `layers` is empty or names a submodule that does not exist, or there are not as
            many weights.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        *,
        weights: Sequence[Tensor] | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        names = [name for name, _ in network.named_modules() if name]
        if not layers or not set(layers) <= set(names):
            raise ValueError(f"layers should name submodules among {names}, found {list(layers)}")
        self.network = network.eval().requires_grad_(False)
        self.layers = tuple(layers)
        if weights is None:
            weights = [torch.tensor([1.0 / len(layers)])] * len(layers)
        if len(weights) != len(layers):
            raise ValueError(
                f"weights should be one tensor per layer, found {len(weights)} for "
                f"{len(layers)} layers"
            )
        self.weights = [w.detach().float().view(-1, 1, 1) for w in weights]
        self.mean, self.std = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        features = self._features(torch.cat([x, y]))
        distances = []
        for name, weights in zip(self.layers, self.weights, strict=True):
            unit = normalize(features[name], dim=1, eps=1e-10)  # eps as in the published LPIPS
            a, b = unit.chunk(2)  # x and y went through the network as one batch
            distances.append(((a - b).square() * weights.to(a.device)).sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(distances).sum(dim=0)

    def _features(self, pictures: Tensor) -> dict[str, Tensor]:
        """Outputs of the named layers; hooks are removed after the call."""
        network = self.network.to(pictures.device)
        mean, std = self.mean.to(pictures.device), self.std.to(pictures.device)
        outputs: dict[str, Tensor] = {}

        def keep(name: str):
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                outputs[name] = output.to(torch.float32, copy=True)  # an in-place layer may follow

            return hook

        modules = dict(network.named_modules())
        hooks = [modules[name].register_forward_hook(keep(name)) for name in self.layers]
        try:
            network(((pictures.float() + 1.0) / 2.0 - mean) / std)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs
