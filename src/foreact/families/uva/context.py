"""Past frames shown at uneven times, so that a model acts whatever rate a robot sees at.

The published UMI models are trained so ("different_history_freq"). There 4 distinct times are
drawn, of which none need be now; here they end now and may repeat, as in the reference's recipes
for simulators.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from foreact.families.uva.config import UVAConfig
from foreact.types import Batch


def shown_context(batch: Batch, steps: Tensor, config: UVAConfig) -> Batch:
    """Of the K past steps in a batch, those that are shown.

    Args:
        batch: latents (B, K + F, ...) of the config's cameras, and states (B, K, S) or (B, K + K,
            S) with their future.
        steps: int64 (B, F), steps 0..K-1 of the past, the last of which is now.
        config: of the model.

    Returns:
        A batch as `UVA.loss` takes it: (B, 2F, ...) and (B, P, S) or (B, P + K, S), with the masks
        that belong to them.
    """

    def shown(values: Tensor) -> Tensor:
        past, future = values[:, : config.horizon], values[:, config.horizon :]
        index = steps.reshape(*steps.shape, *[1] * (values.ndim - 2))
        chosen = past.gather(1, index.expand(-1, -1, *values.shape[2:]))
        return torch.cat([chosen, future], dim=1)

    cameras = set(config.views.values())
    # Where no state is shown, those that are foreseen hold their future alone.
    states = set(config.proprioception)
    if states:
        states |= set(config.foreseen_states)
    return dataclasses.replace(
        batch,
        latents={n: shown(x) if n in cameras else x for n, x in batch.latents.items()},
        state={n: shown(x) if n in states else x for n, x in batch.state.items()},
        valid={n: shown(x) if n in cameras | states else x for n, x in batch.valid.items()},
    )
