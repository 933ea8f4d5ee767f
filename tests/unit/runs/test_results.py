"""A second evaluation does not replace the first unsaid, and tables name a policy by its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreact.checkpoints.shipped import resolve, shipped
from foreact.errors import UserError
from foreact.runs.acting import policy_name
from foreact.runs.results import open_results


def options(**values: object) -> dict[str, tuple[object, object]]:
    return {name: (value, None) for name, value in values.items()}


def finished(out: Path, **hashes: str) -> None:
    results = open_results(out, "eval values", options(weights="w", seed=3, out=out), **hashes)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text("the first")
    results.finish()


def test_the_same_measurement_may_be_repeated(tmp_path: Path) -> None:
    finished(tmp_path / "o", weights="hash")
    again = options(weights="w", seed=3, out=tmp_path / "o", device="cpu", workers=2)
    results = open_results(tmp_path / "o", "eval values", again, weights="hash")
    assert results.command.endswith(f"--out {tmp_path / 'o'} --device cpu --workers 2")


@pytest.mark.parametrize(
    ("verb", "seed", "digest", "problem"),
    [
        ("eval values", 4, "hash", "the results of `foreact eval values --weights w --seed 3`;"),
        ("eval video", 3, "hash", "the results of `foreact eval values"),
        ("eval values", 3, "other", "--seed 3` with other weights; name another --out"),
    ],
)
def test_another_measurement_is_refused_before_it_begins(
    verb: str, seed: int, digest: str, problem: str, tmp_path: Path
) -> None:
    finished(tmp_path, weights="hash")
    before = sorted(path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=problem):
        open_results(tmp_path, verb, options(weights="w", seed=seed), weights=digest)
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == before


def test_a_report_that_does_not_say_what_it_holds_is_kept(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("somebody's")
    with pytest.raises(UserError, match="does not say what was measured; name another --out"):
        open_results(tmp_path, "eval values", options(weights="w"))


def test_a_measurement_that_did_not_end_leaves_the_folder_free(tmp_path: Path) -> None:
    open_results(tmp_path / "o", "eval values", options(weights="w"))
    open_results(tmp_path / "o", "eval values", options(weights="v"))


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("runs/x/weights", "x"),
        ("runs/x/weights/", "x"),
        ("runs/x", "x"),
        ("uva-pusht", "uva-pusht"),
        ("runs/x/checkpoints/step-00000500/weights", "x-step-00000500"),
        ("do-nothing", "do-nothing"),
        ("runs/random/weights", "random-weights"),
    ],
)
def test_a_policy_is_called_after_its_run(weights: str, name: str) -> None:
    assert policy_name(weights) == name


def test_the_folder_of_a_run_stands_for_its_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    for file in shipped("kl-vae-pusht").iterdir():
        (run / "weights" / file.name).symlink_to(file)
    assert resolve(run) == run / "weights"
    assert resolve(run / "weights") == run / "weights"


def test_a_run_without_finished_weights_names_its_newest(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"without finished weights; let the run end \(--from"):
        resolve(tmp_path)
    for step in ("step-00000002", "step-00000010"):
        weights = tmp_path / "checkpoints" / step / "weights"
        weights.mkdir(parents=True)
        (weights / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"name .*step-00000010/weights, or let the run end"):
        resolve(tmp_path)
