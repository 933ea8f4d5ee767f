"""What trainings of tokenizers share: pictures to learn from, and a schedule for a laptop."""

from __future__ import annotations

from dataclasses import dataclass

from foreact.runs.options import Episodes
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig

SHORT = TrainConfig(
    steps=2000,
    batch_size=32,
    lr=1e-3,
    warmup=100,
    eval_every=500,
    save_every=500,
    best_k=0,
    weight_decay=0.0,
    ema=EMAConfig(max=0.995),
)
"""For the small tokenizers: minutes on two cores."""


@dataclass(frozen=True, kw_only=True)
class Pictures(Episodes):
    """What to learn from: the pictures of a task, or of a store that belongs to none."""

    task: str | None = None
    """A built-in task, or the import path of a module that exports TASK.

    None: pusht, or what the store of --data says about itself.
    """
    camera: str | None = None
    """Camera to learn from; None: those of the task, or every camera of a store without a task."""
    val_ratio: float = 0.05
