"""Options of the schedule that follow from others of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreact.checkpoints.configs import read_json
from foreact.runs.words import option_value
from foreact.train.config import TrainConfig, spelled

KEPT = ("schedule", "warmup", "drop", "schedule_steps")
"""What a run that is there already keeps, unless the command line says otherwise."""


def implied_options(run: Any, args: Sequence[str]) -> list[str]:
    """Options to read beside those of the command line, so that the schedule fits the steps.

    With fewer steps than the recipe's, warm-up and drop are shortened in proportion; what the
    command line says stands, and the others make room for it. A run that is there already keeps its
    own schedule.

    Args:
        run: the defaults, a dataclass.
        args: command line after the verb.

    Returns:
        Words, none of them for an option that the command line gives.

    Raises:
        UserError: the configuration of the run that is there cannot be read.
    """
    train = getattr(run, "train", None)
    if not isinstance(train, TrainConfig):
        return []
    given = {
        name: value for name in ("steps", *KEPT) if (value := _setting(args, name)) is not None
    }
    config = Path(option_value(args, "--out") or run.out) / "config.json"
    if config.is_file():
        settings = read_json(config).get("train", {})
        implied = {name: settings[name] for name in KEPT if name in settings}
    else:
        implied = _fitting(train, given)
    return [
        word
        for name, value in implied.items()
        if name not in given and value != getattr(train, name)
        for word in (spelled(name), str(value))
    ]


def _fitting(train: TrainConfig, given: Mapping[str, str]) -> dict[str, int | None]:
    """Warm-up, drop and length of a schedule that differs from the recipe's as given."""
    numbers = {name: int(word) for name, word in given.items() if word.isdecimal()}
    steps, recipe_length = numbers.get("steps", train.steps), train.schedule_steps or train.steps
    length = numbers.get("schedule_steps", round(recipe_length * steps / train.steps))
    share = min(1.0, length / recipe_length)
    warmup = numbers.get("warmup", round(share * train.warmup))
    drop = numbers.get("drop", round(share * train.drop))
    if given.get("schedule", train.schedule) != "wsd":
        drop = 0
    elif "drop" not in given:
        drop = min(drop, max(0, steps - warmup))
    if "warmup" not in given:
        warmup = min(warmup, max(0, steps - drop))
    return {
        "warmup": warmup,
        "drop": drop,
        "schedule_steps": None if train.schedule_steps is None else length,
    }


def _setting(args: Sequence[str], name: str) -> str | None:
    """The raw value of a training setting, spelt with dashes or underscores."""
    value = option_value(args, spelled(name))
    return value if value is not None else option_value(args, f"--train.{name}")
