"""`benchmarks/precision.py`: every family learns, and the table says what was measured."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "precision.py"
FAMILIES = ("uva", "vavim", "vavam", "voc", "bc", "vq", "kl-vae", "vqkd", "musik")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # as for a script that is run
    return runpy.run_path(str(SCRIPT), run_name="precision")


def test_the_table_has_a_row_for_every_family_that_was_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--families", "uva", "bc", "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"1 threads; torch {torch.__version__}; commit " in lines[0]
    assert lines[0].endswith("--quick --families uva bc --device cpu")
    assert "the fastest of 1; auto: " in lines[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert rows[0] == ["", "batch", "fp32", "bf16", "auto", "auto / better"]
    assert [row[:2] for row in rows[2:]] == [["uva", "2"], ["bc", "2"]]
    slow = []
    for name, _, fp32, bf16, auto, ratio in rows[2:]:
        rates = {"fp32": float(fp32), "bf16": float(bf16.rstrip("*"))}
        assert min(rates.values()) > 0.0
        assert float(ratio) == pytest.approx(rates[auto] / max(rates.values()), abs=0.02)
        slow += [name] if float(ratio) < 0.945 else []
    assert "gradient not finite" not in done.stdout
    closing = re.fullmatch(r"auto below 0\.95 x the better: (.+)", lines[-1])
    assert closing is not None
    assert set(slow) <= set(closing[1].split(", ")) <= {"uva", "bc", "none"}


def test_every_family_of_the_library_learns(script: dict[str, Any]) -> None:
    assert tuple(script["FAMILIES"]) == FAMILIES
    cpu = torch.device("cpu")
    for name, family in script["FAMILIES"].items():
        training = family()
        step = script["whole_step"](training, cpu, "fp32")
        before = {n: p.detach().clone() for n, p in step.model.named_parameters()}
        step(training.batch(1, torch.Generator().manual_seed(0)))
        assert step.norm.isfinite(), name
        assert step.norm > 0.0, name
        now = dict(step.model.named_parameters())
        assert any(not torch.equal(p, now[n]) for n, p in before.items()), name


def test_an_impossible_option_is_one_sentence(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, said in (
        (["--rounds", "0"], "--rounds and --batch-size should be at least 1"),
        (["--device", "abacus"], "give cpu, cuda or cuda:1 and the like."),
    ):
        monkeypatch.setattr(sys, "argv", ["precision.py", *options])
        with pytest.raises(SystemExit, match="2"):
            script["main"]()
        assert capsys.readouterr().err.splitlines()[-1].endswith(said)
