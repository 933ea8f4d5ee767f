"""Perceptual distances between pictures: the protocol, and one over the features of any frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class PerceptualDistance(Protocol):
    """How different two pictures look; differentiable in both."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Float (N, 3, H, W) in [-1, 1], twice -> float32 (N,), >= 0 and 0 for equal pictures."""
        ...


class FeatureDistance:
    """Squared distance of unit-normalised features, averaged over positions and layers.

    The form of LPIPS (arXiv 1801.03924, eq. 1) with every channel weighted alike instead of by learned weights. It is
    no module, so an autoencoder that trains with it does not save it.

    Args:
        network: any module that takes float (N, 3, H, W); frozen and set to evaluation here, and moved to the device
            of the pictures when called.
        layers: names of submodules of `network`, as in `named_modules`, whose outputs (N, C, h, w) are compared.
        mean, std: per-channel statistics that `network` expects to be taken off pictures in [0, 1]; the defaults leave
            pictures in [-1, 1] as they are.

    Raises:
        ValueError: `layers` is empty or names a submodule that does not exist.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        known = [name for name, _ in network.named_modules() if name]
        if not layers or not set(layers) <= set(known):
            raise ValueError(f"layers should name submodules among {known}, found {list(layers)}")
        self.network = network.eval().requires_grad_(False)
        self.layers = tuple(layers)
        self.mean, self.std = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        features = self._features(torch.cat([x, y]))
        distances = []
        for name in self.layers:
            a, b = _unit(features[name]).chunk(2)
            distances.append((a - b).square().sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(distances).mean(dim=0)

    def _features(self, pictures: Tensor) -> dict[str, Tensor]:
        """Outputs of the named layers; hooks live for this call only, so `network` stays free for other uses."""
        network = self.network.to(pictures.device)
        mean, std = self.mean.to(pictures.device), self.std.to(pictures.device)
        found: dict[str, Tensor] = {}

        def keep(name: str):
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                found[name] = output.to(torch.float32, copy=True)  # an in-place layer may follow

            return hook

        modules = dict(network.named_modules())
        hooks = [modules[name].register_forward_hook(keep(name)) for name in self.layers]
        try:
            network(((pictures.float() + 1.0) / 2.0 - mean) / std)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _unit(features: Tensor) -> Tensor:
    """(N, C, h, w) with length 1 across channels; the square root sees no zero, whose slope is infinite."""
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-10).rsqrt()
