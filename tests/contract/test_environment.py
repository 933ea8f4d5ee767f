"""The environment is the documented one: the lowest torch, the tested one, and no torchvision that
breaks it.

It is also the one whose types are checked.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOWEST = Version("2.7")
"""The lowest torch that the suite passes with; docs/install.md says why no older one."""


def requirement(name: str) -> Requirement:
    return next(
        found for text in PROJECT["dependencies"] if (found := Requirement(text)).name == name
    )


def test_the_lowest_torch_is_the_one_that_was_tried() -> None:
    assert str(requirement("torch").specifier) == f">={LOWEST}"
    assert f"torch {LOWEST} or newer" in (ROOT / "docs" / "install.md").read_text()


def test_torch_is_one_that_the_package_allows() -> None:
    assert Version(torch.__version__) >= LOWEST


def test_every_dependency_of_the_core_is_installed_as_required() -> None:
    for text in PROJECT["dependencies"]:
        needed = Requirement(text)
        assert needed.specifier.contains(
            importlib.metadata.version(needed.name), prereleases=True
        ), text


def test_the_constraints_name_one_torch_and_keep_torchvision_out() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    (tested,) = (line for line in lines if re.match(r"torch==", line))
    assert Requirement(tested.split("#")[0]).specifier.contains(tested.split("==")[1].split()[0])
    assert any(line.startswith("torchvision<0") for line in lines)
    if importlib.util.find_spec("torchvision") is not None:
        importlib.import_module("torchvision")


def test_lint_sees_the_types_of_torch(tmp_path: Path) -> None:
    """Where pyright does not find torch, all that comes from it
    has an unknown type, and is never wrong.
    """
    (line,) = re.findall(
        r"^\t\$\(BIN\)/(pyright.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    folder = Path(sys.executable).parent
    command = f"{folder}/{line}".replace("$(BIN)", str(folder)).split()
    (tmp_path / "made.py").write_text("import torch\n\nreveal_type(torch.zeros(1))\n")
    done = subprocess.run(
        [*command, "made.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert 'Type of "torch.zeros(1)" is "Tensor"' in done.stdout, done.stdout + done.stderr
