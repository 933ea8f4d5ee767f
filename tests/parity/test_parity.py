"""Equality with numbers that the reference systems produced; see
`registry.py` for how a case is run.
"""

from __future__ import annotations

import pytest
from parity.registry import ADAPTERS, Case


def test_parity(case: Case) -> None:
    run = ADAPTERS.get((case.system, case.folder.name))
    if run is None:
        pytest.skip(f"no adapter for {case.system}/{case.folder.name} yet")
    run(case)
