"""Learning-rate factors as functions of the step alone, with no scheduler state to lose."""

from __future__ import annotations

import math
from typing import Literal, get_args

from foreact.errors import UserError

Schedule = Literal["cosine", "linear", "constant_with_warmup", "wsd"]


def lr_factor(
    schedule: Schedule, step: int, *, warmup: int, steps: int, drop: int = 0, floor: float = 0.1
) -> float:
    """Factor on the base learning rate for optimiser step `step`, counted from 0.

    The values equal those of diffusers 0.18, which the UVA recipe uses. The factor of step 0 is 0
    where there is a warmup. The cosine rises again beyond `steps`, as its formula says.

    "wsd" (warmup, stable, drop) is VaViM's: 1 after the warmup, and over the last `drop` steps a
    line down to `floor`, where it stays beyond `steps`. Any step of the stable part can thus be the
    start of a further run.

    Args:
        schedule: name of the schedule.
        step: optimiser steps done so far, >= 0. One optimiser step is one schedule step at any
            number of processes (the reference advances its schedule once per process).
        warmup: optimiser steps of linear rise from 0 to 1.
        steps: optimiser steps of the whole run, warmup and drop included.
        drop: optimiser steps of the line down at the end of "wsd"; 0: none.
        floor: factor at the end of that line.

    Returns:
        The factor, in [0, 1].

    Raises:
        UserError: the schedule is unknown.
    """
    if schedule not in get_args(Schedule):
        raise UserError(
            f"Unknown schedule '{schedule}'; choose one of {', '.join(get_args(Schedule))}."
        )
    if step < warmup:
        return step / max(1, warmup)
    if schedule == "constant_with_warmup":
        return 1.0
    if schedule == "wsd":
        left = max(steps - step, 0)
        return floor + (1.0 - floor) * left / drop if left < drop else 1.0
    if schedule == "linear":
        return max(0.0, (steps - step) / max(1, steps - warmup))
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
