"""`foreact weights`: list what is installed, convert released files, verify checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from foreact.recipes.tasks import find_task
from foreact.weights import convert as converting
from foreact.weights.format import load_checkpoint
from foreact.weights.shipped import names, resolve, shipped


def list_() -> None:
    """List the weights that come with this installation, with size, hash and what their card says."""
    for name in names():
        checkpoint = load_checkpoint(shipped(name))
        size = sum(p.stat().st_size for p in shipped(name).rglob("*") if p.is_file()) / 1e6
        facts = f"{checkpoint.family:<8}{checkpoint.parameters:>12,} parameters {size:>6.1f} MB"
        print(f"{name:<16}{facts}  {checkpoint.hash[:19]}")
        for key, value in (checkpoint.card or {}).items():
            print(f"{'':<16}{key}: {value}")


def convert(
    src: Path,
    dst: Path,
    task: str | None = None,
    raw: bool = False,
    heads: tuple[int, int] | None = None,
    half: bool = False,
) -> None:
    """Turn a released UVA checkpoint (.ckpt) or KL autoencoder (kl16.ckpt) into our folder.

    The file is read by a restricted unpickler that refuses every global outside an allow-list, and every tensor is
    used or named.

    Args:
        src: the foreign file.
        dst: the folder to write.
        task: what the numbers mean; without it the result can be trained on but cannot act.
        raw: take the raw weights, not their average.
        heads: attention heads of encoder and decoder, for a model of no published size.
        half: store as float16.
    """
    spec = None if task is None else find_task(task).spec
    print(converting.convert(src, dst, spec=spec, ema=not raw, heads=heads, dtype=torch.float16 if half else None))


def verify(weights: str) -> None:
    """Read a checkpoint whole; print counts, sizes and hashes.

    Args:
        weights: a checkpoint folder or a shipped name.
    """
    print(converting.verify(resolve(weights)))
