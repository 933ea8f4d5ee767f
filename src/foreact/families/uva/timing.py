"""Which frames and actions UVA looks at, as offsets in steps from the anchor, "now".

With 4 frames, stride 4 and horizon 16: context -12, -8, -4, 0; future 4, 8, 12, 16; actions 0..15
where the first one is due now, else 1..16.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from torch import Tensor

from foreact.errors import UserError


def context_offsets(frames: int, stride: int) -> list[int]:
    """Offsets of the `frames` context frames: `stride` steps apart, the last one now."""
    return [(i - frames + 1) * stride for i in range(frames)]


def future_offsets(frames: int, stride: int) -> list[int]:
    """Offsets of the `frames` foreseen frames: `stride` apart, the first `stride` steps ahead."""
    return [(i + 1) * stride for i in range(frames)]


def action_offsets(horizon: int, *, first_now: bool) -> list[int]:
    """Offsets of the predicted actions.

    `first_now`: the first is the one taken at the last frame shown, else the one after it.
    """
    return list(range(horizon)) if first_now else list(range(1, horizon + 1))


def past_action_offsets(horizon: int, *, first_now: bool) -> list[int]:
    """Actions taken before those of `action_offsets`, as many as these."""
    return [o - horizon for o in action_offsets(horizon, first_now=first_now)]


def frame_stride(horizon: int, frames: int) -> int:
    """Steps between two foreseen frames, so that the last one shows the end of the horizon.

    Raises:
        UserError: the frames cannot be spread evenly.
    """
    if frames < 1 or horizon % frames:
        raise UserError(
            f"A horizon of {horizon} actions does not spread evenly over {frames} frames; choose "
            "a multiple of them."
        )
    return horizon // frames


def context_steps(frames: int, steps: int) -> Tensor:
    """Every way to show past frames at uneven times: non-decreasing and ending now.

    Training draws one of them per batch.

    Args:
        frames: frames shown.
        steps: steps of the past, the last of which is now.

    Returns:
        int64 (choices, frames) in lexicographic order, repeats allowed.
    """
    past = combinations_with_replacement(range(steps), frames - 1)
    return torch.tensor([(*p, steps - 1) for p in past], dtype=torch.int64).reshape(-1, frames)
