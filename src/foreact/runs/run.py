"""A run: its folder, its fully resolved config (parsed from the command line, written, compared), and its training."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import tyro
from torch import nn

from foreact.checkpoints.configs import config_from_json, config_to_json, read_json
from foreact.checkpoints.format import load_checkpoint, save_checkpoint
from foreact.data.windows.loader import Windows, batches
from foreact.errors import UserError
from foreact.machine import choose_precision, cores, explain_precision
from foreact.train.checkpoint import Export
from foreact.train.config import TrainConfig
from foreact.train.evaluation import Evaluator
from foreact.train.loop import Prepare, TrainResult, train
from foreact.types import Batch

T = TypeVar("T")


class Run(Protocol):
    """What every run of training has; it is a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path: ...
    @property
    def train(self) -> TrainConfig: ...


R = TypeVar("R", bound=Run)


def parse_run(
    cls: type[T], args: Sequence[str], *, prog: str, recipe: Callable[[dict[str, str]], T], choices: Sequence[str]
) -> T:
    """The run that the command line asks for.

    Args:
        cls: dataclass of the run.
        args: command line after the verb.
        prog: verb, for --help.
        recipe: defaults for the values of `choices`, such as the task, which decide all others.
        choices: options that are read first, because the defaults of all others depend on them.
    """
    chosen, rest = _take({*choices, "from"}, args)
    if "from" in chosen:
        folder = Path(chosen.pop("from"))
        if not (folder / "config.json").is_file():
            raise UserError(f"--from expects the folder of an earlier run; {folder} holds no config.json.")
        default = config_from_json(cls, read_json(folder / "config.json"), where=str(folder / "config.json"))
        default = dataclasses.replace(default, out=folder)  # pyright: ignore[reportArgumentType]
        rest = [*rest, *(word for name, value in chosen.items() for word in (f"--{name}", value))]
    else:
        default = recipe(chosen)
    about = (
        f"{cls.__doc__}\n\n--from FOLDER goes on with the run in that folder, with its configuration as the defaults."
    )
    return tyro.cli(cls, prog=prog, args=rest, default=default, description=about)


def _take(names: set[str], args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split `--name value` and `--name=value` for the given names from the other arguments."""
    found: dict[str, str] = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in names:
            value = value if equals else next(words, None)
            if value is None:
                raise UserError(f"--{name} needs a value.")
            found[name] = value
        else:
            rest.append(word)
    return found, rest


def open_run(run: R, device: torch.device, *, free: Sequence[str] = ()) -> R:
    """Create the run's folder and write `config.json`; in an existing one check that it is the same run.

    Args:
        run: as asked for.
        device: where it trains, which decides what precision "auto" means.
        free: top-level entries that a resumed run may change (the loop checks its own config itself).

    Returns:
        The run as written, with the precision that it trains in.
    """
    folder, path = run.out, run.out / "config.json"
    before = read_json(path) if path.exists() else None
    run = dataclasses.replace(run, train=run.train.with_precision(device, (before or {}).get("train")))
    raw = config_to_json(run)
    if before is not None:
        for name, value in raw.items():
            if name not in free and before.get(name) != value:
                entry, old, new = _first_difference(name, before.get(name), value)
                raise UserError(
                    f"{folder} holds a run with {entry} = {old}, now it is {new}; give another --out, "
                    f"or resume it with --from {folder}."
                )
    if is_main_process():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, raw)
        except OSError as error:
            raise UserError(
                f"The run folder {folder} cannot be written ({error.strerror}); choose another --out."
            ) from None
    return run


def resources(train: TrainConfig, device: torch.device) -> dict[str, Any]:
    """What a run computes on, for `say`."""
    precision = choose_precision(train.precision, device)
    return {
        "device": device if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads",
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
    """The named device, or CUDA where there is one, else the CPU, on which torch keeps to the cores it may use."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())  # torch counts the cores of the machine, a container may grant fewer
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"Device '{name}' was asked for, but torch sees no CUDA device; use --device cpu.")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"There is no device '{name}'; give cpu, cuda or cuda:1 and the like.") from None


def say(title: str, **facts: Any) -> None:
    """Print what was resolved before the work starts, on one process."""
    if is_main_process():
        print(title)
        for name, value in facts.items():
            print(f"  {name:<12} {value}")


def train_on(
    windows: Windows,
    model: nn.Module,
    run: Run,
    *,
    verb: str,
    evaluators: Sequence[Evaluator],
    export: Export,
    device: torch.device,
    prepare: Prepare | None = None,
) -> TrainResult:
    """Train on windows, in the order that the run's seed decides; see `foreact.train.loop.train`.

    An interruption ends the program with the line that says how to go on.

    Args:
        windows: what to learn from.
        model: trained in place.
        run: where and how.
        verb: of the command line, such as "train vq".
        evaluators, export, device, prepare: as in `train`.
    """

    def micro_batches(start: int, rank: int, world: int) -> Iterator[Batch]:
        return batches(
            windows, batch_size=run.train.batch_size, seed=run.train.seed, workers=run.train.loader_processes(device),
            start=start, rank=rank, world=world,
        )  # fmt: skip

    result = train(
        model, micro_batches, run.train, run.out, prepare=prepare, evaluators=evaluators, export=export, device=device
    )
    conclude(result, f"foreact {verb} --from {run.out}")
    return result


def publish(run: Run, result: TrainResult, *, family: str, config: Any, card: Mapping[str, Any]) -> Path:
    """Write the newest exported weights, with what was measured, as `run.out/weights`; returns that folder.

    Args:
        run: where.
        result: of its training, with exported weights.
        family: name in `FAMILIES`.
        config: of the module.
        card: provenance; the steps and the last metrics are added.
    """
    final = run.out / "weights"
    assert result.weights is not None
    if is_main_process():
        trained = load_checkpoint(result.weights)
        facts = {"steps": result.step, **result.metrics}
        digest = save_checkpoint(
            final, family=family, config=config, state=trained.state, spec=trained.spec, stats=trained.stats,
            card={**card, **facts},
        )  # fmt: skip
        say("Done", weights=final, hash=digest, **facts)
    return final


def conclude(result: TrainResult, resume: str) -> None:
    """After a training: exit as an interrupted program does, with the line that says how to go on."""
    if result.interrupted:
        if is_main_process():
            print(f"Stopped after step {result.step}; everything is saved. Go on with: {resume}")
        raise SystemExit(130)
