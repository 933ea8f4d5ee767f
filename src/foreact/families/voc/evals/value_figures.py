"""Figures of measured values: estimates over true values, and how far ahead sampled futures lie."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from foreact.evals.estimate import interval_text
from foreact.evals.figures import COLOURS, FigurePair, figure_pair
from foreact.evals.report import Section, render_section
from foreact.families.voc.evals.delays import Delays
from foreact.families.voc.evals.values import Values

BARS = 24
"""Of a histogram of delays; what lies beyond its last bar is gathered in it."""


def values_figure(values: Sequence[Values]) -> FigurePair | None:
    """Estimated over true values: a panel per gamma, a colour per grade, standard errors."""
    if not values:
        return None

    def draw(figure: Any) -> None:
        for ax, result in zip(
            figure.subplots(1, len(values), squeeze=False)[0], values, strict=True
        ):
            grades = result.grades
            names = [""] * len(result.truth) if grades is None else [str(g) for g in grades]
            for number, name in enumerate(sorted(set(names))):
                rows = np.array([n == name for n in names])
                ax.errorbar(
                    result.truth[rows],
                    result.sampled[rows],
                    yerr=result.error[rows],
                    fmt="o",
                    ms=3,
                    lw=0.8,
                    alpha=0.6,
                    color=COLOURS[number % len(COLOURS)],
                    label=name,
                )
            both = np.concatenate([result.truth, result.sampled])
            ends = np.array([both.min(), both.max()])
            ax.plot(ends, ends, "--", lw=1, color=ax.spines["left"].get_edgecolor(), alpha=0.6)
            ax.set_title(f"gamma {result.gamma:g}", fontsize=10)
            ax.set_xlabel("true discounted return")
            ax.set_ylabel("estimate from sampled futures")
            if result.grades is not None:
                ax.legend(fontsize=8, frameon=False)

    return figure_pair(draw, (4.2 * len(values), 3.8))


def delays_figure(values: Sequence[Values]) -> FigurePair | None:
    """Shares of samples by the delay of their nearest true state, with the geometric law."""
    if not values:
        return None

    def draw(figure: Any) -> None:
        for ax, result in zip(
            figure.subplots(1, len(values), squeeze=False)[0], values, strict=True
        ):
            edges, shares, law = delay_bars(result.delays)
            ax.bar(
                edges[:-1],
                shares,
                width=np.diff(edges),
                align="edge",
                color=COLOURS[0],
                alpha=0.5,
                label="samples",
            )
            ax.stairs(law, edges, color=COLOURS[1], lw=1.6, label="geometric law")
            ax.set_title(f"gamma {result.gamma:g}", fontsize=10)
            ax.set_xlabel("steps to the nearest true state")
            ax.set_ylabel("share")
            ax.legend(fontsize=8, frameon=False)

    return figure_pair(draw, (4.2 * len(values), 3.0))


def delay_bars(delays: Delays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bars over about four mean delays: edges (n + 1,), shares of samples and of the law (n,).

    A bar holds the delays from its left edge up to, not including, its right one.
    """
    width = max(1, round(4 * delays.mean_law / BARS))
    count = min(BARS, -(-len(delays.shares) // width))
    bar = np.minimum(np.arange(len(delays.shares)) // width, count - 1)
    shares, law = (
        np.bincount(bar, weights=w, minlength=count) for w in (delays.shares, delays.law)
    )
    return 1 + width * np.arange(count + 1), shares, law


def values_section(values: Sequence[Values]) -> Section:
    """The part of a report that shows measured values of states, one entry per gamma."""
    template = (
        files("foreact.families.voc.evals").joinpath("values.html.j2").read_text(encoding="utf-8")
    )
    accuracy, delays = values_figure(values), delays_figure(values)
    return render_section(
        "Values of states",
        template,
        values=values,
        accuracy=accuracy,
        delays=delays,
        interval_text=interval_text,
    )
