"""The self-contained page `report.html`: curves, scores, films and imagined futures."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from foreact.errors import UserError, room_or
from foreact.evals.closed_loop import ClosedLoopResult, versions
from foreact.evals.estimate import interval_text
from foreact.evals.figures import FigurePair, curves_figure, quality_figure, scores_figure
from foreact.evals.video import VideoQuality

SIZE_LIMIT = 20_000_000
"""Bytes of a page that browsers open and mail servers carry."""

MEDIA = {".png": "image/png", ".mp4": "video/mp4"}


@dataclass(frozen=True)
class Media:
    """A PNG or mp4 file to show, with a line of text below it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page that a system adds: a heading and HTML, such as `render_section` makes."""

    title: str
    html: Markup


def render_section(title: str, template: str, **values: Any) -> Section:
    """A section from a Jinja template, in which `figure(pair, alt)` shows a `FigurePair`."""

    def figure(pair: FigurePair | None, alt: str) -> Markup:
        uris = _figure(pair)
        return Markup("") if uris is None else Markup(_FIGURE).format(**uris, alt=alt)

    html = _environment().from_string(template).render(figure=figure, **values)
    return Section(title, Markup(html))


_FIGURE = """<picture>
<source media="(prefers-color-scheme: dark)" srcset="{dark}">
<img src="{light}" alt="{alt}">
</picture>
"""


def write_report(
    path: Path,
    *,
    title: str,
    score_note: str = "",
    results: Sequence[ClosedLoopResult] = (),
    log: Sequence[Mapping[str, Any]] = (),
    quality: Sequence[VideoQuality] = (),
    sections: Sequence[Section] = (),
    futures: Sequence[Media] = (),
    pictures: Sequence[Media] = (),
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    size_limit: int = SIZE_LIMIT,
) -> Path:
    """Write a self-contained page; a section without content is left out.

    Args:
        path: the HTML file; it appears when it is whole.
        title: heading of the page.
        score_note: what the score of an episode means, in one sentence.
        results: closed-loop results; the first is the subject, the others are there to compare.
        log: entries of a training log, {"step": int, name: number}.
        quality: measured video quality.
        sections: what a system has to add, below the scores.
        futures: strips and films of imagined next to true futures.
        pictures: other pictures of what was measured, such as plans.
        config: the resolved configuration of the run.
        facts: short statements for the end of the page, such as command, hardware and training
            time.
        size_limit: bytes; media that no longer fit are named, not shown.

    Raises:
        UserError: a picture or film is missing or of another kind, or the disk refuses.
    """
    films = [
        Media(
            r.folder / e.video, f"{r.name}, seed {e.seed}: score {e.score:.3f} in {e.steps} steps"
        )
        for r in results
        if r.folder is not None
        for e in r.episodes
        if e.video
    ]
    figures = {
        "curves": curves_figure(log),
        "scores": scores_figure(results),
    }
    qualities = [{"result": q, "figure": _figure(quality_figure(q))} for q in quality]
    # Films are the bulk of the page; leave room for text and figures.
    budget = size_limit - 500_000 - _size(figures.values()) - sum(len(s.html) for s in sections)
    shown_futures, left_futures, budget = _embedded(futures, budget)
    shown_pictures, left_pictures, budget = _embedded(pictures, budget)
    shown_films, left_films, _ = _embedded(films, budget)
    html = _template().render(
        title=title,
        summary=_summary(results),
        score_note=score_note,
        results=results,
        interval_text=interval_text,
        any_solved=any(r.success is not None for r in results),
        same_seeds=len({tuple(e.seed for e in r.episodes) for r in results}) <= 1,
        figures={name: _figure(pair) for name, pair in figures.items()},
        qualities=qualities,
        sections=sections,
        futures=shown_futures,
        pictures=shown_pictures,
        films=shown_films,
        left_out=[*left_futures, *left_pictures, *left_films],
        config=None if config is None else json.dumps(config, indent=2, default=str),
        facts=dict(facts or {}),
        versions=dict(results[0].versions) if results else versions(),
    )
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"The report {path} could not be written ({error.strerror}); "
            f"{room_or(error, 'choose another --out')}."
        ) from error
    return path


def _summary(results: Sequence[ClosedLoopResult]) -> str:
    """What was found, in one sentence; "" without results."""
    if not results:
        return ""
    first, others = results[0], results[1:]
    text = (
        f"{first.name} scores {first.score.mean:.3f} on average over {first.score.n} episodes "
        f"({'95 % interval ' * first.score.has_interval}{interval_text(first.score)})"
    )
    if first.success is not None:
        text += f" and solves {first.success.mean:.0%} of them"
    if others:
        text += "; in comparison, " + ", ".join(
            f"{o.name} scores {o.score.mean:.3f}" for o in others
        )
    return text + "."


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _template() -> jinja2.Template:
    return _environment().from_string(
        files("foreact.evals").joinpath("report.html.j2").read_text(encoding="utf-8")
    )


def _size(pairs: Iterable[FigurePair | None]) -> int:
    """Bytes of figures in the page."""
    return sum(len(pair.light) + len(pair.dark) for pair in pairs if pair) * 4 // 3


def _figure(pair: FigurePair | None) -> dict[str, str] | None:
    if pair is None:
        return None
    return {"light": _data_uri(pair.light, "image/png"), "dark": _data_uri(pair.dark, "image/png")}


def _embedded(media: Sequence[Media], budget: int) -> tuple[list[dict[str, str]], list[str], int]:
    """Embed files as data URIs within `budget` bytes; (shown, omitted captions, budget left)."""
    embedded, omitted = [], []
    for item in media:
        kind = MEDIA.get(item.path.suffix)
        if kind is None:
            raise UserError(
                f"A report shows .png and .mp4 files, found {item.path}; convert it "
                "or leave it out."
            )
        try:
            data = item.path.read_bytes()
        except OSError as error:
            raise UserError(
                f"The report should show {item.path}, which cannot be read ({error.strerror})."
            ) from error
        uri = _data_uri(data, kind)
        if len(uri) > budget:
            omitted.append(f"{item.caption} ({item.path.name})")
            continue
        budget -= len(uri)
        embedded.append({"uri": uri, "caption": item.caption, "kind": kind})
    return embedded, omitted, budget


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
