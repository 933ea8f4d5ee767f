"""The rules of the house that a machine can check: rooms,
imports, file sizes, names that do not belong.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import foreact

ROOT = Path(foreact.__file__).resolve().parent
REPOSITORY = ROOT.parents[1]
SOURCES = sorted(ROOT.rglob("*.py"))


def test_rooms_import_downwards_only() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([str(linter)], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_files_stay_small_and_have_a_purpose() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 500, f"{path} is too long to be one idea"
        assert path.stem not in {"utils", "common", "core", "misc", "helpers"}, path
        if text.strip():
            assert text.startswith('"""'), f"{path} does not say what it holds"


def test_only_train_knows_ranks() -> None:
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] != "train":
            assert "torch.distributed" not in path.read_text(), path


def test_models_and_tokenizers_open_nothing_and_print_nothing() -> None:
    for room in ("nn", "tokenizers"):
        for path in (ROOT / room).glob("*.py"):
            found = re.findall(r"\b(?:open|print|torch\.load|torch\.save)\(", path.read_text())
            assert not found, f"{path} calls {found}"


def test_importing_the_package_loads_no_simulator_and_no_logger() -> None:
    code = (
        "import sys, foreact.cli; heavy = {'gymnasium', 'pymunk', 'pygame', 'dm_control', "
        "'mujoco', 'wandb', 'tensorboard', 'cv2'}; heavy &= set(sys.modules); assert not heavy, "
        "heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_pickle_is_read_outside_the_restricted_reader() -> None:
    allowed = ROOT / "released" / "pickles.py"
    for path in SOURCES:
        if path != allowed:
            found = re.findall(
                r"pickle\.loads?\(|torch\.load\((?!.*weights_only=True)|allow_pickle=True"
                r"|import dill",
                path.read_text(),
            )
            assert not found, f"{path}: {found}"
