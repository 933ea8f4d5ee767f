"""Logs of a run on rank 0: log.jsonl, TensorBoard, Weights & Biases and a progress line."""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from foreact.errors import UserError, room_or
from foreact.files import finite
from foreact.progress import Progress, on_terminal
from foreact.train.config import TrainConfig


class Averages:
    """Sums of logged values since the last entry, as plain numbers for checkpoints."""

    def __init__(self, sums: Mapping[str, list[float]] | None = None) -> None:
        self.sums: dict[str, list[float]] = {
            name: list(pair) for name, pair in (sums or {}).items()
        }

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            pair = self.sums.setdefault(name, [0.0, 0])
            pair[0] += value
            pair[1] += 1

    @staticmethod
    def merge(parts: list[dict[str, list[float]]]) -> Averages:
        """Averages over processes; a name may be missing in some (each draws its own task mode)."""
        merged = Averages()
        for part in parts:
            for name, (total, count) in part.items():
                pair = merged.sums.setdefault(name, [0.0, 0])
                pair[0] += total
                pair[1] += count
        return merged

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items()}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Entries of a log.jsonl, oldest first; a last line torn by a kill is left out."""
    if not path.exists():
        return []
    entries = []
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines):
        try:
            if line:
                entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if any(lines[number + 1 :]):
                raise UserError(
                    f"Line {number + 1} of {path} is not JSON; move the file away to go on "
                    "without its history."
                ) from error
    return entries


class Logs:
    """Writes entries of one run to every place that was asked for.

    TensorBoard curves are written where it is installed, unless the config says no.

    Args:
        run_dir: folder of the run; log.jsonl and tensorboard/ lie in it.
        step: optimiser steps already done; entries beyond are dropped, since those steps will be
            done again.
        config: the run's settings; wandb shows them.

    Raises:
        UserError: wandb was asked for and is not installed, or the old log is damaged.
    """

    def __init__(self, run_dir: Path, step: int, config: TrainConfig) -> None:
        self.path = run_dir / "log.jsonl"
        # First: without it the run is refused, and its log stays as it was.
        self._wandb = self._open_wandb(run_dir, config) if config.wandb else None
        try:
            self._truncate(step)
            # No rest to write, and to fail again, at closing.
            self._file = self.path.open("ab", buffering=0)
            self._board = self._open_board(run_dir, step) if config.tensorboard else None
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one entry; values are plain numbers (NaN and infinities are written as null)."""
        line = (json.dumps({"step": step, **finite(values)}) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            raise self._unwritable(error) from error
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            with suppress(OSError):  # a disk that is full has been told of by `write`
                self._board.close()
            threading.excepthook = self._previous_hook
        if self._wandb is not None:
            self._wandb.finish()

    def _unwritable(self, error: OSError) -> UserError:
        remedy = room_or(error, "mend the disk or its rights")
        return UserError(
            f"Writing {self.path} failed ({error.strerror}); {remedy}, then start again to resume."
        )

    def _truncate(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = [json.dumps(e) + "\n" for e in read_log(self.path) if e["step"] <= step]
        temporary = self.path.with_name(".log.jsonl.unfinished")
        try:
            temporary.write_text("".join(kept))
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _open_board(self, run_dir: Path, step: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        self._previous_hook, threading.excepthook = threading.excepthook, self._hear_thread
        return board

    def _hear_thread(self, args: threading.ExceptHookArgs) -> None:
        """Leave out the traceback of TensorBoard's thread on a full disk: `write` raises it too."""
        of_board = type(args.thread).__module__.startswith("tensorboard")
        if not (of_board and issubclass(args.exc_type, OSError)):
            self._previous_hook(args)

    @staticmethod
    def _open_wandb(run_dir: Path, config: TrainConfig) -> Any:
        try:
            wandb: Any = importlib.import_module("wandb")  # by name, for pyright: few have it
        except ImportError as error:
            raise UserError(
                "wandb logging was asked for, but wandb is not installed; run `pip install "
                "foreact[wandb]` or leave the option out."
            ) from error
        identity = run_dir / "wandb_id"
        if not identity.exists():
            identity.write_text(os.urandom(4).hex())
        return wandb.init(
            project=config.wandb,
            name=run_dir.name,
            dir=str(run_dir),
            id=identity.read_text(),
            resume="allow",
            config=config.to_json(),
        )


class Clock:
    """Rate and waiting for data, measured between two log entries; `now` gives seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._readings = 0
        self._all_elapsed = self._all_waited = 0.0
        self._warned = False
        self.reset()

    def reset(self) -> None:
        self._start = self._now()
        self._samples = 0
        self._waited = 0.0

    def leave_out(self, seconds: float) -> None:
        """Do not count time spent on evaluation or saving."""
        self._start += seconds

    def add(self, *, samples: int, waited: float) -> None:
        self._samples += samples
        self._waited += waited

    def read(self) -> dict[str, float]:
        """Samples per second and share of time spent on data since the last reading; resets.

        Warns once when the wait exceeds a tenth of at least ten seconds; loaders start in the first
        reading, so it does not count.
        """
        elapsed = max(self._now() - self._start, 1e-9)
        out = {"samples_per_s": self._samples / elapsed, "data_wait": self._waited / elapsed}
        self._readings += 1
        if self._readings > 1:
            self._all_elapsed += elapsed
            self._all_waited += self._waited
        if (
            not self._warned
            and self._all_elapsed >= 10.0
            and self._all_waited > 0.1 * self._all_elapsed
        ):
            self._warned = True
            warnings.warn(
                f"Training waits for data {self._all_waited / self._all_elapsed:.0%} of the time; "
                "raise --train.workers, or store latents instead of video.",
                stacklevel=2,
            )
        self.reset()
        return out


class ProgressLine:
    """A bar on a terminal, else one plain line per log entry."""

    def __init__(self, *, start: int, total: int, shown: bool) -> None:
        self._live = shown and on_terminal()
        self._plain = shown and not self._live
        self._began, self._first, self._total = time.perf_counter(), start, total
        self._bar = Progress(
            total=total,
            initial=start,
            disable=not self._live,
            unit="step",
        )

    def advance(self) -> None:
        self._bar.update()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        words = f"loss {values['loss']:.4f}  " if "loss" in values else ""
        words += f"{values['samples_per_s']:.1f} samples/s  data wait {values['data_wait']:.0%}"
        if self._live:
            self._bar.set_postfix_str(words)
        elif self._plain:
            done = max(step - self._first, 1)
            left = (time.perf_counter() - self._began) / done * (self._total - step)
            print(
                f"step {step}/{self._total}  {words}  {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """One line that does not disturb the bar."""
        if self._live:
            self._bar.write(text)
        elif self._plain:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()
