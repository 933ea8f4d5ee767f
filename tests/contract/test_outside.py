"""A stranger's package walks the whole road by the command line, and
nothing of ours is edited (docs/extend.md).
"""

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


def foreact(folder: Path, command: str) -> str:
    """Run the command line in an interpreter of its own, as its user does."""
    code = "from foreact.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(OUTSIDE), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_whole_road(tmp_path: Path) -> None:
    for command in commands():
        printed = foreact(tmp_path, command)
        if command.startswith("weights verify"):
            assert re.search(r"family +reach", printed)
    steps = {
        json.loads(line)["step"]
        for line in (tmp_path / "runs/reach/log.jsonl").read_text().splitlines()
    }
    assert max(steps) == 300  # the second training went on with the first
    scores = {
        name: json.loads((tmp_path / "runs/acting" / name / "closed_loop.json").read_text())[
            "score"
        ]["mean"]
        for name in ("reach", "random")
    }
    assert scores["reach"] > scores["random"]
    assert (tmp_path / "runs/acting/report.html").is_file()
    assert (tmp_path / "runs/imagined/next.png").is_file()


def test_the_tutorial_shows_this_package() -> None:
    text = DOCS.read_text()
    for name in ("world", "task", "model"):
        assert (OUTSIDE / "reach" / f"{name}.py").read_text().strip() in text, name


def commands() -> list[str]:
    """Those of the tutorial, in its order."""
    blocks = re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.removeprefix("foreact ") for line in lines if line.startswith("foreact ")]


def test_a_file_in_the_present_folder_is_a_plug_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(OUTSIDE)])
    for kind in ("task", "world", "model"):
        (tmp_path / f"my_{kind}_here.py").write_text(f"from reach.{kind} import *\n")
    assert find_task("my_task_here").name == "reach"
    assert SIMULATORS.find("my_world_here").name == "reach"
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
