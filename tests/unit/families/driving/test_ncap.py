from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreact.errors import UserError
from foreact.families.driving.evals.ncap import SEQUENCES, aggregate, ncap_score, read_runs
from foreact.families.driving.score_ncap import ncap

speeds = st.floats(0.1, 50.0)


def tree(root: Path, runs: Mapping[str, Any]) -> Path:
    """Write {"frontal-0103/run_0": content of metrics.json, or None for a run without}."""
    for name, metrics in runs.items():
        (root / name).mkdir(parents=True)
        if metrics is not None:
            (root / name / "metrics.json").write_text(
                metrics if isinstance(metrics, str) else json.dumps(metrics)
            )
    return root


def whole_benchmark(root: Path, runs: int = 2) -> Path:
    draw = np.random.default_rng(0)
    return tree(
        root,
        {
            f"{scenario}-{sequence}/run_{run}": {"ncap_score": draw.uniform(0, 5), "run_info": "x"}
            for scenario, sequences in SEQUENCES.items()
            for sequence in sequences
            for run in range(runs)
        },
    )


# --- the score ------------------------------------------------------------------------------------


@given(speeds)
def test_five_stars_are_for_no_collision_alone(reference: float) -> None:
    assert ncap_score(None, reference) == 5.0
    assert ncap_score(0.0, reference) == 4.0
    assert ncap_score(reference, reference) == 0.0


@given(speeds, speeds, speeds)
def test_a_slower_impact_never_scores_less(a: float, b: float, reference: float) -> None:
    assert 0.0 <= ncap_score(max(a, b), reference) <= ncap_score(min(a, b), reference) < 5.0


@pytest.mark.parametrize(
    ("impact", "reference"),
    [(1.0, 0.0), (1.0, -2.0), (-0.1, 5.0), (math.nan, 5.0), (None, math.inf)],
)
def test_speeds_that_mean_nothing_are_refused(impact: float | None, reference: float) -> None:
    with pytest.raises(ValueError, match="speed should be"):
        ncap_score(impact, reference)


# --- means ----------------------------------------------------------------------------------------


def test_sequences_and_scenarios_weigh_alike_whatever_their_number_of_runs() -> None:
    found = aggregate(
        {
            "frontal": {"a": [{"s": 1.0}], "b": [{"s": 2.0}, {"s": 4.0}, {"s": 6.0}]},
            "side": {"c": [{"s": 10.0}]},
        }
    )
    assert found.sequences["frontal"]["b"].avg == {"s": 4.0}
    assert found.sequences["frontal"]["b"].std["s"] == pytest.approx(math.sqrt(8 / 3))
    assert found.scenarios["frontal"].avg == {"s": 2.5}
    assert found.scenarios["frontal"].std == {"s": 1.5}
    assert found.overall.avg == {"s": 6.25}
    assert (found.overall.n, found.scenarios["frontal"].n, found.sequences["frontal"]["b"].n) == (
        2,
        2,
        3,
    )


def test_what_a_run_does_not_know_is_left_out_and_not_taken_for_zero() -> None:
    found = aggregate(
        {
            "frontal": {
                "a": [{"d": None, "s": 1.0}, {"d": 3.0, "s": 2.0}],
                "b": [{"d": math.nan, "s": 3.0}, {"s": 4.0}],
            },
            "side": {"c": [{"s": 1.0}]},
        }
    )
    assert found.sequences["frontal"]["a"].avg["d"] == 3.0
    assert math.isnan(found.sequences["frontal"]["b"].avg["d"])
    assert found.scenarios["frontal"].avg["d"] == 3.0
    assert math.isnan(found.scenarios["side"].avg["d"])
    assert found.overall.avg["d"] == 3.0
    assert found.to_json()["per_scenario"]["avg"]["side"] == {"d": None, "s": 1.0}
    json.dumps(found.to_json(), allow_nan=False)


def test_rounding_at_every_level_is_asked_for_by_name() -> None:
    runs = {"frontal": {str(i): [{"s": 0.0004}] for i in range(3)}, "side": {"x": [{"s": 0.0028}]}}
    assert aggregate(runs).overall.avg["s"] == pytest.approx(0.0016)
    rounded = aggregate(runs, decimals=3)
    assert (rounded.scenarios["frontal"].avg["s"], rounded.scenarios["side"].avg["s"]) == (
        0.0,
        0.003,
    )
    assert (rounded.overall.avg["s"], rounded.overall.std["s"]) == (
        0.002,
        0.002,
    )  # halves go to the even digit


@given(
    st.lists(
        st.lists(st.lists(st.floats(0, 5), min_size=1, max_size=4), min_size=1, max_size=4),
        min_size=1,
    )
)
def test_exact_means_agree_with_their_definition(values: list[list[list[float]]]) -> None:
    runs = {
        f"s{i}": {f"q{j}": [{"s": v} for v in found] for j, found in enumerate(of)}
        for i, of in enumerate(values)
    }
    expected = np.mean([np.mean([np.mean(found) for found in of]) for of in values])
    assert aggregate(runs).overall.avg["s"] == pytest.approx(float(expected))


def test_nothing_to_average() -> None:
    for runs in ({}, {"frontal": {}}, {"frontal": {"a": []}}):
        with pytest.raises(UserError, match="no run to average"):
            aggregate(runs)


# --- result trees ---------------------------------------------------------------------------------


def test_a_whole_tree_is_read(tmp_path: Path) -> None:
    runs = read_runs(whole_benchmark(tmp_path))
    assert {name: tuple(of) for name, of in runs.items()} == SEQUENCES
    assert all(len(found) == 2 for of in runs.values() for found in of.values())
    assert all(
        set(m) == {"ncap_score"} for of in runs.values() for found in of.values() for m in found
    )


SOME = {"frontal": ("0103", "0106")}


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        ({"frontal-0103/run_0": {"s": 1}}, r"lacks 1 of 2 'frontal' sequences \(frontal-0106\)"),
        (
            {"frontal-0103/run_0": {"s": 1}, "frontal-0106/run_0": None},
            r"frontal-0106/run_0 has no metrics\.json",
        ),
        (
            {"frontal-0103/run_0": {"s": 1}, "frontal-0106/other": {"s": 1}},
            r"frontal-0106 holds no run_\*/metrics",
        ),
        (
            {
                "frontal-0103/run_0": {"s": 1},
                "frontal-0106/run_0": {"s": 1},
                "frontal-0106/run_1": {"s": 1},
            },
            r"frontal-0106 has 2, frontal-0103 has 1: finish the runs",
        ),
    ],
)
def test_an_incomplete_tree_is_refused_where_it_is_checked(
    tmp_path: Path, runs: Any, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        read_runs(tree(tmp_path, runs), sequences=SOME)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"s": 1.0', r"run_0/metrics\.json cannot be read as JSON"),
        ("[1.0]", r"should hold an object of metrics, found a list"),
        ('{"s": "fast"}', r"should hold finite numbers, found s = 'fast'"),
        ('{"s": Infinity}', r"should hold finite numbers, found s = 'inf'"),
        (f'{{"s": 1{"0" * 400}}}', r"should hold finite numbers, found s = '1000"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_a_damaged_file_is_named(tmp_path: Path, content: str, sentence: str, check: bool) -> None:
    root = tree(tmp_path, {"frontal-0103/run_0": content})
    with pytest.raises(UserError, match=sentence):
        read_runs(root, sequences={"frontal": ("0103",)}, check=check)


def test_without_the_check_what_is_there_counts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "frontal-0103/run_0": {"s": 1.0},
            "frontal-0103/run_1": None,
            "frontal-9999/run_0": {"s": 3.0},
            "frontal-9999/run_1": {"s": 4.0},
            "elsewhere-0103/run_0": {"s": 9.0},
        },
    )
    assert read_runs(root, check=False) == {
        "frontal": {"0103": [{"s": 1.0}], "9999": [{"s": 3.0}, {"s": 4.0}]}
    }


@pytest.mark.parametrize("check", [True, False])
def test_no_tree_at_all(tmp_path: Path, check: bool) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        read_runs(tmp_path / "absent", check=check)
    with pytest.raises(
        UserError, match="holds no folder such as" if not check else "lacks 10 of 10 'stationary'"
    ):
        read_runs(tmp_path, check=check)


# --- the verb -------------------------------------------------------------------------------------


def test_the_verb_prints_a_table_and_writes_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = whole_benchmark(tmp_path / "results")
    ncap(root, out=tmp_path / "ncap.json")
    ncap(root, out=tmp_path / "rounded.json", reference_rounding=True)
    exact, rounded = (
        json.loads((tmp_path / name).read_text()) for name in ("ncap.json", "rounded.json")
    )
    assert exact.pop("command") == (
        f"foreact eval ncap --rootdir {root} --check --no-reference-rounding "
        f"--out {tmp_path / 'ncap.json'}"
    )
    assert "--reference-rounding" in rounded.pop("command")
    assert exact == aggregate(read_runs(root)).to_json()
    assert rounded == aggregate(read_runs(root), decimals=3).to_json()
    assert exact != rounded
    printed = capsys.readouterr().out
    assert f"overall     3   {exact['overall']['avg']['ncap_score']:.3f} (" in printed
    assert str(tmp_path / "ncap.json") in printed
    with pytest.raises(UserError, match=r"ncap.json holds the results of .*; name another --out"):
        ncap(root, out=tmp_path / "ncap.json", reference_rounding=True)
