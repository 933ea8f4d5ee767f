"""Instructions and encoders that `foreact data text` refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foreact.data.stores.writer import StoreWriter
from foreact.types import StreamSpec


def written(path: Path, text: str | None) -> Path:
    spec = StreamSpec(cameras={"cam": (4, 4)}, fps=10.0, has_text=text is not None)
    with StoreWriter(path, spec) as writer:
        info = {} if text is None else {"text": text}
        writer.append({"cam": np.zeros((2, 4, 4, 3), np.uint8)}, **info)
    return path


@pytest.mark.parametrize(
    ("encoder", "sentence"),
    [
        ("clop:x", "did you mean 'clip'?"),
        ("clip", "needs the folder of its files: clip:FOLDER."),
        ("clip:empty", "should have 49,408 entries, found 2"),
        ("clip:nowhere", "should hold vocab.json and merges.txt or tokenizer.json"),
        ("minilm:nowhere", "should hold vocab.txt or tokenizer.json"),
    ],
)
def test_an_encoder_that_is_none(
    tmp_path: Path, refused: Callable[..., str], encoder: str, sentence: str
) -> None:
    store = written(tmp_path / "d.zarr", "open")
    (tmp_path / "empty").mkdir()
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    (tmp_path / "empty" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    assert sentence in refused("data", "text", "--store", store, "--encoder", encoder)


def test_a_store_without_instructions(tmp_path: Path, refused: Callable[..., str]) -> None:
    store = written(tmp_path / "d.zarr", None)
    assert "has no 'text' per episode" in refused("data", "text", "--store", store)


def test_an_empty_instruction(tmp_path: Path, refused: Callable[..., str]) -> None:
    store = written(tmp_path / "d.zarr", "  ")
    (tmp_path / "own.py").write_text(
        "from foreact.plugs import TextModel\n"
        "ENCODER = TextModel(name='own', open='support.text_encoders:open_length')\n"
    )
    sentence = refused("data", "text", "--store", store, "--encoder", "own")
    assert "has episodes with an empty instruction" in sentence
