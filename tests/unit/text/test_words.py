"""Token ids by hand-made vocabularies of the published sizes, and vocabularies that are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.text_encoders import bert_vocabulary, clip_vocabulary, write_clip_vocabulary

from foreact.errors import UserError
from foreact.text.words import Words, bert_words, clip_words


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Words:
    folder = tmp_path_factory.mktemp("clip")
    write_clip_vocabulary(folder)
    return clip_words(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Words:
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(bert_vocabulary()) + "\n")
    return bert_words(folder)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("open door", [514, 517]),
        ("  Open\t DOOR!", [514, 517, 256]),  # the sign "!" is the first symbol, 256 ends a word
        ("opendoor", [513, 77, 517]),  # one word: "ope", "n", "door"
        ("42", [275, 273]),  # one digit at a time
    ],
)
def test_clip_cuts_texts_by_its_merges(clip: Words, text: str, ids: list[int]) -> None:
    assert clip.ids(text) == [49_406, *ids, 49_407]


def test_a_mark_inside_a_text_is_letters_like_others(clip: Words, bert: Words) -> None:
    assert 49_407 not in clip.ids("<|endoftext|> open")[1:-1]
    assert 102 not in bert.ids("[SEP] open")[1:-1]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("open door", [104, 105]),
        ("Open the DOORS!", [104, 100, 105, 106, 107]),  # "the" is unknown here
        ("  öpen\tdoor ", [104, 105]),
    ],
)
def test_bert_cuts_texts_into_pieces(bert: Words, text: str, ids: list[int]) -> None:
    assert bert.ids(text) == [101, *ids, 102]


def test_one_file_or_two_are_the_same_vocabulary(tmp_path: Path, clip: Words, bert: Words) -> None:
    write_clip_vocabulary(tmp_path / "clip", one_file=True)
    assert clip_words(tmp_path / "clip").digest == clip.digest
    model = {"vocab": {piece: i for i, piece in enumerate(bert_vocabulary())}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert bert_words(tmp_path).digest == bert.digest
    assert bert.digest != clip.digest


def test_an_empty_tokenizer_is_refused(tmp_path: Path) -> None:
    """What a download without a network leaves."""
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    with pytest.raises(UserError, match=r"should have 49,408 entries, found 2; take the files as"):
        clip_words(tmp_path)
    (tmp_path / "vocab.txt").write_text("[CLS]\n[SEP]\n")
    with pytest.raises(UserError, match=r"should have 30,522 entries, found 2"):
        bert_words(tmp_path)


def _swap_numbers(vocab: dict[str, int]) -> None:
    vocab["a"] = vocab["b"]


def _lose_a_mark(vocab: dict[str, int]) -> None:
    vocab["<end>"] = vocab.pop("<|endoftext|>")


@pytest.mark.parametrize("spoil", [_swap_numbers, _lose_a_mark])
def test_a_vocabulary_with_holes_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, int]], None]
) -> None:
    vocab = clip_vocabulary()
    spoil(vocab)
    write_clip_vocabulary(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(UserError, match=r"from 0 to 49,407 and hold <\|startoftext\|> and"):
        clip_words(tmp_path)


def test_merges_that_were_cut_short_are_refused(tmp_path: Path) -> None:
    write_clip_vocabulary(tmp_path)
    lines = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join(lines[:-100]))
    with pytest.raises(UserError, match=r"should have 48,894 merges, found 48,794"):
        clip_words(tmp_path)


@pytest.mark.parametrize("merge", ["x y", "xyz"])
def test_merges_of_another_vocabulary_are_refused(tmp_path: Path, merge: str) -> None:
    write_clip_vocabulary(tmp_path)
    text = (tmp_path / "merges.txt").read_text()
    (tmp_path / "merges.txt").write_text(text.replace("o p\n", f"{merge}\n", 1))
    with pytest.raises(UserError, match="does not fit its merges"):
        clip_words(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"should hold vocab.json and merges.txt or tokenizer.json"):
        clip_words(tmp_path)
    with pytest.raises(UserError, match=r"should hold vocab.txt or tokenizer.json; found neither"):
        bert_words(tmp_path)


def test_the_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r'run `pip install "foreact\[text\]"`'):
        clip_words(tmp_path)
