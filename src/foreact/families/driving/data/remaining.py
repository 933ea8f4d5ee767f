"""Windows that a training run has not seen yet, for fine-tuning on data new to the model."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from foreact.data.windows.loader import order
from foreact.errors import UserError


def remaining(
    windows: int, *, world: int, batch_size: int, steps: int, seed: int, drop_last: bool = True
) -> list[np.ndarray]:
    """What each rank of a run of the reference had not seen of its first epoch.

    Its order is that of torch's DistributedSampler, shuffled, epoch 0.

    Args:
        windows: size of the data set.
        world: ranks.
        batch_size: per rank.
        steps: batches per rank that were seen.
        seed: of the sampler; 84924 for the released models.
        drop_last: of the sampler: cut the tail that does not fill all ranks, instead of repeating
            the beginning.

    Returns:
        int64 arrays, one per rank, in the order in which they would have come.

    Raises:
        UserError: numbers that no run can have.
    """
    _check(windows=windows, world=world, batch_size=batch_size, steps=steps)
    dataset = cast(Dataset, range(windows))
    unseen = []
    for rank in range(world):
        sampler = DistributedSampler(
            dataset, world, rank, shuffle=True, seed=seed, drop_last=drop_last
        )
        unseen.append(np.array(list(sampler)[steps * batch_size :], np.int64))
    return unseen


def remaining_of_run(windows: int, *, seed: int, seen: int) -> np.ndarray:
    """What a run of ours has not seen of the epoch in which it stopped, in its order.

    Args:
        windows: size of the data set.
        seed: of the run.
        seen: windows that all ranks together have seen: steps * accumulate * world * batch_size.

    Raises:
        UserError: numbers that no run can have.
    """
    _check(windows=windows, world=1, batch_size=1, steps=seen)
    epochs = max(1, -(-seen // windows))
    return order(windows, seed, np.arange(seen, epochs * windows))


def _check(**numbers: int) -> None:
    if min(numbers.values()) < 0 or any(
        numbers[name] < 1 for name in ("windows", "world", "batch_size")
    ):
        raise UserError(
            "--windows, --world and --batch-size should be at least 1 and nothing negative, found "
            f"{numbers}."
        )
