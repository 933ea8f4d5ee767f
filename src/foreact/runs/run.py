"""A run: its folder with its fully resolved config, where it computes, and what it says."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from foreact.checkpoints.configs import config_to_json, read_json
from foreact.errors import UserError
from foreact.machine import choose_precision, cores, explain_precision
from foreact.train.config import TrainConfig


class Run(Protocol):
    """What every run of training has; it is a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path: ...
    @property
    def train(self) -> TrainConfig: ...


R = TypeVar("R", bound=Run)


def open_run(run: R, device: torch.device, *, free: Sequence[str] = ()) -> R:
    """Create the run's folder with `config.json`; in an existing one check it is the same run.

    Args:
        run: as asked for.
        device: where it trains, which decides what precision "auto" means.
        free: top-level entries that a resumed run may change (the loop checks its own config
            itself).

    Returns:
        The run as written, with the precision that it trains in.
    """
    folder, path = run.out, run.out / "config.json"
    before = read_json(path) if path.exists() else None
    run = dataclasses.replace(
        run, train=run.train.with_precision(device, (before or {}).get("train"))
    )
    raw = config_to_json(run)
    if before is not None:
        for name, value in raw.items():
            if name not in free and before.get(name) != value:
                entry, old, new = _first_difference(name, before.get(name), value)
                raise UserError(
                    f"{folder} holds a run with {entry} = {old}, now it is {new}; give another "
                    f"--out, or resume it with --from {folder}."
                )
    if is_main_process():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, raw)
        except OSError as error:
            raise UserError(
                f"The run folder {folder} cannot be written ({error.strerror}); choose another "
                "--out."
            ) from None
    return run


def resources(train: TrainConfig, device: torch.device) -> dict[str, Any]:
    """What a run computes on, for `say`."""
    precision = choose_precision(train.precision, device)
    return {
        "device": device
        if device.type == "cuda"
        else f"{device}, {torch.get_num_threads()} threads",
        "precision": explain_precision(precision, device),
        "workers": f"{train.loader_processes(device)} loader processes",
    }


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Dotted name and values of the first entry in which two unequal JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *old]:
            if old.get(key) != new.get(key):
                return _first_difference(f"{name}.{key}", old.get(key), new.get(key))
    return name, old, new


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def is_main_process() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pick_device(name: str | None) -> torch.device:
    """The named device, else CUDA if available, else the CPU; limits torch to usable cores."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        # Torch counts the machine's cores, of which a container may grant fewer.
        torch.set_num_threads(cores())
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"Device '{name}' was asked for, but torch sees no CUDA device; use --device cpu."
        )
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(
            f"There is no device '{name}'; give cpu, cuda or cuda:1 and the like."
        ) from None


def say(title: str, **facts: Any) -> None:
    """Print what was resolved before the work starts, on one process."""
    if is_main_process():
        print(title)
        for name, value in facts.items():
            print(f"  {name:<12} {value}")
