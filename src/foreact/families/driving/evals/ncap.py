"""NeuroNCAP: score of one simulated near-collision, means over runs, sequences and scenarios.

The benchmark lets a policy drive into staged emergencies
(https://github.com/atonderski/neuro-ncap). A scenario is played in several recorded sequences, each
many times with other random offsets, and leaves one file per run::

    ROOT/<scenario>-<sequence>/run_*/metrics.json

Means are taken over the runs of a sequence, then over sequences, then over scenarios, each with
equal weight.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreact.errors import UserError
from foreact.files import listed, parse_json, read_text
from foreact.progress import Progress

SEQUENCES = {
    "stationary": ("0099", "0101", "0103", "0106", "0108", "0278", "0331", "0783", "0796", "0966"),
    "frontal": ("0103", "0106", "0110", "0346", "0923"),
    "side": ("0103", "0108", "0110", "0278", "0921"),
}
"""Scenario -> nuScenes scenes in which the benchmark stages it."""

Metrics = Mapping[str, float | None]
"""Name -> value of one run; None where the run could not tell."""
Runs = Mapping[str, Mapping[str, Sequence[Metrics]]]
"""Scenario -> sequence -> its runs."""


def ncap_score(impact_speed: float | None, reference_speed: float) -> float:
    """Stars of one run: 5 without a collision, else up to 4, the slower the impact the more.

    Args:
        impact_speed: relative speed at the collision in m/s, or None without one.
        reference_speed: relative speed in m/s at which a car that does nothing would hit.

    Returns:
        0..5, larger is better.

    Raises:
        ValueError: a speed is negative or not finite, or the reference is zero.
    """
    if not (math.isfinite(reference_speed) and reference_speed > 0):
        raise ValueError(f"The reference speed should be positive, found {reference_speed}.")
    if impact_speed is None:
        return 5.0
    if not (math.isfinite(impact_speed) and impact_speed >= 0):
        raise ValueError(f"The impact speed should be at least 0, found {impact_speed}.")
    return 4.0 * max(0.0, 1.0 - impact_speed / reference_speed)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and population standard deviation per metric; NaN where no value was known.

    Attributes:
        n: how many runs, sequences or scenarios went in.
    """

    avg: dict[str, float]
    std: dict[str, float]
    n: int


@dataclass(frozen=True, kw_only=True)
class NCAPSummary:
    """Means at the three levels; the spread of each level is that of the means one level below."""

    overall: Spread
    scenarios: dict[str, Spread]
    sequences: dict[str, dict[str, Spread]]

    def to_json(self) -> dict[str, Any]:
        """The layout of the benchmark's own summary; what is not known is null."""
        levels = {
            "overall": self.overall,
            "per_scenario": self.scenarios,
            "per_sequence": self.sequences,
        }
        return {
            name: {kind: _values(level, kind) for kind in ("avg", "std")}
            for name, level in levels.items()
        }

    def table(self) -> str:
        """One line per scenario and one for all, mean and standard deviation of every metric."""
        rows = [*self.scenarios.items(), ("overall", self.overall)]
        head = ["scenario", "n", *sorted(self.overall.avg)]
        cells = [
            [name, str(s.n), *(f"{s.avg[m]:.3f} ({s.std[m]:.3f})" for m in head[2:])]
            for name, s in rows
        ]
        widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
            for row in [head, *cells]
        )


def aggregate(runs: Runs, *, decimals: int | None = None) -> NCAPSummary:
    """Means over runs, then sequences, then scenarios.

    Args:
        runs: as from `read_runs`. A metric that a run does not know (None, NaN or absent) is left
            out of its mean; a sequence in which no run knows it is left out of its scenario's.
        decimals: digits to round to at every level before the next mean is taken. The reference
            rounds to 3; None keeps all digits.

    Raises:
        UserError: there is nothing to average.
    """
    every_run = [run for sequences in runs.values() for rows in sequences.values() for run in rows]
    if not every_run:
        raise UserError("There is no run to average; give results of at least one sequence.")
    names = sorted({name for run in every_run for name in run})

    def spread(rows: Sequence[Metrics]) -> Spread:
        avg, std = {}, {}
        for name in names:
            values = [
                float(v) for row in rows if (v := row.get(name)) is not None and not math.isnan(v)
            ]
            avg[name] = float(np.mean(values)) if values else math.nan
            std[name] = float(np.std(values)) if values else math.nan
            if decimals is not None:
                avg[name] = float(np.round(avg[name], decimals))
                std[name] = float(np.round(std[name], decimals))
        return Spread(avg=avg, std=std, n=len(rows))

    sequences = {
        scenario: {sequence: spread(rows) for sequence, rows in of_scenario.items()}
        for scenario, of_scenario in runs.items()
    }
    scenarios = {
        name: spread([s.avg for s in of_scenario.values()])
        for name, of_scenario in sequences.items()
    }
    return NCAPSummary(
        overall=spread([s.avg for s in scenarios.values()]),
        scenarios=scenarios,
        sequences=sequences,
    )


def read_runs(
    root: Path, *, sequences: Mapping[str, Sequence[str]] = SEQUENCES, check: bool = True
) -> dict[str, dict[str, list[dict[str, float | None]]]]:
    """The metrics of every run of a result tree.

    Args:
        root: folder with one folder per scenario and sequence.
        sequences: scenario -> sequences that make the benchmark.
        check: every one of `sequences` must be there, all with equally many runs. Otherwise what is
            there is read, and runs without a metrics.json are passed over.

    Returns:
        scenario -> sequence -> one {metric: value} per run, in the order of the runs' names.
        Entries with "info" in their name are left out.

    Raises:
        UserError: nothing is there, a file is damaged, or the tree is incomplete and `check` is
            set.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; give the folder of the benchmark's results.")
    folders = {
        (scenario, sequence): folder
        for scenario, names in sequences.items()
        for sequence, folder in _sequence_folders(root, scenario, names, check)
    }
    if not folders:
        raise UserError(
            f"{root} holds no folder such as 'frontal-0103'; give the folder of the "
            "benchmark's results."
        )
    runs: dict[str, dict[str, list[dict[str, float | None]]]] = {}
    for (scenario, sequence), folder in Progress(folders.items(), desc="sequences", leave=False):
        metrics = [
            _read_metrics(file)
            for run in _run_folders(folder)
            if (file := _metrics_file(run, check)) is not None
        ]
        if not metrics:
            raise UserError(
                f"{folder} holds no run_*/metrics.json; run the sequence, or remove the folder."
            )
        runs.setdefault(scenario, {})[sequence] = metrics
    counts = {
        f"{scenario}-{sequence}": len(metrics)
        for scenario, of_scenario in runs.items()
        for sequence, metrics in of_scenario.items()
    }
    most, fewest = max(counts, key=lambda k: counts[k]), min(counts, key=lambda k: counts[k])
    if check and counts[most] != counts[fewest]:
        raise UserError(
            f"Every sequence should have equally many runs; {most} has {counts[most]}, {fewest} "
            f"has {counts[fewest]}: finish the runs, or aggregate without the check."
        )
    return runs


def _sequence_folders(
    root: Path, scenario: str, sequences: Sequence[str], check: bool
) -> list[tuple[str, Path]]:
    """Sequences of a scenario with their folders: those of the benchmark, or those that exist."""
    if check:
        folders = [(sequence, root / f"{scenario}-{sequence}") for sequence in sequences]
        if missing := [folder.name for _, folder in folders if not folder.is_dir()]:
            raise UserError(
                f"{root} lacks {len(missing)} of {len(sequences)} '{scenario}' sequences "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); run them, or "
                "aggregate without the check."
            )
        return folders
    name = re.compile(rf"{re.escape(scenario)}-(\d+)")
    return [
        (m[1], path) for path in listed(root) if path.is_dir() and (m := name.fullmatch(path.name))
    ]


def _run_folders(folder: Path) -> list[Path]:
    return [path for path in listed(folder, "run_*") if path.is_dir()]


def _metrics_file(run: Path, check: bool) -> Path | None:
    file = run / "metrics.json"
    if file.is_file():
        return file
    if check:
        raise UserError(
            f"{run} has no metrics.json; finish the run, or aggregate without the check."
        )
    return None


def _read_metrics(file: Path) -> dict[str, float | None]:
    try:
        raw = parse_json(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); run it again.") from None
    if not isinstance(raw, dict):
        raise UserError(
            f"{file} should hold an object of metrics, found a {type(raw).__name__}; run it again."
        )
    metrics = {name: value for name, value in raw.items() if "info" not in name}
    for name, value in metrics.items():
        if value is not None and (
            not isinstance(value, int | float) or abs(value) > sys.float_info.max
        ):
            raise UserError(
                f"{file} should hold finite numbers, found {name} = "
                f"{str(value)[:40]!r}; run it again."
            )
    return metrics


def _values(level: Any, kind: str) -> Any:
    if isinstance(level, Spread):
        return {
            name: None if math.isnan(value) else value
            for name, value in getattr(level, kind).items()
        }
    return {name: _values(below, kind) for name, below in level.items()}
