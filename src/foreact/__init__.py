"""Video-action models: networks that watch video, foresee what comes next, and act on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from foreact.types import Policy

__version__ = "0.1.0"
__all__ = ["load", "load_policy"]


def load(weights: str | Path, *, device: str = "cpu") -> nn.Module:
    """The module of any checkpoint, in evaluation mode, float32.

    Args:
        weights: a checkpoint folder or a shipped name, such as "uva-pusht".
        device: where to put it.

    Raises:
        foreact.errors.UserError: there is no such checkpoint, or it is damaged.
    """
    from foreact.checkpoints.format import build, load_checkpoint
    from foreact.checkpoints.shipped import resolve

    return build(load_checkpoint(resolve(weights)), device)


def load_policy(
    weights: str | Path, *, execute: int | None = None, device: str | None = None, **options: Any
) -> Policy:
    """The policy of any checkpoint whose family acts; see `foreact.runs.acting.load_policy`."""
    from foreact.runs import acting

    return acting.load_policy(weights, execute=execute, device=device, **options)
