"""Seeds of every verb lie where every simulator and generator takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from foreact.cli import run
from foreact.errors import UserError
from foreact.seeds import LARGEST, require_seeds


@pytest.mark.parametrize(("first", "count"), [(-5, 1), (2**32, 1), (LARGEST, 2), (-1, 3)])
def test_seeds_outside_are_refused(first: int, count: int) -> None:
    with pytest.raises(UserError, match=re.escape("0..4294967295 (2**32 - 1), found")):
        require_seeds(first, count)


def test_the_ends_are_taken() -> None:
    require_seeds(0)
    require_seeds(LARGEST)
    require_seeds(LARGEST - 1, 2)


@pytest.mark.parametrize("seed", [-5, 2**32])
@pytest.mark.parametrize(
    ("verb", "option"),
    [
        (["eval", "closed-loop", "--weights", "do-nothing", "--seeds", "1"], "--first-seed"),
        (["eval", "control", "--episodes", "1"], "--first-seed"),
        (["eval", "values", "--weights", "w", "--data", "d"], "--seed"),
        (["eval", "video", "--weights", "uva-pusht"], "--seed"),
        (["eval", "probe", "--weights", "w", "--data", "d"], "--seed"),
        (["eval", "open-loop", "--weights", "w", "--data", "d"], "--seed"),
        (["generate", "--weights", "uva-pusht"], "--seed"),
        (["data", "collect", "--episodes", "1"], "--first-seed"),
        (["data", "collect", "--env", "dmc/cheetah_run", "--episodes", "1"], "--first-seed"),
        (["data", "toy-street", "--out", "o"], "--seed"),
        (["data", "remaining", "--windows", "4", "--out", "o"], "--seed"),
        (["scaling", "coord-check", "--sources", "s"], "--seed"),
        (["serve", "neuroncap", "--weights", "w"], "--seed"),
        (["train", "uva"], "--train.seed"),
    ],
)
def test_every_verb_refuses_them(
    verb: Sequence[str], option: str, seed: int, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=option):
        run([*verb, f"{option}={seed}"])
    assert not any(tmp_path.iterdir())
