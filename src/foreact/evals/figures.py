"""Figures as PNG bytes; the report's for light and dark pages. Knows no HTML."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreact.evals.closed_loop import ClosedLoopResult
from foreact.evals.video import VideoQuality
from foreact.types import ActionSpec, Estimate

NOT_CURVES = {"step", "skipped", "samples_per_s", "data_wait", "seconds"}
"""Log entries about the machine, not about learning."""

COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#14b8a6", "#ec4899", "#84cc16")
"""Told apart on white and on black."""


@dataclass(frozen=True)
class FigurePair:
    """The same figure for either colour scheme, PNG."""

    light: bytes
    dark: bytes


def curves_figure(log: Sequence[Mapping[str, Any]]) -> FigurePair | None:
    """Training curves: loss terms in one panel, other numbers in one each; None if no entries."""
    names = sorted(
        {k for entry in log for k, v in entry.items() if k not in NOT_CURVES and _is_number(v)}
    )
    if not names:
        return None
    terms = [n for n in names if "/" not in n and n != "lr"]
    panels = ([("loss", terms)] if terms else []) + [(n, [n]) for n in names if n not in terms]

    def draw(figure: Any) -> None:
        axes = np.atleast_1d(
            figure.subplots(-(-len(panels) // 3), min(3, len(panels)), squeeze=False)
        ).ravel()
        for ax, (title, lines) in zip(axes, panels, strict=False):
            for colour, name in enumerate(lines):
                points = [(e["step"], e[name]) for e in log if _is_number(e.get(name))]
                steps, values = (np.array(v, dtype=float) for v in zip(*points, strict=True))
                shade = COLOURS[colour % len(COLOURS)]
                marker = "o" if len(steps) < 20 else ""
                ax.plot(steps, values, color=shade, lw=1, alpha=0.35, marker=marker, ms=3)
                # Losses are noisy draws; schedules and measurements are shown as they are.
                ax.plot(
                    steps,
                    _smoothed(values) if name in terms else values,
                    color=shade,
                    lw=1.6,
                    label=name,
                )
            ax.set_title(title, fontsize=10)
            ax.set_xlabel("optimiser step")
            if len(lines) > 1:
                ax.legend(fontsize=8, frameon=False)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()

    return figure_pair(draw, (4.0 * min(3, len(panels)), 3.0 * -(-len(panels) // 3)))


def scores_figure(results: Sequence[ClosedLoopResult]) -> FigurePair | None:
    """Each episode's score as a dot, a row per policy, mean and interval; None if no results."""
    if not results:
        return None

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        for row, result in enumerate(results):
            shade = COLOURS[row % len(COLOURS)]
            scores = np.array([e.score for e in result.episodes])
            # Spread by a fixed pattern, so that equal scores do not hide each other.
            spread = ((np.arange(len(scores)) * 0.618) % 1.0 - 0.5) * 0.5
            ax.scatter(scores, row + spread, s=18, color=shade, alpha=0.55, linewidths=0)
            mean = result.score
            reach = [[mean.mean - mean.low], [mean.high - mean.mean]] if mean.has_interval else None
            ax.errorbar(
                [mean.mean],
                [row],
                xerr=reach,
                fmt="D",
                ms=7,
                lw=2.5,
                capsize=6,
                color=shade,
                markeredgecolor=ax.spines["left"].get_edgecolor(),
                zorder=3,
            )
        ax.set_yticks(range(len(results)), [r.name for r in results])
        ax.set_ylim(len(results) - 0.4, -0.6)
        ax.set_xlabel("score of an episode (dots); mean with 95 % interval (diamond)")
        ax.grid(axis="x", alpha=0.25)

    return figure_pair(draw, (8.0, 0.9 + 0.75 * len(results)))


def quality_figure(quality: VideoQuality) -> FigurePair:
    """PSNR and SSIM over the distance from now, against repeating the last frame."""

    def draw(figure: Any) -> None:
        for ax, name in zip(figure.subplots(1, 2), ("psnr", "ssim"), strict=True):
            for key, label, shade in (
                (name, "imagined", COLOURS[0]),
                (f"{name}_copy", "last frame repeated", COLOURS[1]),
                (f"{name}_tokenizer", "tokenizer alone", COLOURS[2]),
            ):
                if key not in quality.curves:
                    continue
                line: Sequence[Estimate] = quality.curves[key]
                ax.plot(
                    quality.steps_ahead,
                    [e.mean for e in line],
                    "o-",
                    color=shade,
                    label=label,
                    ms=4,
                )
                ax.fill_between(
                    quality.steps_ahead,
                    [e.low if e.has_interval else e.mean for e in line],
                    [e.high if e.has_interval else e.mean for e in line],
                    color=shade,
                    alpha=0.2,
                    lw=0,
                )
            ax.set_title("PSNR (dB)" if name == "psnr" else "SSIM", fontsize=10)
            ax.set_xlabel("steps ahead")
            ax.set_xticks(list(quality.steps_ahead))
            ax.legend(fontsize=8, frameon=False)

    return figure_pair(draw, (8.0, 3.0))


def actions_figure(spec: ActionSpec, actions: Mapping[str, np.ndarray]) -> bytes:
    """PNG of actions over time, a panel per dimension; label -> float (K, A), spec units."""

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, spec.dim, squeeze=False)[0]
        for i, ax in enumerate(axes):
            for colour, (label, values) in zip(COLOURS, actions.items(), strict=False):
                ax.plot(
                    np.arange(len(values)),
                    values[:, i],
                    color=colour,
                    marker="o",
                    ms=3,
                    label=label,
                )
            ax.set_title(f"{spec.names[i]} ({spec.units[i]})", fontsize=10)
            ax.set_xlabel("steps from now")
        axes[0].legend(fontsize=8, frameon=False)

    return _render(draw, (3.6 * spec.dim, 2.8), "#1f2328", transparent=False)


def figure_pair(draw: Callable[[Any], None], inches: tuple[float, float]) -> FigurePair:
    """Render `draw` on a matplotlib figure of (width, height) in light and dark colours."""
    return FigurePair(_render(draw, inches, "#1f2328"), _render(draw, inches, "#d6dae0"))


def _render(
    draw: Callable[[Any], None], inches: tuple[float, float], ink: str, *, transparent: bool = True
) -> bytes:
    # Imported here, since it takes a second and most commands draw nothing. No pyplot: it keeps
    # global figures.
    import matplotlib
    from matplotlib.figure import Figure

    inked = (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
    )
    style: dict[Any, Any] = dict.fromkeys(inked, ink) | {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, transparent=transparent)
    return buffer.getvalue()


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential average over about a fiftieth of the curve, started without bias."""
    keep = 1.0 - 1.0 / max(1.0, len(values) / 50)
    out, total, weight = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1.0
        out[i] = total / weight
    return out


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
    )
