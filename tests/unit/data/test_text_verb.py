"""`foreact data text`: what the episodes are told, how often, and which sentences are alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.arrays import ArrayStore
from support.text_encoders import write_minilm

from foreact.cli import main
from foreact.data.instructions import list_instructions
from foreact.data.stores.text_features import TextFeatures
from foreact.data.stores.writer import StoreWriter
from foreact.types import StreamSpec

SPEC = StreamSpec(cameras={"cam": (4, 4)}, fps=10.0, has_text=True)


def written(path: Path, told: Sequence[tuple[str, int]]) -> Path:
    with StoreWriter(path, SPEC) as writer:
        for text, length in told:
            writer.append({"cam": np.zeros((length, 4, 4, 3), np.uint8)}, text=text)
    return path


class TwiceTold(ArrayStore):
    """Three episodes; the second is told something else at its last step."""

    def __init__(self) -> None:
        super().__init__(SPEC, (2, 3, 1), {})

    @property
    def instructions(self) -> list[str]:
        return ["open", "wait", "shut"]

    def instruction_of(self, rows: np.ndarray) -> np.ndarray:
        return np.array([0, 0, 0, 0, 1, 2])[rows]


def test_episodes_and_steps_are_counted() -> None:
    found = [(i.text, i.episodes, i.steps, i.nearest) for i in list_instructions(TwiceTold())]
    assert found == [("open", 2, 4, None), ("wait", 1, 1, None), ("shut", 1, 1, None)]


def test_the_nearest_instruction_is_that_of_the_smallest_angle() -> None:
    rows = np.array([[2, 0], [0, 1], [3, 3]], np.float32)  # of different lengths
    features = TextFeatures(
        texts=("open", "wait", "shut"), features=rows, encoder="e", hash="sha256:0"
    )
    found = list_instructions(TwiceTold(), features)
    assert [i.nearest for i in found] == ["shut", "shut", "open"]
    assert found[0].cosine == pytest.approx(np.sqrt(0.5))


def test_the_verb_lists_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = [("open door", 2), ("door !", 3), ("open door", 1)]
    store = written(tmp_path / "d.zarr", told)
    main(["data", "text", "--store", str(store)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["2", "3", "open", "door"],
        ["1", "3", "door", "!"],
    ]
    assert not (store / "text").exists()
    write_minilm(tmp_path / "weights")
    main(["data", "text", "--store", str(store), "--encoder", f"minilm:{tmp_path}/weights"])
    out = capsys.readouterr().out
    assert "to 'door !'" in out
    assert "64 features each, by minilm sha256:" in out
    assert len(list((store / "text").glob("minilm-*.safetensors"))) == 1
