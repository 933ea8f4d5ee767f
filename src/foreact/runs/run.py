"""A run: its folder with its fully resolved config, where it computes, and what it says."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from foreact.checkpoints.configs import config_to_json, read_json
from foreact.errors import UserError
from foreact.files import write_json
from foreact.machine import choose_precision, cores, explain_precision
from foreact.runs.inputs import FILE as INPUTS
from foreact.runs.inputs import Inputs
from foreact.train.checkpoint import newest_record, require_same_training
from foreact.train.config import TrainConfig, first_difference


class Run(Protocol):
    """What every run of training has; it is a dataclass.

    Attributes:
        free_on_resume: top-level entries that a resumed run may change ("train": the training loop
            checks it entry by entry).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    free_on_resume: ClassVar[tuple[str, ...]]

    @property
    def out(self) -> Path: ...
    @property
    def train(self) -> TrainConfig: ...


R = TypeVar("R", bound=Run)


BY_CONTENT = ("data", "tokenizer", "init", "video", "teacher", "lpips")
"""Options that name files: what is in them is compared, by `Inputs`, and not where they lie.

Of options that are groups, such as the driving models' --data.sources, only paths count as such.
"""


def check_run(run: R, device: torch.device) -> R:
    """Check that the run's folder is new or holds this very run; nothing is written.

    Args:
        run: as asked for.
        device: where it trains, which decides what precision "auto" means.

    Returns:
        The run with the precision that it trains in.

    Raises:
        UserError: the folder holds another run, or this one has done all these steps.
    """
    before = _written(run.out)
    run = dataclasses.replace(
        run, train=run.train.with_precision(device, (before or {}).get("train"))
    )
    _require_same(run, before)
    if (record := newest_record(run.out)) is not None:
        require_same_training(run.out, record, run.train, process_count())
    return run


def write_run(run: Run, inputs: Inputs) -> None:
    """Write down what the run is, once: by the first process, which holds the folder's lock.

    Raises:
        UserError: another start has made it another run's folder meanwhile, or the disk refuses.
    """
    _require_same(run, _written(run.out))
    inputs.require_unchanged()
    try:
        write_json(run.out / INPUTS, inputs.to_json())
        write_json(run.out / "config.json", config_to_json(run))
    except OSError as error:
        raise UserError(
            f"The run folder {run.out} cannot be written ({error.strerror}); choose another --out."
        ) from None


def _written(folder: Path) -> dict[str, Any] | None:
    """config.json of a run's folder, where there is one."""
    path = folder / "config.json"
    return read_json(path) if path.exists() else None


def _require_same(run: Run, before: dict[str, Any] | None) -> None:
    if before is None:
        return
    before = _without_paths(before)
    for name, value in _without_paths(config_to_json(run)).items():
        if name not in run.free_on_resume and before.get(name) != value:
            entry, old, new = first_difference(name, before.get(name), value)
            raise UserError(
                f"{run.out} holds a run with --{entry.replace('_', '-')} {old}, now it is {new}; "
                f"give another --out, or resume it with --from {run.out}."
            )


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config that do not name files which `Inputs` compares."""
    kept = {
        name: value
        for name, value in config.items()
        if name not in BY_CONTENT or isinstance(value, Mapping)
    }
    if isinstance(data := kept.get("data"), Mapping):
        names = ("sources", "val_sources", "only")
        kept["data"] = {name: value for name, value in data.items() if name not in names}
    return kept


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
