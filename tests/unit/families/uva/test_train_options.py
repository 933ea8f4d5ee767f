"""Options that the training would ignore or fail at are refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreact.cli import run
from foreact.errors import UserError


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--model.past-actions"], "--model.past-actions needs data that no training reads yet"),
        (["--model.text-dim", "512"], "--model.text-dim needs data"),
        (["--model.wrist-camera", "wrist"], "--model.wrist-camera needs data"),
        (["--model.text-drop", "0.5"], "--model.text-drop has no effect without instructions"),
        (["--model.past-action-keep", "1"], "--model.past-action-keep has no effect without past"),
        (["--model.no-wrist-context"], "--model.wrist-context has no effect without a wrist"),
        (["--model.video-diffusion-steps", "9"], "has no effect without the other --model.head"),
        (["--size", "base", "--model.flow-solver", "midpoint"], "--model.flow-solver has no"),
        (["--eval-seeds", "-1"], "--eval-seeds should be 0 or more"),
    ],
)
def test_options_without_data_or_effect(
    options: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=problem):
        run(["train", "uva", *options])
    assert not any(tmp_path.iterdir())
