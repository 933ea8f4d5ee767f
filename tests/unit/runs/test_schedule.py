"""Any quick try works: what the command line leaves open of a schedule fits its steps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foreact.runs.schedule import implied_options
from foreact.train.config import TrainConfig

WSD = TrainConfig(steps=1000, schedule="wsd", warmup=50, drop=200)
STRETCHED = TrainConfig(steps=500, schedule_steps=1000, warmup=50)


def implied(train: TrainConfig, words: str, out: Path = Path("nowhere")) -> dict[str, str]:
    options = implied_options(SimpleNamespace(train=train, out=out), words.split())
    return {
        name.removeprefix("--train."): value
        for name, value in zip(options[::2], options[1::2], strict=True)
    }


@pytest.mark.parametrize(
    ("train", "words", "expected"),
    [
        (WSD, "", {}),
        (WSD, "--train.steps 5000", {}),
        (WSD, "--train.steps 50", {"warmup": "2", "drop": "10"}),
        (WSD, "--train.steps=3", {"warmup": "0", "drop": "1"}),
        (WSD, "--train.steps 50 --train.warmup 45", {"drop": "5"}),
        (WSD, "--train.warmup 900", {"drop": "100"}),
        (WSD, "--train.drop 980", {"warmup": "20"}),
        (WSD, "--train.schedule cosine", {"drop": "0"}),
        (WSD, "--train.steps 50 --train.warmup 60 --train.drop 0", {}),  # refused where it is read
        (WSD, "--train.steps many", {}),
        (STRETCHED, "--train.steps 50", {"warmup": "5", "schedule-steps": "100"}),
        (STRETCHED, "--train.steps 2000", {"schedule-steps": "4000"}),
        (STRETCHED, "--train.steps 20 --train.schedule_steps 200", {"warmup": "10"}),
    ],
)
def test_what_is_not_given_fits_what_is(
    train: TrainConfig, words: str, expected: dict[str, str]
) -> None:
    assert implied(train, words) == expected


def test_a_run_that_is_there_keeps_its_schedule(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"warmup": 2, "drop": 10, "schedule": "wsd", "schedule_steps": None}
    (tmp_path / "config.json").write_text(json.dumps({"train": settings}))
    words = f"--train.steps 900 --out {tmp_path}"
    assert implied(WSD, words) == {"warmup": "2", "drop": "10"}
    assert implied(WSD, "--train.drop 20", tmp_path) == {"warmup": "2"}
