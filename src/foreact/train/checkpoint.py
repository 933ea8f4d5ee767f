"""Checkpoints of a run: whole or absent on disk, newest and best kept, exact restore.

    run/checkpoints/step-00000123/   model, optimiser and average (DCP), rng-<rank>.pt,
                                     weights/ (where the caller exports), train.json (written last)

A folder is built under a hidden name, synced and renamed; whatever a kill leaves behind is hidden,
and swept at the next start. These files are for resuming one's own run (they hold pickles);
`weights/` is for sharing.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from foreact.errors import UserError, room_or
from foreact.train.config import TrainConfig, same_rates
from foreact.train.ema import EMA
from foreact.train.parallel import World
from foreact.train.rng import rng_state, set_rng_state

Export = Callable[[dict[str, Tensor], Path], None]
STEP_FOLDER = re.compile(r"step-(\d{8,})")
HIDDEN = ".unfinished-"


@dataclass
class BestTable:
    """The k best steps so far by one metric; a tie does not replace (the reference's rule).

    Attributes:
        k: how many to keep.
        mode: whether more or less is better.
        entries: (step, value), in the order they came.
    """

    k: int
    mode: Literal["max", "min"]
    entries: list[tuple[int, float]] = field(default_factory=list)

    def offer(self, step: int, value: float) -> bool:
        """Add a finite `value` if it is among the k best; returns whether it was added."""
        if self.k == 0 or not math.isfinite(value):
            return False
        if len(self.entries) >= self.k:
            ranked = sorted(self.entries, key=lambda e: e[1])
            worst = ranked[0] if self.mode == "max" else ranked[-1]
            if not (value > worst[1] if self.mode == "max" else value < worst[1]):
                return False
            self.entries.remove(worst)
        self.entries.append((step, value))
        return True

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.entries]

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, value) of the single best entry; the earlier one of equals."""
        if not self.entries:
            return None
        return (max if self.mode == "max" else min)(self.entries, key=lambda e: e[1])


class Checkpoints:
    """The folder `run/checkpoints` as one process group sees it."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder = folder
        self.world = world

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        matches = (
            STEP_FOLDER.fullmatch(p.parent.name) for p in self.folder.glob("step-*/train.json")
        )
        return sorted(int(m.group(1)) for m in matches if m)

    def newest_of(self, config: TrainConfig) -> int:
        """The newest checkpoint to go on from with a config.

        Where the learning rate has dropped (schedule wsd) and more steps are wanted now, that is
        one from before the drop, which a longer run would have too.
        """
        newest, *earlier = reversed(self.steps())
        saved = self.record(newest)["config"]
        before_drop = saved["steps"] - saved["drop"]
        if saved["schedule"] == "wsd" and not same_rates(saved, config, newest):
            for step in earlier:
                if step >= before_drop and same_rates(saved, config, step):
                    return step
        return newest

    def sweep(self) -> None:
        """Remove leftovers of an interrupted save or deletion; needs to be the only writer."""
        for leftover in self.folder.glob(f"{HIDDEN}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def save(
        self,
        step: int,
        state: dict[str, Any],
        record: dict[str, Any],
        *,
        weights: Callable[[], dict[str, Tensor]],
        export: Export | None,
    ) -> Path:
        """Write one checkpoint; every process calls it.

        Args:
            step: optimiser steps done.
            state: tensors, as from `capture`.
            record: JSON-able content of train.json.
            weights: gives the weights to export, on rank 0; called by every process if there is an
                `export`.
            export: writes them into the folder it is given.

        Returns:
            The checkpoint's folder, whole and synced.

        Raises:
            UserError: the disk refused; earlier checkpoints are untouched.
        """
        final, temporary = self.path(step), self.folder / f"{HIDDEN}{self.path(step).name}"

        def prepare() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()

        def tensors() -> None:
            _dcp_save(state, temporary, self.world)
            # Through memory: torch's own file writer does not report a full disk as an OSError.
            buffer = io.BytesIO()
            torch.save(rng_state(), buffer)
            (temporary / f"rng-{self.world.rank:05d}.pt").write_bytes(buffer.getvalue())

        def finish() -> None:
            if export is not None:
                export(exported, temporary / "weights")
            write_record(temporary, record)
            sync_tree(temporary)
            if final.exists():
                self.remove(step)
            os.replace(temporary, final)
            sync(self.folder)

        try:
            self._together(prepare, only_main=True)
            self._together(tensors)
            exported = {} if export is None else weights()
            self._together(finish, only_main=True)
        except Exception:
            if self.world.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return final

    def remove(self, step: int) -> None:
        """Delete a checkpoint; a kill in between leaves no partial one under its name."""
        doomed = self.folder / f"{HIDDEN}old-{self.path(step).name}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(self.path(step), doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def prune(self, keep: int, protected: list[int]) -> None:
        """Delete all but the `keep` newest and the protected steps; on rank 0."""
        for step in self.steps()[:-keep]:
            if step not in protected:
                self.remove(step)

    def record(self, step: int) -> dict[str, Any]:
        """train.json of a whole checkpoint; a `UserError` where it is damaged."""
        try:
            record = json.loads((self.path(step) / "train.json").read_text())
            return {**record, "step": int(record["step"]), "config": dict(record["config"])}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise unreadable(self.path(step), error) from None

    def rewrite_record(self, step: int, record: dict[str, Any]) -> None:
        """Replace train.json of a whole checkpoint; every process calls it."""
        self._together(lambda: write_record(self.path(step), record), only_main=True)

    def load(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA | None
    ) -> None:
        """Restore model, optimiser, average and the process's global generators in place.

        Raises:
            UserError: the checkpoint is damaged, or is one of another model.
        """
        folder = self.path(step)
        state = capture(model, optimizer, ema)
        self._read(folder, state)
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
        if ema is not None:
            ema.load(state["ema"], int(state["ema_step"]))
        generators = folder / f"rng-{self.world.rank:05d}.pt"
        # A process that was not there when the checkpoint was written has none.
        if generators.exists():
            set_rng_state(torch.load(generators, weights_only=True))

    def load_start(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load a checkpoint's weights into `model` and moments into `optimizer`, for a new run.

        The optimiser's groups keep their settings (learning rates, weight decay).

        Raises:
            UserError: the checkpoint is damaged, or is one of another model or of other trainable
                parameters.
        """
        groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
        state = capture(model, optimizer, None)
        del state["optimizer"]["param_groups"]
        self._read(self.path(step), state)
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, {**state["optimizer"], "param_groups": groups})

    def _read(self, folder: Path, state: dict[str, Any]) -> None:
        """Fill `state` (see `capture`) from a checkpoint of any number of processes."""
        self._require_same_structure(folder, state)
        try:
            with single_process_is_meant():
                state_dict_loader.load(
                    state,
                    checkpoint_id=folder,
                    process_group=self.world.control,
                    no_dist=self.world.size == 1,
                )
        except CheckpointException as error:
            raise unreadable(folder, _first(error)) from error

    def _require_same_structure(self, folder: Path, state: dict[str, Any]) -> None:
        try:
            metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
        except (OSError, EOFError, ValueError) as error:
            raise unreadable(folder, error) from error
        saved = {
            name: tuple(m.size)
            for name, m in metadata.items()
            if isinstance(m, TensorStorageMetadata)
        }
        expected = {
            f"model.{name}": tuple(t.shape)
            for name, t in state["model"].items()
            if isinstance(t, Tensor)
        }
        for name in sorted({n for n in saved if n.startswith("model.")} | set(expected)):
            if saved.get(name) != expected.get(name):
                raise UserError(
                    f"The checkpoint {folder} is of another model: "
                    f"'{name.removeprefix('model.')}' has shape {saved.get(name, 'none')} there "
                    f"and {expected.get(name, 'none')} here; use the configuration of that run, or "
                    "a new run folder."
                )
        # A parameter is trained where AdamW keeps a first moment of it.
        prefix, suffix = "optimizer.state.", ".exp_avg"
        saved_moments = {n for n in saved if n.startswith(prefix) and n.endswith(suffix)}
        own_moments = {f"{prefix}{name}{suffix}" for name in state["optimizer"]["state"]}
        for name in sorted(saved_moments ^ own_moments):
            frozen, trained = ("here", "there") if name in saved_moments else ("there", "here")
            raise UserError(
                f"'{name.removeprefix(prefix).removesuffix(suffix)}' is trained {trained} and "
                f"frozen {frozen} ({folder} is there); train the same parameters, or start from "
                "its weights alone."
            )

    def _together(self, action: Callable[[], None], *, only_main: bool = False) -> None:
        """Run `action`; a disk error on any process raises the same `UserError` on all."""
        failure: tuple[bool, str, str] | None = None  # whether the disk said why
        if not only_main or self.world.rank == 0:
            try:
                action()
            except OSError as error:
                remedy = room_or(error, "mend the disk or its rights")
                failure = True, f"{error.strerror or error}", remedy
            except (UserError, UnwrittenError) as error:  # must reach the other processes too
                failure = False, str(error).removesuffix("."), "see to that"
        failures = [f for f in self.world.gather(failure) if f is not None]
        if failures:
            # A process whose own file is whole only knows that another one's is not.
            _, why, remedy = max(failures, key=lambda f: f[0])
            raise UserError(
                f"Saving a checkpoint in {self.folder} failed ({why}); earlier checkpoints are "
                f"whole: {remedy}, then start again to resume."
            )


def require_same_training(
    run_dir: Path, record: dict[str, Any], config: TrainConfig, world: int
) -> None:
    """Check that the run of a checkpoint may go on with these settings.

    Args:
        run_dir: folder of the run.
        record: train.json of its newest checkpoint.
        config: the settings now.
        world: number of processes now.

    Raises:
        UserError: a setting that changes the mathematics differs, or the steps are done already.
    """
    config.require_resumable(record["config"], world=world, saved_world=record["world"])
    if config.steps < record["step"]:
        raise UserError(
            f"{run_dir} has done {record['step']} steps, but --train.steps is {config.steps}; "
            "raise it."
        )


def newest_record(run_dir: Path) -> dict[str, Any] | None:
    """train.json of a run's newest checkpoint; None: there is no checkpoint."""
    checkpoints = Checkpoints(run_dir / "checkpoints", World())
    steps = checkpoints.steps()
    return checkpoints.record(steps[-1]) if steps else None


def find_checkpoint(path: Path) -> tuple[Path, int] | None:
    """(checkpoint folder, step) for `path`: a checkpoint, or a run, whose newest is taken."""
    if (match := STEP_FOLDER.fullmatch(path.name)) and (path / "train.json").is_file():
        return path.parent, int(match.group(1))
    steps = Checkpoints(path / "checkpoints", World()).steps()
    return (path / "checkpoints", steps[-1]) if steps else None


def write_start(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    moments: dict[str, dict[str, Tensor]],
    record: dict[str, Any],
) -> Path:
    """Write a checkpoint for other runs to start from, of a training that was not ours.

    Args:
        folder: of the checkpoints.
        step: optimiser steps done.
        model: with its weights.
        optimizer: over the parameters that were trained.
        moments: parameter name -> AdamW's state as torch calls it.
        record: JSON-able content of train.json.

    Returns:
        The checkpoint's folder.
    """
    groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
    trained: dict[str, Any] = {"state": moments, "param_groups": groups}
    set_optimizer_state_dict(model, optimizer, trained)
    state = capture(model, optimizer, None)
    return Checkpoints(folder, World()).save(step, state, record, weights=dict, export=None)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    temporary = folder / ".train.json.unfinished"
    try:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        sync(temporary)
        os.replace(temporary, folder / "train.json")
    finally:
        temporary.unlink(missing_ok=True)


def unreadable(folder: Path, why: BaseException) -> UserError:
    first_line = (str(why) or type(why).__name__).splitlines()[0]
    return UserError(
        f"The checkpoint {folder} cannot be read ({first_line}); delete it to go on "
        "from an earlier one."
    )


def capture(model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA | None) -> dict[str, Any]:
    """Tensors by parameter name, also sharded ones, for torch.distributed.checkpoint."""
    state: dict[str, Any] = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    if ema is not None:
        state["ema"] = dict(ema.shadow)
        state["ema_step"] = torch.tensor(ema.step)
    return state


@contextmanager
def single_process_is_meant() -> Iterator[None]:
    """Without torch's notice, at every save, that there are no other processes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _dcp_save(state: dict[str, Any], folder: Path, world: World) -> None:
    try:
        with single_process_is_meant():
            state_dict_saver.save(
                state, checkpoint_id=folder, process_group=world.control, no_dist=world.size == 1
            )
    except CheckpointException as error:
        # Torch wraps errors of any rank; a full disk or Ctrl-C should be raised as itself.
        first = _first(error)
        if not isinstance(first, RuntimeError):
            raise first from error
        # Its writer of archives says "unexpected pos" where the disk refused a tensor.
        _try_to_write_on(folder)
        raise UnwrittenError(str(first).strip().splitlines()[0]) from error


class UnwrittenError(RuntimeError):
    """Torch could not write, and the disk does not say why."""


def _try_to_write_on(folder: Path) -> None:
    """Lengthen what was written last by a mebibyte; raises the disk's own `OSError`."""
    files = sorted(folder.glob("*.distcp"), key=lambda path: path.stat().st_mtime_ns)
    with open(files[-1] if files else folder / "probe", "ab") as file:
        file.write(bytes(2**20))
        file.flush()
        os.fsync(file.fileno())


def _first(error: CheckpointException) -> BaseException:
    causes = [cause for cause, _ in error.failures.values()]
    for kind in (KeyboardInterrupt, OSError):
        for cause in causes:
            if isinstance(cause, kind):
                return cause
    return causes[0] if causes else RuntimeError(str(error))


def sync(path: Path) -> None:
    """Make a file's bytes or a folder's names survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
