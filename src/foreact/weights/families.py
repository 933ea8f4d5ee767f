"""The model and tokenizer families a checkpoint can be of: name -> (config class, module class)."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from foreact.models.cloning import Cloning, CloningConfig
from foreact.models.uva import UVA, UVAConfig
from foreact.models.vavam import VaVAM, VaVAMConfig
from foreact.models.vavim import VaViM, VaViMConfig
from foreact.models.voc import VOC, VOCConfig
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig
from foreact.tokenizers.musik import Musik, MusikConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.tokenizers.vqkd import VQKD, VQKDConfig


class Family(NamedTuple):
    """A config dataclass and the module that takes one."""

    config: type
    module: type[nn.Module]


FAMILIES: dict[str, Family] = {
    "bc": Family(CloningConfig, Cloning),
    "kl_vae": Family(KLVAEConfig, KLVAE),
    "musik": Family(MusikConfig, Musik),
    "uva": Family(UVAConfig, UVA),
    "vavim": Family(VaViMConfig, VaViM),
    "vavam": Family(VaVAMConfig, VaVAM),
    "voc": Family(VOCConfig, VOC),
    "vq": Family(VQConfig, VQTokenizer),
    "vqkd": Family(VQKDConfig, VQKD),
}
