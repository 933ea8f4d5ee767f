"""Progress where no terminal is: lines, some of them, and never a bar."""

from __future__ import annotations

import pytest

from foreact import progress
from foreact.progress import Progress

Capture = pytest.CaptureFixture[str]


def test_quick_work_has_a_line_for_every_tenth(capsys: Capture) -> None:
    assert list(Progress(range(1000), desc="import", unit="frame")) == list(range(1000))
    err = capsys.readouterr().err
    assert "\r" not in err
    lines = err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("import 100/1000 frame, ")
    assert lines[-1].startswith("import 1000/1000 frame, ")


def test_few_items_have_a_line_each_and_those_done_before_none(capsys: Capture) -> None:
    with Progress(total=4, initial=2, desc="collect", unit="ep") as bar:
        bar.update()
        bar.update()
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "collect 3/4 ep",
        "collect 4/4 ep",
    ]


def test_slow_work_of_unknown_size_is_heard_of_now_and_then_and_at_its_end(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds)
    with Progress[int](unit="B", unit_scale=True) as bar:
        for _ in range(7):
            seconds += 10.0
            bar.update(1000)
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "3.00k B",
        "6.00k B",
        "7.00k B",
    ]


def test_what_is_disabled_says_nothing(capsys: Capture) -> None:
    assert list(Progress([1, 2], disable=True)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    assert list(Progress([1, 2], desc="import")) == [1, 2]
    err = capsys.readouterr().err
    assert "\rimport: 100%" in err
    assert "2/2" in err
