"""The patch discriminator of image autoencoders (arXiv 1611.07004, 3.2.2) and hinge losses."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu


class PatchGAN(nn.Module):
    """Judges overlapping patches of a picture: one logit each, above 0 for real.

    4x4 convolutions, `layers` of them with stride 2 and then two of stride 1, with batch
    normalisation after all but the first and the last. A picture needs at least `smallest_side`
    pixels along either axis.

    Args:
        channels: feature maps of the first convolution; doubled by each following one, up to eight
            times.
        layers: convolutions of stride 2.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for i, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < layers else 1
            parts += [
                nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.2),
            ]
        parts.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*parts)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> float32 (N, 1, h, w) logits."""
        return self.main(images).float()


def smallest_side(layers: int) -> int:
    """Least picture side in pixels that leaves a `PatchGAN` of that many layers one logit."""
    return 3 * 2**layers


def judge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """() hinge loss of the discriminator: zero for real logits above 1 and fake below -1."""
    return 0.5 * (relu(1.0 - real).mean() + relu(1.0 + fake).mean())


def deceive_loss(fake: Tensor) -> Tensor:
    """() hinge loss of the autoencoder: the higher the logits of its pictures, the better."""
    return -fake.mean()
