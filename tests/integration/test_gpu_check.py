"""`benchmarks/gpu_check.py` on the CPU: it needs hardly
anything installed, and tells all it found.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.py"
# Nothing can be imported but what a machine for measurements has. The finder of installed modules
# is replaced, so that a module is missing to torch too, which asks whether some are there.
BARE = """
import runpy, sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    missing = {
        "tyro", "zarr", "numcodecs", "av", "PIL", "tqdm", "matplotlib", "jinja2", "h5py",
        "gymnasium", "cv2", "scipy", "pymunk", "pygame", "dm_control", "mujoco", "submitit",
        "ray", "tensorboard", "transformers", "starlette",
    }

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in cls.missing else super().find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
try:
    import tqdm
except ImportError:
    pass
else:
    sys.exit("tqdm could be imported")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
DTYPES = {"float32", "bfloat16"}
PARTS: dict[str, tuple[set[str], set[str]]] = {  # section -> its parts, the columns of each
    "correctness": ({"vavim", "vavam", "voc", "uva", "kl-vae", "vq"}, DTYPES),
    "latency": (
        {
            "kl-vae encode",
            "vq encode",
            "vavim prefill",
            "vavim step",
            "vavam act-1",
            "vavam act-10",
            "uva act",
            "voc futures",
        },
        DTYPES,
    ),
    "training": ({"vavim", "uva", "voc"}, DTYPES),
    "decode_bandwidth": ({"vavim step float32", "vavim step bfloat16"}, {"eager", "graph"}),
    "modes": (
        {"vavim step", "uva denoiser", "vavim training", "voc training"},
        {"eager", "graph", "compile"},
    ),
}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)  # the script finds the source tree by itself
    return subprocess.run(
        [sys.executable, "-c", BARE, str(SCRIPT), *options],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def quick(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("gpu_check") / "new" / "found.json"
    return run("--device", "cpu", "--quick", "--out", str(out)), out


def test_every_part_of_every_section_is_there(
    quick: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, out = quick
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    data = json.loads(out.read_text())
    assert data["complete"]
    assert data["failures"] == []
    assert data["machine"]["torch"] == torch.__version__
    for section, (parts, columns) in PARTS.items():
        assert set(data[section]) == parts
        for part, found in data[section].items():
            assert set(found) == columns, (section, part)
            for column, leaf in found.items():
                assert "error" not in leaf, (section, part, column, leaf)
                assert ("skipped" in leaf) == (column == "graph"), (section, part, column, leaf)
                assert f"{section:<17}{part:<21}{column:<9}" in done.stdout
                if section == "correctness":
                    assert leaf["ok"]
                elif column != "graph":
                    assert leaf["median_ms"] >= leaf["min_ms"] > 0


def test_the_cpu_agrees_with_itself_and_bfloat16_was_really_computed(
    quick: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    found = json.loads(quick[1].read_text())["correctness"]
    for part, dtypes in found.items():
        assert all(check["relative"] == 0.0 for check in dtypes["float32"]["outputs"].values()), (
            part
        )
        assert dtypes["bfloat16"]["relative"] > 1e-4, part
    assert {name for name in found if "gradients" in found[name]["float32"]["outputs"]} == {
        "vavim",
        "vavam",
        "voc",
        "uva",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_one_sentence(tmp_path: Path) -> None:
    done = run("--device", "cuda", "--out", str(tmp_path / "found.json"))
    assert done.returncode == 2
    assert done.stderr.strip() == "This torch finds no CUDA device; give --device cpu."
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = runpy.run_path(str(SCRIPT), run_name="gpu_check")
    report = script["Report"](tmp_path / "found.json", {})

    def part(column: str) -> dict[str, Any]:
        if column == "good":
            return {"median_ms": 1.0}
        if column == "wrong":
            return {"ok": False}
        raise RuntimeError("no room\nand much more")

    report.part("latency", "some", ("bad", "wrong", "graph", "good"), part)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["latency"]["some"]["bad"] == {"error": "RuntimeError: no room"}
    assert found["latency"]["some"]["graph"] == {"error": "RuntimeError: no room"}
    assert found["latency"]["some"]["good"] == {"median_ms": 1.0}
    assert found["failures"] == [
        "latency, some, bad: RuntimeError: no room",
        "latency, some, wrong: ok False",
    ]
    assert not found["complete"]
    with pytest.raises(ArithmeticError, match="NaN"):
        script["apart"](torch.tensor([1.0, float("nan")]), torch.ones(2))
    assert script["apart"](torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert script["apart"](torch.tensor([1, 2]), torch.tensor([1, 3])) == 0.5
