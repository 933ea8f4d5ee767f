"""DeepSpeed directories as training leaves them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHTS = "single_partition_of_fp32_groups"


def write(
    path: Path,
    groups: list[State],
    *,
    world: int = 3,
    stage: int = 2,
    padded: bool = True,
    frozen: State | None = None,
    shared: dict[str, str] | None = None,
    buffers: State | None = None,
    client: dict[str, Any] | None = None,
    prefix: str = "",
    name: str = "bf16_",
) -> Path:
    """A directory as DeepSpeed writes it, with moments that are
    a half and a quarter of the weights.
    """
    groups = [{prefix + k: v for k, v in g.items()} for g in groups]
    frozen = {prefix + k: v for k, v in (frozen or {}).items()}
    folder = path / "checkpoint"
    folder.mkdir(parents=True)
    (path / "latest").write_text("checkpoint")

    def parts(group: State) -> list[Tensor]:
        return own_parts(group, world) if stage == 3 else flat_parts(group, world, padded=padded)

    weights = [parts(g) for g in groups]
    first = [parts(halved(g)) for g in groups]
    second = [parts(halved(halved(g))) for g in groups]
    for rank in range(world):
        moments = {
            "state": {
                i: {
                    "step": torch.tensor(7.0),
                    "exp_avg": first[i][rank],
                    "exp_avg_sq": second[i][rank],
                }
                for i in range(len(groups))
            },
            "param_groups": [
                {"lr": 0.1 / (i + 1), "betas": (0.9, 0.95)} for i in range(len(groups))
            ],
        }
        flat = [w[rank].clone() for w in weights]
        own = {
            "zero_stage": stage,
            "partition_count": [world] * len(groups) if stage == 2 else world,
        }
        own |= (
            {"fp32_flat_groups": flat, "optimizer_state_dict": moments}
            if stage == 3
            else {WEIGHTS: flat, "base_optimizer_state": moments}
        )
        torch.save(
            {"optimizer_state_dict": own},
            folder / f"{name}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )
    buffers = {prefix + k: v for k, v in (buffers or {}).items()}
    pieces = own_parts(frozen, world) if stage == 3 and len(frozen) == 1 else []
    for rank in range(world if stage == 3 else 1):
        model = {
            "module": {k: v.bfloat16() for g in groups for k, v in g.items()} | buffers,
            "buffer_names": list(buffers),
            "param_shapes": [{k: v.shape for k, v in g.items()} for g in groups],
            "frozen_param_shapes": {k: v.shape for k, v in frozen.items()} or None,
            "frozen_param_fragments": {k: pieces[rank] if pieces else v for k, v in frozen.items()}
            or None,
            "shared_params": {prefix + k: prefix + v for k, v in (shared or {}).items()},
            "ds_config": {"zero_optimization": {"stage": stage}},
            "dp_world_size": world,
            **(client or {}),
        }
        file = (
            f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
            if stage == 3
            else "mp_rank_00_model_states.pt"
        )
        torch.save(model, folder / file)
    return path


State = dict[str, Tensor]


def flat_parts(group: State, world: int, *, padded: bool = True) -> list[Tensor]:
    """Stages 1 and 2: end to end, filled up to a multiple of 2 x ranks, cut into equal parts."""
    whole = torch.cat([t.reshape(-1) for t in group.values()])
    size = math.ceil(whole.numel() / (2 * world)) * 2
    filled = torch.cat([whole, torch.full((size * world - whole.numel(),), torch.nan)])
    parts = list(filled.split(size))
    if padded:
        return parts
    return [part[: max(0, whole.numel() - rank * size)] for rank, part in enumerate(parts)]


def own_parts(group: State, world: int) -> list[Tensor]:
    """Stage 3: each parameter cut by itself."""
    ranks: list[list[Tensor]] = [[] for _ in range(world)]
    for tensor in group.values():
        size = math.ceil(tensor.numel() / world)
        filled = torch.cat(
            [tensor.reshape(-1), torch.full((size * world - tensor.numel(),), torch.nan)]
        )
        for rank, piece in enumerate(filled.split(size)):
            ranks[rank].append(piece)
    return [torch.cat(pieces) for pieces in ranks]


def halved(state: State) -> State:
    return {k: t / 2 for k, t in state.items()}
