"""A small model and data with what makes resuming hard (dropout, task modes drawn per micro-batch,
a frozen part).

`main` is one process of a training run and prints what `train` returned; so does the file as a
program: `python training_toy.py RUN_DIR '{"steps": 4, ...}'`. Environment: TOY_SLEEP, seconds per
batch; TOY_HANG, a rank whose second batch takes 8 s; TOY_LOADER, to fetch batches by loader
processes; TOY_LARGEST_FILE, bytes of a file beyond which writing fails.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.utils.data import DataLoader, Dataset

from foreact.errors import UserError
from foreact.train import TrainConfig, TrainResult, train
from foreact.train.checkpoint import capture
from foreact.train.ema import EMA
from foreact.train.logs import read_log
from foreact.train.optim import build_optimizer
from foreact.types import Batch, LossOut

SMALL: dict[str, Any] = {
    "steps": 4,
    "batch_size": 3,
    "lr": 1e-2,
    "warmup": 1,
    "schedule": "constant_with_warmup",
    "precision": "fp32",
    "log_every": 1,
    "save_every": 2,
    "keep": 2,
    "tensorboard": False,
    "timeout_minutes": 1.0,
}


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
            {
                "params": [p for p in self.parameters() if p.ndim > 1],
                "lr": lr,
                "weight_decay": weight_decay,
            },
            {
                "params": [p for p in self.parameters() if p.ndim == 1],
                "lr": 0.5 * lr,
                "weight_decay": 0.0,
            },
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
    return iter(
        DataLoader(
            Numbered(), batch_size=None, sampler=itertools.count(start + rank, world), num_workers=2
        )
    )


def toy_export(weights: dict[str, Tensor], path: Path) -> None:
    path.mkdir()
    torch.save(weights, path / "weights.pt")


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**SMALL, **changes})


def run(
    run_dir: Path, *, model: nn.Module | None = None, resume: Any = "auto", **changes: Any
) -> TrainResult:
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
    if size := os.environ.get("TOY_LARGEST_FILE"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))
    try:
        result = run(Path(run_dir), **json.loads(changes))
        print(
            json.dumps(
                {
                    "step": result.step,
                    "interrupted": result.interrupted,
                    "finished": result.finished,
                }
            )
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2])


def state_of(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint: model, optimiser, average."""
    model = toy_model()
    settings = config()
    optimizer = build_optimizer(
        model, lr=settings.lr, weight_decay=settings.weight_decay, betas=settings.betas
    )
    state = capture(model, optimizer, EMA(model, settings.ema))
    state_dict_loader.load(state, checkpoint_id=checkpoint, no_dist=True)
    flat = {f"model.{k}": v for k, v in state["model"].items()} | {
        f"ema.{k}": v for k, v in state["ema"].items()
    }
    for name, moments in state["optimizer"]["state"].items():
        flat |= {f"optimizer.{name}.{k}": v for k, v in moments.items()}
    return flat | {"ema_step": state["ema_step"]}


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    """The log without what the clock says."""
    clock = ("seconds", "samples_per_s", "data_wait")
    return [
        {k: v for k, v in entry.items() if k not in clock}
        for entry in read_log(run_dir / "log.jsonl")
    ]


class Interrupting:
    """Presses Ctrl-C while the given micro-batch is fetched."""

    def __init__(self, at: int, number: int = signal.SIGINT) -> None:
        self.at, self.number = at, number

    def __call__(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        for micro, batch in enumerate(toy_batches(start, rank, world), start=start):
            if micro == self.at:
                os.kill(os.getpid(), self.number)
            yield batch


def assert_close(one: Path, other: Path) -> None:
    a, b = state_of(one), state_of(other)
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=name)
