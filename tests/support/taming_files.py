"""Miniature files in the layout of taming's VQGAN: the network
under its names, with a loss beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foreact.families.codes.released.taming_names import to_reference
from foreact.tokenizers.discriminator import PatchGAN
from foreact.tokenizers.lpips import vgg16
from foreact.tokenizers.vq import TAMING, VQConfig, VQTokenizer

# Attention is where the published networks have it, at the smallest size.
CONFIG = VQConfig(
    channels=32,
    multipliers=(1, 1, 2),
    blocks=1,
    features=12,
    codes=20,
    code_dim=6,
    image_size=(16, 24),
    normalized=False,
    codebook_weight=TAMING.codebook_weight,
    commitment_weight=TAMING.commitment_weight,
)
WIDTHS = (2, 3, 4, 5, 6)


def network(config: VQConfig = CONFIG) -> VQTokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = VQTokenizer(config).eval()
        nn.init.normal_(made.quantizer.weight)
        return made


def perceptual_state() -> dict[str, Tensor]:
    """LPIPS over a narrow VGG16, under the names of the files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        features = vgg16(WIDTHS).state_dict()
        state = {
            f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in enumerate(WIDTHS)
        }
    # A slice of the file ends with the last activation of a stage.
    first = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
    state |= {
        f"net.slice{first[int(key.split('.')[0])]}.{key}": tensor
        for key, tensor in features.items()
    }
    shift, scale = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
    return state | {
        f"scaling_layer.{name}": torch.tensor(values).view(1, 3, 1, 1)
        for name, values in (("shift", shift), ("scale", scale))
    }


def released(tokenizer: VQTokenizer) -> dict[str, Tensor]:
    """The state dict of a whole file: network, perceptual distance and discriminator."""
    loss = {f"perceptual_loss.{key}": tensor for key, tensor in perceptual_state().items()}
    loss |= {f"discriminator.{key}": tensor for key, tensor in PatchGAN(4, 2).state_dict().items()}
    return to_reference(tokenizer.state_dict()) | {
        f"loss.{key}": tensor for key, tensor in loss.items()
    }
