"""Commands that must be refused in one sentence and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from foreact.cli import main

Capture = pytest.CaptureFixture[str]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of a folder with its size and time of change."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


@pytest.fixture
def refused(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command that must fail without a trace on disk; returns its sentence."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str | Path, may_begin: bool = False) -> str:
        before = listing(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(word) for word in argv])
        assert exit_.value.code == 2
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if "\r" not in line and line.strip()]
        sentence = lines[-1]
        assert [line for line in lines if line.startswith("foreact: ")] == [sentence]
        if not may_begin:  # no bar was shown before
            assert err == sentence + "\n"
        assert "Traceback" not in err
        assert sentence[-1] in ".?"
        assert len(sentence) < 600
        if not may_begin:
            assert listing(tmp_path) == before
        return sentence.removeprefix("foreact: ")

    return run
