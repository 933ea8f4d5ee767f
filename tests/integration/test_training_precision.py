"""The precision of a run: chosen when it begins, written down, kept when it goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from support.training_toy import config, run

from foreact import machine
from foreact.machine import BFloat16
from foreact.runs.inputs import Inputs
from foreact.runs.run import check_run, resources, write_run
from foreact.train.config import TrainConfig

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ToyRun:
    free_on_resume: ClassVar[tuple[str, ...]] = ("train",)

    out: Path
    train: TrainConfig


def prefer(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = BFloat16(possible=True, fast=precision == "bf16", why=f"{precision} is fast here")
    monkeypatch.setattr(machine, "bfloat16", lambda device, work="batches": found)


def recorded(folder: Path, step: int) -> str:
    record = json.loads((folder / "checkpoints" / f"step-{step:08d}" / "train.json").read_text())
    return record["config"]["precision"]


def test_the_loop_chooses_records_and_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer("bf16", monkeypatch)
    run(tmp_path, steps=2, precision="auto")
    assert recorded(tmp_path, 2) == "bf16"
    prefer("fp32", monkeypatch)
    run(tmp_path, steps=4, precision="auto")
    assert recorded(tmp_path, 4) == "bf16"
    run(tmp_path, steps=6, precision="fp32")
    assert recorded(tmp_path, 6) == "fp32"


def test_auto_on_a_fast_machine_is_bf16_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer("bf16", monkeypatch)
    weights = {}
    for precision in ("auto", "bf16", "fp32"):
        result = run(tmp_path / precision, steps=2, precision=precision)
        assert result.weights is not None
        weights[precision] = torch.load(result.weights / "weights.pt", weights_only=True)[
            "body.weight"
        ]
    assert torch.equal(weights["auto"], weights["bf16"])
    assert not torch.equal(weights["auto"], weights["fp32"])


def test_a_runs_config_says_the_precision_that_it_trains_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ToyRun(out=tmp_path / "run", train=config(precision="auto"))
    prefer("bf16", monkeypatch)
    written = check_run(asked, CPU)
    assert not asked.out.exists()
    asked.out.mkdir()
    write_run(written, Inputs(None, seed=0))
    assert written.train.precision == "bf16"
    assert json.loads((asked.out / "config.json").read_text())["train"]["precision"] == "bf16"
    assert resources(written.train, CPU)["precision"] == "bf16 (bf16 is fast here)"
    prefer("fp32", monkeypatch)
    assert check_run(asked, CPU).train.precision == "bf16"
    fp32 = ToyRun(asked.out, config(precision="fp32"))
    assert check_run(fp32, CPU).train.precision == "fp32"
