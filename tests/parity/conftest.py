"""Collects golden cases: the selection in this folder, or any folder given with --goldens DIR."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from parity.registry import Case  # noqa: E402


def cases(root: Path) -> list[Case]:
    found = {p.parent for p in root.glob("*/*/case.json")} | {
        p.parent for p in root.glob("*/golden/*/case.json")
    }
    return [Case(system=p.relative_to(root).parts[0], folder=p) for p in sorted(found)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    for module in sorted((HERE / "adapters").glob("*.py")):
        importlib.import_module(f"parity.adapters.{module.stem}")
    root = Path(metafunc.config.getoption("--goldens") or HERE / "goldens")
    found = cases(root)
    assert found, f"no golden case under {root}"
    metafunc.parametrize("case", found, ids=[f"{c.system}/{c.folder.name}" for c in found])
