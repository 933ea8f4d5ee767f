"""`foreact demo voc` on a world of its own: the whole road, and
what it does when it is walked again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from markupsafe import Markup
from support.square_world import write_squares

from foreact.commands.demos.voc import TOKENIZER, demo
from foreact.errors import UserError
from foreact.evals.closed_loop import read_closed_loop
from foreact.evals.report import Section
from foreact.families.voc import train as voc
from foreact.families.voc.policy import PlanningConfig


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_demo_ends_in_one_report_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = dataclasses.replace(TOKENIZER, channels=8, multipliers=(1, 1, 1), image_size=(12, 12))
    for name, value in {
        "TOKENIZER": small,
        "GAMMAS": (0.5, 0.8),
        "PLANNING": PlanningConfig(candidates=4, samples=1, iterations=1, elites=2),
    }.items():
        monkeypatch.setattr(f"foreact.commands.demos.voc.{name}", value)
    pocket = voc.recipe("pocket")
    narrow = dataclasses.replace(pocket.model, width=16, heads=2, layers=1, reward_hidden=8)
    monkeypatch.setattr(voc, "recipe", lambda size, **_: dataclasses.replace(pocket, model=narrow))
    store = write_squares(tmp_path / "squares.zarr", episodes=8, steps=30)

    def run() -> str:
        demo(tmp_path / "demo", task="support.square_world", data=store, effort=0.002, decisions=4)
        return (tmp_path / "demo" / "report.html").read_text()

    page = run()
    for heading in ("Scores in closed loop", "Values of states", "Imagined futures", "Training"):
        assert heading in page
    assert page.count("<video") == 3
    assert read_closed_loop(tmp_path / "demo" / "acting" / "bc").protocol["max_steps"] == 4
    assert "gamma" in page
    kept = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "demo").glob("*/weights/model.safetensors")
    }
    assert {p.parts[-3] for p in kept} == {"tokenizer", "voc", "cloning"}
    films = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo" / "acting").glob("*/*.mp4")}
    capsys.readouterr()
    monkeypatch.setattr(
        "foreact.commands.demos.voc.values_section",
        lambda _: Section("Values of states", Markup("")),
    )
    for measured_anew in ("values", "generate"):
        monkeypatch.setattr(f"foreact.commands.demos.voc.{measured_anew}", lambda *_, **__: [])
    run()
    assert "step 1/" not in capsys.readouterr().out  # nothing is trained twice
    assert {p: p.stat().st_mtime_ns for p in films} == films


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 episodes or more"):
        demo(tmp_path, episodes=3)
    with pytest.raises(UserError, match="positive effort"):
        demo(tmp_path, effort=0.0)
    with pytest.raises(UserError, match="1 decision or more"):
        demo(tmp_path, decisions=0)
    with pytest.raises(UserError, match="name a store with --data"):
        demo(tmp_path, task="support.square_world")
