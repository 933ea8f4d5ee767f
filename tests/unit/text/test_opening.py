"""Text encoders are found by name, by name and folder, and by import path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.text_encoders import write_minilm

from foreact.errors import UserError
from foreact.plugs import TEXT_ENCODERS, load_object
from foreact.text.frozen import FrozenEncoder
from foreact.text.opening import find_text_encoder
from foreact.types import TextEncoder

OWN = """
import numpy as np
from foreact.plugs import TextModel

class Vowels:
    name, hash, dim = "vowels", "sha256:0", 5

    def encode(self, texts):
        return np.array([[text.count(v) for v in "aeiou"] for text in texts], np.float32)

def open_vowels(folder, *, device):
    return Vowels()

def open_nothing(folder, *, device):
    return {}

ENCODER = TextModel(name="vowels", open="vowels:open_vowels")
NOTHING = TextModel(name="nothing", open="vowels:open_nothing")
"""


@pytest.mark.parametrize("name", TEXT_ENCODERS.built_in)
def test_every_path_of_a_text_encoder_leads_somewhere(name: str) -> None:
    found = TEXT_ENCODERS.find(name)
    assert found.name == name
    assert callable(load_object(found.open, "It"))


def test_a_folder_is_named_behind_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_minilm(tmp_path / "weights")
    monkeypatch.setenv("HOME", str(tmp_path))
    one, other = (
        find_text_encoder(f"minilm:{tmp_path}/weights"),
        find_text_encoder("minilm:~/weights"),
    )
    assert isinstance(one, FrozenEncoder)
    assert isinstance(one, TextEncoder)
    assert (one.name, one.dim) == ("minilm", 64)
    assert one.hash == other.hash


def test_an_encoder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vowels.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for ref in ("vowels", "vowels:ENCODER"):
        encoder = find_text_encoder(ref)
        np.testing.assert_array_equal(encoder.encode(["open door"]), [[0, 1, 0, 3, 0]])
    with pytest.raises(UserError, match="should return a text encoder with name, hash, dim and"):
        find_text_encoder("vowels:NOTHING")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="no text encoder called 'minilmm'; did you mean 'minilm'"):
        find_text_encoder("minilmm")
