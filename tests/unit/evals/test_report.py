from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.page import Page

from foreact.errors import UserError
from foreact.evals.closed_loop import ClosedLoopResult, Episode
from foreact.evals.estimate import estimate, share
from foreact.evals.report import Media, write_report
from foreact.evals.video import VideoQuality

VOID = {"meta", "img", "br", "source", "link", "hr", "input"}


def result(
    name: str, scores: list[float], folder: Path | None = None, films: int = 0
) -> ClosedLoopResult:
    episodes = tuple(
        Episode(
            seed=100 + i,
            score=s,
            steps=50 + i,
            success=s >= 1,
            video=f"seed-{i}.mp4" if i < films else None,
        )
        for i, s in enumerate(scores)
    )
    return ClosedLoopResult(
        name=name,
        score=estimate(scores, valid_range=(0, 1)),
        success=share(sum(s >= 1 for s in scores), len(scores)),
        episodes=episodes,
        protocol={"env": "toy:make", "execute": 8},
        latency={"calls": 3, "mean_ms_per_call": 9.0, "mean_ms_per_chunk": 4.25},
        wall_s=12.0,
        versions={"foreact": "0.1.0"},
        folder=folder,
    )


def quality() -> VideoQuality:
    one = {
        k: estimate([20.0, 21.0, 23.0] if "psnr" in k else [0.7, 0.8, 0.9])
        for k in ("psnr", "psnr_copy", "ssim", "ssim_copy")
    }
    return VideoQuality(
        mode="dynamics",
        camera="img",
        estimates=one,
        curves={k: [e] * 4 for k, e in one.items()},
        steps_ahead=[4, 8, 12, 16],
        windows=9,
        seed=0,
    )


def media(folder: Path) -> tuple[Path, Path]:
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(folder / "strip.png")
    (folder / "seed-0.mp4").write_bytes(b"film" * 10)
    return folder / "strip.png", folder / "seed-0.mp4"


def test_a_full_page_is_well_formed_and_needs_nothing_beside_it(tmp_path: Path) -> None:
    strip, _ = media(tmp_path)
    log = [
        {"step": s, "loss": 1.0 / s, "action": 0.5 / s, "lr": 1e-4, "data_wait": 0.0}
        for s in range(1, 80)
    ]
    log.append({"step": 80, "closed_loop/score": 0.4})
    path = write_report(
        tmp_path / "out" / "report.html",
        title="PushT",
        score_note="1 means solved.",
        results=[
            result("UVA", [1.0, 0.5, 0.75], tmp_path, films=1),
            result("random", [0.1, 0.0, 0.2]),
        ],
        log=log,
        quality=[quality()],
        futures=[Media(strip, "episode 3, step 40")],
        config={"model": {"width": 64}, "path": Path("data")},
        facts={"training time": "3 min"},
    )
    page = Page(path.read_text())
    assert all(a.startswith("data:") for a in page.addresses)
    assert "script" not in page.tags
    assert page.headings == [
        "Scores in closed loop",
        "Episodes",
        "Imagined futures",
        "Training",
        "How this was made",
    ]
    for words in (
        "UVA scores 0.750 on average over 3 episodes",
        "in comparison, random scores 0.100",
        "1 means solved.",
        "All policies met the same episodes.",
        "Given the true actions, imagined frames reach",
        "episode 3, step 40",
        '"width": 64',
        "3 min",
        "UVA, seed 100: score 1.000 in 50 steps",
    ):
        assert words in page.text, words
    film = next(a for a in page.addresses if a.startswith("data:video/mp4"))
    assert base64.b64decode(film.split(",")[1]) == b"film" * 10


def test_figures_are_pictures_for_either_scheme(tmp_path: Path) -> None:
    path = write_report(
        tmp_path / "r.html", title="t", results=[result("a", [0.2, 0.4])], quality=[quality()]
    )
    figures = [a for a in Page(path.read_text()).addresses if a.startswith("data:image/png")]
    assert len(figures) == 4
    for address in figures:
        picture = np.asarray(
            Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGBA")
        )
        assert picture.shape[1] > 600
        assert picture[..., 3].min() == 0, "the page's ground should show through"
        assert len(np.unique(picture.view(np.uint32))) > 20, "nothing is drawn"
    assert figures[0] != figures[1]


def test_scores_that_solve_nothing_have_no_share_of_solved(tmp_path: Path) -> None:
    solved = result("a", [0.2, 1.0])
    episodes = tuple(replace(e, success=None) for e in solved.episodes)
    returns = replace(solved, name="b", success=None, episodes=episodes)
    page = Page(write_report(tmp_path / "returns.html", title="t", results=[returns]).read_text())
    assert "solve" not in page.text
    assert "Clopper" not in page.text
    page = Page(
        write_report(tmp_path / "both.html", title="t", results=[returns, solved]).read_text()
    )
    assert "50 %" in page.text.replace("\xa0", " ")


def test_empty_sections_are_left_out(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html", title="Nothing yet").read_text())
    assert page.headings == ["How this was made"]
    assert "torch" in page.text


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    strip, _ = media(tmp_path)
    path = write_report(
        tmp_path / "r.html",
        title=evil,
        score_note=evil,
        results=[result(evil, [0.5, 0.6])],
        futures=[Media(strip, f'"><img src=x onerror=1>{evil}')],
        config={"a": evil},
        facts={evil: evil},
    )
    page = Page(path.read_text())
    assert "script" not in page.tags
    assert all(a.startswith("data:") for a in page.addresses)
    assert page.text.count(evil) >= 5


def test_what_does_not_fit_is_named_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "seed-0.mp4").write_bytes(bytes(900_000))
    (tmp_path / "seed-1.mp4").write_bytes(b"small")
    (tmp_path / "seed-2.mp4").write_bytes(bytes(900_000))
    path = write_report(
        tmp_path / "r.html",
        title="t",
        results=[result("a", [0.2, 0.4, 0.5], tmp_path, films=3)],
        size_limit=1_900_000,
    )
    assert path.stat().st_size < 1_900_000
    page = Page(path.read_text())
    assert sum(a.startswith("data:video") for a in page.addresses) == 2
    assert "Not shown" in page.headings
    assert "seed 102: score 0.500 in 52 steps (seed-2.mp4)" in page.text


def test_different_seeds_are_told(tmp_path: Path) -> None:
    other = result("b", [0.1, 0.2, 0.3])
    path = write_report(tmp_path / "r.html", title="t", results=[result("a", [0.2, 0.4]), other])
    assert "The policies met different episodes" in Page(path.read_text()).text


def test_missing_or_foreign_media_are_refused_and_leave_no_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        write_report(tmp_path / "r.html", title="t", futures=[Media(tmp_path / "none.png", "")])
    with pytest.raises(UserError, match=r"\.png and \.mp4"):
        write_report(tmp_path / "r.html", title="t", futures=[Media(tmp_path / "x.gif", "")])
    assert not list(tmp_path.iterdir())
