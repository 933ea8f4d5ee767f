"""What is refused before several processes compute something wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from foreact.errors import UserError
from foreact.train.parallel import World


def test_fsdp_on_the_cpu_is_refused_where_gloo_sums_instead_of_averaging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.0+cpu"))
    with pytest.raises(
        UserError, match=r"^parallel fsdp on the CPU needs torch 2\.9 or newer, found 2\.8\.0\+cpu;"
    ):
        World(size=2).shard(nn.Linear(2, 2), half=False)
