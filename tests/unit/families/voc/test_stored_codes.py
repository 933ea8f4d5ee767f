"""Codes that a store holds are learned from, or it is said that they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.occupancy_worlds import MODEL, TOKENIZER, write_pushes

from foreact.data.stores.derived import write_stream
from foreact.data.stores.opening import open_episodes
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.train import VOCRun, _from_pixels
from foreact.runs.inputs import Split

FIRST = np.array([0, 1])
SPLIT = Split(training=FIRST, validation=np.array([2, 3]), fitted=FIRST)


def test_codes_that_are_not_used_are_told_of(tmp_path: Path) -> None:
    path = write_pushes(tmp_path / "s.zarr", episodes=4)
    write_stream(path, "tokens_pixels", np.zeros((48, 5, 5), np.uint16), attrs={"tokenizer": None})
    run = VOCRun(out=tmp_path / "run", vq=TOKENIZER, model=VOCConfig(**MODEL), val_ratio=0.5)
    with pytest.warns(UserWarning, match="are not used: without --tokenizer"):
        _from_pixels(run, open_episodes(path), SPLIT, "pixels", None)
