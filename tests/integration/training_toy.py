"""A small model and data with what makes resuming hard (dropout, task modes drawn per micro-batch, a frozen part).

`main` is one process of a training run and prints what `train` returned; so does the file as a program:
`python training_toy.py RUN_DIR '{"steps": 4, ...}'`. Environment: TOY_SLEEP, seconds per batch; TOY_HANG, a rank whose
second batch takes 8 s; TOY_LOADER, to fetch batches by loader processes.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from foreact.errors import UserError
from foreact.train import TrainConfig, TrainResult, train
from foreact.types import Batch, LossOut

SMALL: dict[str, Any] = {
    "steps": 4, "batch_size": 3, "lr": 1e-2, "warmup": 1, "schedule": "constant_with_warmup", "precision": "fp32",
    "log_every": 1, "save_every": 2, "keep": 2, "tensorboard": False, "timeout_minutes": 1.0,
}  # fmt: skip


class Toy(nn.Module):
    """One hidden layer and three heads, of which each micro-batch uses one."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Linear(4, width)
        self.dropout = nn.Dropout(0.2)
        self.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        assert batch.actions is not None
        mode = int(torch.randint(3, (), generator=rng, device=rng.device))
        noise = torch.randn(batch.actions.shape, generator=rng, device=rng.device)
        hidden = self.dropout(torch.tanh(self.body(batch.actions + 0.1 * noise)))
        loss = (self.heads[mode](hidden) * self.frozen - batch.actions[..., :2]).square().mean()
        return LossOut(loss, {f"loss_{mode}": loss.detach()})

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        return [
            {"params": [p for p in self.parameters() if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
            {"params": [p for p in self.parameters() if p.ndim == 1], "lr": 0.5 * lr, "weight_decay": 0.0},
        ]


def toy_model() -> Toy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Toy()


def toy_batches(start: int, rank: int, world: int) -> Iterator[Batch]:
    micro = start + rank
    while True:
        time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
        if os.environ.get("TOY_HANG") == str(rank) and micro > start + rank:
            time.sleep(8)
        yield Batch(actions=torch.randn(3, 4, generator=torch.Generator().manual_seed(micro)))
        micro += world


class Numbered(Dataset[Batch]):
    """Micro-batch number -> batch, for torch's DataLoader."""

    def __getitem__(self, micro: int) -> Batch:
        return next(toy_batches(micro, 0, 1))


def loaded_batches(start: int, rank: int, world: int) -> Iterator[Batch]:
    """The same batches from two loader processes."""
    return iter(DataLoader(Numbered(), batch_size=None, sampler=itertools.count(start + rank, world), num_workers=2))


def toy_export(weights: dict[str, Tensor], path: Path) -> None:
    path.mkdir()
    torch.save(weights, path / "weights.pt")


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**SMALL, **changes})


def run(run_dir: Path, *, model: nn.Module | None = None, resume: Any = "auto", **changes: Any) -> TrainResult:
    return train(
        toy_model() if model is None else model,
        loaded_batches if os.environ.get("TOY_LOADER") else toy_batches,
        config(**changes),
        run_dir,
        export=toy_export,
        device="cpu",
        resume=resume,
    )


def main(run_dir: str | Path, changes: str) -> None:
    try:
        result = run(Path(run_dir), **json.loads(changes))
        print(json.dumps({"step": result.step, "interrupted": result.interrupted, "finished": result.finished}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2])
