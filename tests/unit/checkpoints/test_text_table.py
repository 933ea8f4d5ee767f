"""A checkpoint knows the instructions that it was trained on, and refuses what it cannot read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.text_encoders import LengthEncoder
from torch import nn

from foreact.checkpoints.format import load_checkpoint, save_checkpoint
from foreact.checkpoints.text import TextTable
from foreact.checkpoints.verify import verify
from foreact.data.stores.text_features import encode_texts
from foreact.errors import UserError
from foreact.plugs import FAMILIES, Family


@dataclass(frozen=True)
class ToyConfig:
    width: int = 2


class Toy(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.body = nn.Linear(config.width, 1)


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Family(
        name="toy", title="a toy", config=f"{__name__}:ToyConfig", module=f"{__name__}:Toy"
    )
    monkeypatch.setitem(FAMILIES.added, "toy", toy)


@pytest.fixture
def table() -> TextTable:
    return TextTable(encode_texts(LengthEncoder(), ["open it", "push"]))


def saved(path: Path, text: TextTable | None) -> str:
    model = Toy(ToyConfig())
    return save_checkpoint(
        path, family="toy", config=ToyConfig(), state=model.state_dict(), text=text
    )


def test_a_checkpoint_carries_its_instructions(tmp_path: Path, table: TextTable) -> None:
    saved(tmp_path / "w", table)
    found = load_checkpoint(tmp_path / "w").text
    assert found is not None
    assert found.known.texts == ("open it", "push")
    assert (found.known.encoder, found.known.hash) == ("length", "sha256:" + "1" * 64)
    np.testing.assert_array_equal(found.known.features, table.known.features)
    assert "2 instructions, 3 features by length sha256:1" in verify(tmp_path / "w")
    saved(tmp_path / "w", None)  # replaced as a whole
    assert load_checkpoint(tmp_path / "w").text is None


def test_damaged_instructions_are_refused(tmp_path: Path, table: TextTable) -> None:
    saved(tmp_path / "w", table)
    file = tmp_path / "w" / "text.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"text.safetensors is no whole file of text features"):
        load_checkpoint(tmp_path / "w")


def test_known_instructions_need_no_encoder(table: TextTable) -> None:
    found = table.features_for(["push", "open it", "push"])
    assert found.dtype == np.float32
    assert found[:, 0].tolist() == [4, 7, 4]


def test_new_instructions_are_encoded_by_the_same_encoder(table: TextTable) -> None:
    encoder = LengthEncoder()
    found = table.features_for(["close", "push", "wait!!", "close"], encoder)
    assert found[:, 0].tolist() == [5, 4, 6, 5]
    assert found[:, 1].tolist() == [ord(letter) for letter in "cpwc"]
    assert encoder.asked == ["close", "wait!!"]


def test_a_new_instruction_without_encoder_lists_the_known_ones(table: TextTable) -> None:
    with pytest.raises(
        UserError,
        match=r"not trained on the instruction 'shut'; it knows 'open it', 'push': give one of "
        r"them, or name its text encoder 'length' with --text-encoder\.",
    ):
        table.features_for(["push", "shut"])
    many = TextTable(encode_texts(LengthEncoder(), [f"task {i}" for i in range(25)]))
    with pytest.raises(UserError, match="'task 19' and 5 more: give one"):
        many.features_for(["shut"])


def test_another_encoder_is_refused_even_for_known_instructions(table: TextTable) -> None:
    with pytest.raises(
        UserError, match=r"text encoder 'length' sha256:1+, found 'length' sha256:2+; give the one"
    ):
        table.features_for(["push"], LengthEncoder("2"))
