"""The model and tokenizer families a checkpoint can be of: name -> (config class, module class)."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from foreact.models.uva import UVA, UVAConfig
from foreact.models.vavam import VaVAM, VaVAMConfig
from foreact.models.vavim import VaViM, VaViMConfig
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer


class Family(NamedTuple):
    """A config dataclass and the module that takes one."""

    config: type
    module: type[nn.Module]


FAMILIES: dict[str, Family] = {
    "kl_vae": Family(KLVAEConfig, KLVAE),
    "uva": Family(UVAConfig, UVA),
    "vavim": Family(VaViMConfig, VaViM),
    "vavam": Family(VaVAMConfig, VaVAM),
    "vq": Family(VQConfig, VQTokenizer),
}
