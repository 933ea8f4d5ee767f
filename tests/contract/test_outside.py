"""A stranger's package walks the whole road by the command line, and nothing of ours is edited (docs/extend.md)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foreact.errors import UserError
from foreact.plugs import FAMILIES, SIMULATORS, add_family
from foreact.tasks import find_task

OUTSIDE = Path(__file__).parents[1] / "outside"
DOCS = Path(__file__).parents[2] / "docs" / "extend.md"
TRAIN = "train --family reach.model --data data/reach.zarr --out runs/reach --train.warmup 10 --train.batch-size 64"


def foreact(folder: Path, command: str) -> str:
    """Run the command line in an interpreter of its own, as its user does."""
    code = "from foreact.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()], cwd=folder, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(OUTSIDE), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_whole_road(tmp_path: Path) -> None:
    foreact(tmp_path, "data collect --env reach.world --episodes 12 --out data/reach.zarr --workers 1")
    foreact(tmp_path, f"{TRAIN} --train.steps 60 --train.save-every 60 --train.eval-every 60 --train.lr 3e-3")
    assert "step 120" in str(sorted((tmp_path / "runs/reach/checkpoints").iterdir())) or "120" in foreact(
        tmp_path, "train --family reach.model --from runs/reach --train.steps 120"
    )
    verified = foreact(tmp_path, "weights verify runs/reach/weights --family reach.model")
    assert re.search(r"family +reach", verified)
    foreact(
        tmp_path,
        "eval closed-loop --weights runs/reach/weights --family reach.model --task reach.task --seeds 6 --videos 1 "
        "--workers 1 --baselines random --out runs/acting",
    )
    scores = {
        name: json.loads((tmp_path / "runs/acting" / name / "scores.json").read_text())["score"]["mean"]
        for name in ("weights", "random")
    }
    assert scores["weights"] > scores["random"]
    assert (tmp_path / "runs/acting/report.html").is_file()
    foreact(
        tmp_path,
        "generate --weights runs/reach/weights --family reach.model --data data/reach.zarr --out runs/imagined",
    )
    assert (tmp_path / "runs/imagined/next.png").is_file()


def test_the_tutorial_shows_this_package() -> None:
    text = DOCS.read_text()
    for name in ("world", "task", "model"):
        assert (OUTSIDE / "reach" / f"{name}.py").read_text().strip() in text, name
    for command in re.findall(r"^foreact (.*)$", text, re.MULTILINE):
        assert "reach" in command


def test_a_file_in_the_present_folder_is_a_plug_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(OUTSIDE)])
    for kind in ("task", "world", "model"):
        (tmp_path / f"my_{kind}_here.py").write_text(f"from reach.{kind} import *\n")
    assert find_task("my_task_here").name == "reach"
    assert SIMULATORS.find("my_world_here").name == "reach"
    monkeypatch.setattr(FAMILIES, "added", {}, raising=False) if False else None
    assert FAMILIES.find("my_model_here").name == "reach"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_such_family", "There is no family called 'no_such_family'; known ones are "),
        ("uvva", "There is no family called 'uvva'; did you mean 'uva'?"),
        ("no.such", "Family 'no.such' cannot be imported"),
        ("foreact.types", "Module 'foreact.types' exports no FAMILY"),
    ],
)
def test_what_is_no_family_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        add_family(name)
    assert str(raised.value).startswith(sentence)
