"""The two projects whose image tokenizers with a codebook are ours: LlamaGen and taming."""

from __future__ import annotations

from pathlib import Path

from foreact.checkpoints.format import load_checkpoint
from foreact.families.codes.released import llamagen, taming

LAYOUTS = (llamagen.LAYOUT, taming.LAYOUT)


def write(path: Path, out: Path) -> str:
    """Write a checkpoint folder as the project reads it whose kind of codes it has."""
    checkpoint = load_checkpoint(path, of="vq")
    write_file = llamagen.write_llamagen if checkpoint.config["normalized"] else taming.write_taming
    write_file(out, checkpoint.state)
    return f"wrote {out}"
