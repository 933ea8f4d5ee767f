"""Files that are damaged at random end every command in one sentence; see tests/fuzz.py."""

from __future__ import annotations

import fuzz
import pytest
from support.processes import Forked

CASES = {"stores": 60, "driving": 30, "weights": 44, "archives": 30}


@pytest.mark.parametrize("group", CASES)
def test_damaged_files_are_read_or_refused(group: str) -> None:
    words = ["--reader", group, "--cases", str(CASES[group]), "--seed", "1"]
    process = Forked(fuzz.main, words)
    assert process.wait() == 0, process.output + process.errors
    assert process.output.count("\n") > 2, "the table"
