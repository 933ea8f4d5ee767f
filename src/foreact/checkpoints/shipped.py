"""Checkpoints inside the package, and how a name or path given by the user is resolved."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from foreact.errors import UserError, did_you_mean

STATE = "model.safetensors"
ROOT = Path(str(files("foreact.checkpoints"))) / "shipped_weights"


def names() -> list[str]:
    """Names of the shipped checkpoints, sorted."""
    if not ROOT.is_dir():
        return []
    return sorted(p.name for p in ROOT.iterdir() if (p / "config.json").is_file())


def shipped(name: str) -> Path:
    """Folder of a shipped checkpoint.

    Raises:
        UserError: there is none of that name.
    """
    if name not in names():
        raise UserError(f"No shipped checkpoint is called '{name}'{did_you_mean(name, names())}")
    return ROOT / name


def resolve(ref: str | Path) -> Path:
    """A checkpoint folder from a path or the name of a shipped checkpoint; a path that exists wins.

    The folder of a run stands for its finished weights.

    Raises:
        UserError: it is neither, or a run without finished weights.
    """
    path = Path(ref).expanduser()
    if (path / "config.json").is_file():
        return path / "weights" if _is_run(path) else path
    if str(ref) in names():
        return ROOT / str(ref)
    if path.exists():
        raise UserError(
            f"{path} holds no config.json, so it is no checkpoint; convert foreign files first."
        )
    raise UserError(
        f"'{ref}' is neither a checkpoint folder nor a shipped "
        f"checkpoint{did_you_mean(str(ref), names())}"
    )


def _is_run(folder: Path) -> bool:
    """Whether the folder is that of a run with finished weights.

    Raises:
        UserError: of a run without them.
    """
    if (folder / "weights" / "config.json").is_file():
        return not (folder / STATE).is_file()
    if (folder / STATE).is_file() or not (folder / "checkpoints").is_dir():
        return False
    steps = sorted(folder.glob("checkpoints/step-*/weights/config.json"))
    newest = f"name {steps[-1].parent}, or " if steps else ""
    raise UserError(
        f"{folder} is a run without finished weights; {newest}let the run end (--from {folder})."
    )
