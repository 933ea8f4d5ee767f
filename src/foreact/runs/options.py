"""Options that the runs of several systems have, with the words that --help has for them.

A run is one dataclass, `class MyRun(TrainingRun, Episodes)`, with options of its own; --help shows
those of the last base first, and its own last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from foreact.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """What to learn from: a store, by default that of a task."""

    task: str | None
    """A built-in task or the import path of a module that exports TASK."""
    data: Path | None = None
    """Store to learn from; None: the task's own, data/<task>.zarr."""
    val_ratio: float = 0.1
    """Share of the episodes kept for validation."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Where to train, what and how."""

    free_on_resume: ClassVar[tuple[str, ...]] = ("train", "device", "out", "new_episodes")

    out: Path
    """Folder of the run; an interrupted run in it is resumed."""
    device: str | None = None
    """Where to train; None: CUDA if there is one."""
    new_episodes: bool = False
    """Go on with a run whose data have grown: learn from the new episodes too, with the split and
    the statistics that it began with."""
    model: Any
    train: TrainConfig = field(default_factory=TrainConfig)
