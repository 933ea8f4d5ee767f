"""Tables and the figure of a replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foreact.data.stores.findings import Finding
from foreact.evals.figures import COLOURS, FigurePair, figure_pair
from foreact.evals.replay import Replayed, Stream
from foreact.evals.report import Section, render_section

SECTION = """
<ul>
{% for finding in findings %}
<li>{{ finding.severity }}: {{ finding.text }}</li>
{% endfor %}
</ul>
{{ figure(drift, "How far each state stream drifts over time") }}
<table>
<tr>{% for cell in rows[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows[1:] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
"""


def table(streams: Sequence[Stream], replayed: Sequence[Replayed]) -> list[list[str]]:
    """A row per episode below the row of titles; drifts as mean / largest."""
    cameras = list(replayed[0].pictures)
    titles = ["episode", "frames", "score", "recorded"]
    titles += [f"{s.name} ({s.unit})" for s in streams] + [f"{name} (dB)" for name in cameras]
    rows = [titles]
    for r in replayed:
        recorded = "" if r.recorded_score is None else f"{r.recorded_score:.3f}"
        row = [r.name, f"{r.steps}/{r.recorded_steps}", f"{r.score:.3f}", recorded]
        row += [f"{r.drift[s.name].mean():.3f} / {r.drift[s.name].max():.3f}" for s in streams]
        row += [f"{r.pictures[name].mean():.1f}" for name in cameras]
        rows.append(row)
    return rows


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def to_json(
    streams: Sequence[Stream], replayed: Sequence[Replayed], found: Sequence[Finding]
) -> dict[str, Any]:
    """All of a replay but its pictures' single frames."""
    return {
        "findings": [{"severity": f.severity, "text": f.text} for f in found],
        "units": {s.name: s.unit for s in streams},
        "episodes": [
            {
                "episode": r.episode,
                "name": r.name,
                "start": r.start,
                "frames": r.steps,
                "recorded_frames": r.recorded_steps,
                "score": r.score,
                "recorded_score": r.recorded_score,
                "drift": {name: values.tolist() for name, values in r.drift.items()},
                "psnr_db": {name: float(values.mean()) for name, values in r.pictures.items()},
                "first_picture_db": [
                    {"recorded": a, "simulated": b, "orientation": o, "psnr_db": db}
                    for (a, b, o), db in r.first_picture.items()
                ],
            }
            for r in replayed
        ],
    }


def section(
    streams: Sequence[Stream], replayed: Sequence[Replayed], found: Sequence[Finding]
) -> Section:
    """The part of a report that shows a replay."""
    return render_section(
        "Replay of recorded actions",
        SECTION,
        findings=found,
        drift=drift_figure(streams, replayed),
        rows=table(streams, replayed),
    )


def drift_figure(streams: Sequence[Stream], replayed: Sequence[Replayed]) -> FigurePair | None:
    """Drift over steps: a panel per state stream, a line per episode; None without streams."""
    if not streams:
        return None

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(streams), squeeze=False)[0]
        for ax, stream in zip(panels, streams, strict=True):
            for number, r in enumerate(replayed):
                drift = r.drift[stream.name]
                ax.plot(np.arange(len(drift)), drift, lw=1, color=COLOURS[number % len(COLOURS)])
            ax.set_title(f"{stream.name} ({stream.unit})", fontsize=10)
            ax.set_xlabel("step of the episode")
            ax.set_ylim(bottom=0)

    return figure_pair(draw, (3.6 * len(streams), 2.8))
