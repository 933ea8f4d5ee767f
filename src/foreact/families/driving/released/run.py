"""An authors' training checkpoint -> weights and moments in a run folder, to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreact.errors import UserError
from foreact.families.driving.released.training_state import read_training_state
from foreact.train.checkpoint import write_start
from foreact.train.optim import build_optimizer


def write_released_run(
    src: Path, dst: Path, *, grid: tuple[int, int] | None = None, payload: Any = None
) -> Path:
    """Write a Lightning .ckpt's or DeepSpeed directory's training state, for --train.start-from.

    Args:
        src: a VaViM or VaVAM checkpoint with the state of its optimiser.
        dst: the run folder; must not hold a run.
        grid: rows and columns of tokens in a frame, where they are not the published 18 x 32.
        payload: what the file holds, where it has been read already.

    Returns:
        The checkpoint's folder, `dst/checkpoints/step-*`.

    Raises:
        UserError: the file is unsafe, damaged or without training state, or the folder holds
            something.
    """
    if dst.exists() and any(dst.iterdir()):
        raise UserError(f"{dst} is not empty; choose a new folder for the run.")
    state = read_training_state(src, grid=grid, payload=payload)
    model = state.reference.build()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in state.first)
    # Rate and decay are the next run's to choose; `start_from` keeps those of its own config.
    optimizer = build_optimizer(model, lr=1.0, weight_decay=0.0, betas=(0.9, 0.95))
    record = {
        "step": state.global_step,
        "source": src.name,
        "epoch": state.epoch,
        "schedule": state.schedule,
    }
    return write_start(
        dst / "checkpoints", state.global_step, model, optimizer, state.optimizer_state(), record
    )
