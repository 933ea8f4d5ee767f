"""Processes that share work through files: they see each other's progress, failures and silence."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from foreact.errors import UserError
from foreact.runs.ranks import Ranks


def test_alone_nothing_is_written(tmp_path: Path) -> None:
    ranks = Ranks()
    with ranks.working(tmp_path):
        ranks.report(3)
        ranks.check()
        assert list(ranks.wait(lambda: 0)) == [0]
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"RANK should be in 0..1 for WORLD_SIZE 2, found 2"):
        Ranks.of_torchrun()


def test_the_first_waits_as_long_as_the_others_show_life(tmp_path: Path) -> None:
    first, second = Ranks(0, 2, patience=0.6), Ranks(1, 2)
    left, reports = [4], 4

    def work() -> None:
        with second.working(tmp_path):
            for _ in range(reports):
                threading.Event().wait(0.3)
                second.report(1)
                left[0] -= 1

    with first.working(tmp_path):
        thread = threading.Thread(target=work)
        thread.start()
        seen = list(first.wait(lambda: left[0]))  # 1.2 s, twice the patience
        thread.join()
    assert seen[0] > 0
    assert seen[-1] == 0
    assert seen == sorted(seen, reverse=True)


def test_a_failure_reaches_the_others_with_its_sentence(tmp_path: Path) -> None:
    first, second = Ranks(0, 2), Ranks(1, 2)
    with first.working(tmp_path):
        first.check()
        with pytest.raises(UserError, match="no room"), second.working(tmp_path):
            raise UserError("There is no room.")
        with pytest.raises(UserError, match=r"^Process 1 failed: There is no room\.$"):
            first.check()
        with pytest.raises(UserError, match="Process 1 failed"):
            list(first.wait(lambda: 1))


def test_the_failure_that_is_told_is_the_first(tmp_path: Path) -> None:
    first, second, third = (Ranks(i, 3) for i in range(3))
    with third.working(tmp_path):
        with pytest.raises(UserError, match=r"^Process 1 failed: Torn\.$"), first.working(tmp_path):  # noqa: PT012
            with pytest.raises(ValueError, match="Torn"), second.working(tmp_path):
                raise ValueError("Torn.")
            first.check()
        with pytest.raises(UserError, match=r"^Process 1 failed: Torn\.$"):
            third.check()


def test_notes_of_an_earlier_run_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="earlier"), Ranks(1, 2).working(tmp_path):
        raise ValueError("an earlier run")
    first = Ranks(0, 2, patience=0.3)
    with first.working(tmp_path):
        first.check()
        with pytest.raises(
            UserError,
            match=r"7 frames of the other 1 processes .* for 0.3 s; process 1 said: an earlier",
        ):
            list(first.wait(lambda: 7))


def test_the_same_failure_again_is_news(tmp_path: Path) -> None:
    def fail() -> None:
        with pytest.raises(ValueError, match="again"), Ranks(1, 2).working(tmp_path):
            raise ValueError("again")

    fail()
    first = Ranks(0, 2)
    with first.working(tmp_path):
        fail()
        with pytest.raises(UserError, match="Process 1 failed: again"):
            first.check()


def test_steps_are_counted(tmp_path: Path) -> None:
    second = Ranks(1, 2)
    with second.working(tmp_path):
        second.report(3)
        second.report(4)
    assert json.loads((tmp_path / "1.json").read_text())["steps"] == 7
