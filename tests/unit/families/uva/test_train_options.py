"""Options that the training would ignore or fail at are refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreact.cli import run
from foreact.errors import UserError


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--model.text-dim", "512"], "name the encoder that makes them with --text-encoder"),
        (["--model.wrist-camera", "wrist"], r"'wrist'; task 'pusht' has \['img'\]"),
        (["--model.text-drop", "0.5"], "--model.text-drop has no effect without --model.text-dim"),
        (["--model.past-action-keep", "1"], "has no effect without --model.past-actions"),
        (["--model.no-wrist-context"], "has no effect without --model.wrist-camera"),
        (["--model.video-diffusion-steps", "9"], "has no effect without --model.head diffusion"),
        (["--video-share", "0.2"], "--video-share has no effect without --video-data"),
        (["--episode-lists", "a.json"], "give the mixture's .json file with --data"),
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
