"""The training of the PushT demo is a possible one, however short."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreact.commands.demos.pusht import SHIPPED, continued


@pytest.mark.parametrize("steps", [1, 5, 150])
def test_the_demo_trains_for_any_number_of_steps(tmp_path: Path, steps: int) -> None:
    run = continued(tmp_path / "training", tmp_path / "d.zarr", steps)
    assert run.train.steps == steps
    assert run.init == SHIPPED
    assert run.train.lr_factor(steps - 1) <= 1.0
