"""The full check of a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import torch

from foreact.checkpoints.format import Checkpoint, build, load_checkpoint
from foreact.errors import UserError


def verify(path: Path) -> str:
    """Read all of a checkpoint folder, build its module, and say in lines what it holds.

    Raises:
        UserError: anything is missing, damaged, inconsistent or not finite.
    """
    checkpoint = load_checkpoint(path)
    lines = _verified(checkpoint)
    if checkpoint.tokenizer is None:
        return "\n".join(lines)
    if checkpoint.tokenizer_path is None:
        lines.append(
            f"tokenizer  {checkpoint.tokenizer.family} {checkpoint.tokenizer.hash}, kept elsewhere"
        )
        return "\n".join(lines)
    tokenizer = load_checkpoint(checkpoint.tokenizer_path)
    if tokenizer.hash != checkpoint.tokenizer.hash:
        raise UserError(
            f"{path} embeds the tokenizer {tokenizer.hash}, and its tokenizer.json names another "
            "one; restore it from its source."
        )
    lines += ["tokenizer  embedded", *("  " + line for line in _verified(tokenizer))]
    return "\n".join(lines)


def _verified(checkpoint: Checkpoint) -> list[str]:
    state = checkpoint.state
    broken = [k for k, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise UserError(
            f"{checkpoint.path} holds NaN or infinite values in {', '.join(broken[:3])}; train or "
            "convert it anew."
        )
    build(checkpoint)
    dtypes = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in state.values()}))
    nbytes = sum(t.nbytes for t in state.values())
    lines = [
        f"path       {checkpoint.path}",
        f"family     {checkpoint.family}",
        f"tensors    {len(state)} ({checkpoint.parameters:,} values, {dtypes}, {nbytes / 1e6:.1f} "
        "MB)",
        f"hash       {checkpoint.hash}",
    ]
    if checkpoint.spec is not None:
        cameras = ", ".join(f"{k} {h}x{w}" for k, (h, w) in checkpoint.spec.cameras.items())
        action = checkpoint.spec.action
        names = ", ".join(action.names) if action else "none"
        lines.append(f"spec       {cameras}; {checkpoint.spec.fps:g} fps; actions: {names}")
    if checkpoint.stats is not None:
        lines.append(f"stats      {', '.join(sorted(checkpoint.stats.streams))}")
    if checkpoint.text is not None:
        known = checkpoint.text.known
        lines.append(
            f"text       {len(known.texts)} instructions, {known.dim} features by "
            f"{known.encoder} {known.hash[:19]}"
        )
    return lines
