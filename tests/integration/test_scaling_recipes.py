"""The scaling tools on a tiny store: muP seen at work, sweeps that go on where they were, laws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.driving_worlds import drive, write_token_store

from foreact.cli import run
from foreact.families.driving.evals.scaling_law import ScalingLaw

Capture = pytest.CaptureFixture[str]

SMALL = "--layers 1 --frames 2 --grid 2 3 --vocab 50 --batch-size 4 --device cpu"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scaling") / "drives.zarr"
    write_token_store(path, [drive(40, seed=i, period=0.1) for i in range(3)])
    return path


def times(out: Path) -> dict[str, int]:
    """When each run of a sweep last wrote to its log or saved."""
    files = [*out.glob("*/log.jsonl"), *out.glob("*/checkpoints/*/train.json")]
    return {str(file): file.stat().st_mtime_ns for file in files}


def picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_mup_keeps_the_change_of_the_logits_over_widths(
    store: Path, tmp_path: Path, capsys: Capture
) -> None:
    widths = (32, 256)
    run(
        (
            f"scaling coord-check --sources {store} --widths 32 256 --steps 4 {SMALL} --out "
            f"{tmp_path}"
        ).split()
    )
    found = json.loads((tmp_path / "coord-check.json").read_text())
    assert all(len(rows[str(width)]) == 4 for rows in found.values() for width in widths)
    growth = {
        name: {part: rows["256"][-1][part] / rows["32"][-1][part] for part in rows["32"][-1]}
        for name, rows in found.items()
    }
    assert set(growth["muP"]) == {"embedding", "attention 0", "mlp 0", "logits"}
    assert growth["muP"]["logits"] < 2.0
    assert growth["standard"]["logits"] > 2 * growth["muP"]["logits"]
    assert picture(tmp_path / "coord-check.png")
    assert (
        f"muP: widest over narrowest after 4 steps: embedding x{growth['muP']['embedding']:.2f}"
        in (capsys.readouterr().out)
    )


def test_a_sweep_of_rates_is_written_and_not_trained_twice(
    store: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = (
        f"scaling lr-sweep --sources {store} --widths 32 64 --steps 3 {SMALL} --out "
        f"{tmp_path}/sweep"
    )
    run(f"{command} --lrs 0.001 0.01".split())
    rows = json.loads((tmp_path / "sweep/lr-sweep.json").read_text())
    assert [(row["width"], row["lr"]) for row in rows] == [
        (w, lr) for w in (32, 64) for lr in (0.001, 0.01)
    ]
    assert all(0 < row["loss"] < 8 for row in rows)
    assert len({row["loss"] for row in rows}) == 4
    best = min(rows[:2], key=lambda row: row["loss"])
    assert f"width 32: best lr {best['lr']:g}" in capsys.readouterr().out
    assert picture(tmp_path / "sweep/lr-sweep.png")

    before = times(tmp_path / "sweep")
    assert len(before) == 4 * 2
    run(f"{command} --lrs 0.001 0.01 0.1".split())
    again = json.loads((tmp_path / "sweep/lr-sweep.json").read_text())
    assert [row for row in again if row["lr"] < 0.1] == rows
    assert {
        file: time for file, time in times(tmp_path / "sweep").items() if file in before
    } == before


def test_a_law_is_fitted_to_a_grid_of_runs(store: Path, tmp_path: Path, capsys: Capture) -> None:
    command = (
        f"scaling laws --sources {store} --widths 32 64 96 --steps 1 2 4 {SMALL} --out "
        f"{tmp_path}/laws"
    )
    run(command.split())
    found = json.loads((tmp_path / "laws/scaling-laws.json").read_text())
    assert [row["tokens"] for row in found["runs"][:3]] == [n * 4 * 11 for n in (1, 2, 4)]
    assert [row["parameters"] for row in found["runs"][::3]] == [12 * w * w for w in (32, 64, 96)]
    law = ScalingLaw(**found["law"])
    for row in found["runs"]:
        assert law(row["parameters"], row["tokens"]) == pytest.approx(row["loss"], rel=0.02)
    assert str(law) in capsys.readouterr().out
    assert picture(tmp_path / "laws/scaling-laws.png")
    before = times(tmp_path / "laws")
    run(command.split())
    assert times(tmp_path / "laws") == before


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (
            "laws --widths 32 64 --steps 1 2 4",
            "needs three widths and three numbers of steps at least, found (32, 64)",
        ),
        ("laws --widths 32 64 96 --steps 1 2", "and (1, 2)"),
        ("laws --widths 32 32 32 --steps 1 2 4", "needs three widths"),
        ("lr-sweep --widths 33", "--widths should be multiples of 32, found 33"),
        ("lr-sweep --widths 32 --lrs -1", "lr should be a positive number"),
        ("coord-check --widths 32 --steps 0", "and --steps one step, found (32,) and 0"),
        ("coord-check --widths 32 --grid 3 2", "grids of 2 x 3 tokens, the model reads 3 x 2"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_training(
    command: str, part: str, store: Path, refused: Callable[..., str]
) -> None:
    small = SMALL.replace("--grid 2 3", "") if "--grid" in command else SMALL
    assert part in refused(*f"scaling {command} {small} --sources {store} --out new".split())


def test_runs_of_other_data_or_models_are_not_taken_for_these(
    store: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    sweep = f"scaling lr-sweep --widths 32 --lrs 0.01 --steps 2 --out sweep {SMALL}"
    run(f"{sweep} --sources {store}".split())
    sentence = refused(*f"{sweep} --sources {store} {store}".split())
    assert "width-32-lr-0.01 holds a run with --sources [" in sentence
    assert "holds a run with --model.layers 1, now it is 2" in refused(
        *f"{sweep} --sources {store} --layers 2".split()
    )
