"""What a training gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
        step: optimiser steps done in the whole run.
        finished: all steps are done.
        interrupted: Ctrl-C, SIGTERM or a scheduler's warning ended the call; the same call resumes.
        checkpoint: folder of the newest checkpoint.
        weights: exported weights of the newest checkpoint, None without `export`.
        best: exported weights of the best checkpoint by `best_metric` (its folder without
            `export`), None if unranked.
        best_value: its metric.
        metrics: the last evaluation's metrics.
        skipped: steps left out because of a non-finite loss or gradient, in the whole run.
    """

    step: int
    finished: bool
    interrupted: bool
    checkpoint: Path
    weights: Path | None
    best: Path | None
    best_value: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
