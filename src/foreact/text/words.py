"""Text -> token ids, by the published vocabularies of CLIP and of BERT without upper case.

The rules are built here from the vocabulary alone. A tokenizer that is loaded by its name without
its files can come out empty and still encode, so that the size of every vocabulary is checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreact.errors import UserError, decoding
from foreact.files import decode_text, read_text
from foreact.text.folders import read_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CLIP_VOCABULARY, CLIP_MARKS = 49_408, ("<|startoftext|>", "<|endoftext|>")
BERT_VOCABULARY, BERT_MARKS, BERT_UNKNOWN = 30_522, ("[CLS]", "[SEP]"), "[UNK]"

CLIP_MERGES = CLIP_VOCABULARY - 2 * 256 - 2
"""Every entry is a byte, a byte that ends a word, what a merge makes, or a mark."""
CLIP_FILES = ("vocab.json", "merges.txt", "tokenizer.json")
CLIP_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP cuts a text into before it looks pieces up: words, single digits, runs of signs."""


@dataclass(frozen=True)
class Words:
    """A vocabulary and its rules.

    Attributes:
        tokenizer: of Hugging Face's library, without marks, padding or a longest text.
        marks: ids before and after every text.
        digest: SHA-256 of the vocabulary, in hexadecimal digits.
    """

    tokenizer: Tokenizer
    marks: tuple[int, int]
    digest: str

    def ids(self, text: str) -> list[int]:
        """Token ids of a text between its marks."""
        first, last = self.marks
        return [first, *self.tokenizer.encode(text, add_special_tokens=False).ids, last]


def clip_words(folder: Path) -> Words:
    """CLIP's byte-pair vocabulary, from vocab.json and merges.txt or from tokenizer.json.

    Raises:
        UserError: the files are missing, damaged or of another vocabulary.
    """
    library = _library()
    found, merges = _clip_files(folder)
    vocab = _checked(found, CLIP_MARKS, CLIP_VOCABULARY, folder)
    if len(merges) != CLIP_MERGES:
        raise UserError(
            f"The vocabulary in {folder} should have {CLIP_MERGES:,} merges, found "
            f"{len(merges):,}; take the files as published."
        )
    with decoding(f"The vocabulary in {folder} does not fit its merges"):
        pairs = [_pair(merge) for merge in merges]
        model = library.models.BPE(
            vocab, pairs, unk_token=CLIP_MARKS[1], end_of_word_suffix="</w>", fuse_unk=False
        )
        tokenizer = library.Tokenizer(model)
    rules, cuts = library.normalizers, library.pre_tokenizers
    tokenizer.normalizer = rules.Sequence(
        [rules.NFC(), rules.Replace(library.Regex(r"\s+"), " "), rules.Lowercase()]
    )
    tokenizer.pre_tokenizer = cuts.Sequence(
        [
            cuts.Split(library.Regex(CLIP_PIECES), behavior="removed", invert=True),
            cuts.ByteLevel(add_prefix_space=False),
        ]
    )
    return Words(tokenizer, _ids(vocab, CLIP_MARKS), _digest(vocab, pairs))


def bert_words(folder: Path) -> Words:
    """The word pieces of BERT without upper case, from vocab.txt or from tokenizer.json.

    Raises:
        UserError: the files are missing, damaged or of another vocabulary.
    """
    library = _library()
    if (file := folder / "vocab.txt").is_file():
        with decoding(f"{file} is no text"):
            lines = decode_text(file.read_bytes()).removesuffix("\n").split("\n")
        found = {piece: number for number, piece in enumerate(lines)}
    else:
        found = _model_of(folder, "vocab.txt").get("vocab")
    vocab = _checked(found, BERT_MARKS, BERT_VOCABULARY, folder)
    with decoding(f"The vocabulary in {folder} is damaged"):
        model = library.models.WordPiece(
            vocab, unk_token=BERT_UNKNOWN, max_input_chars_per_word=100
        )
        tokenizer = library.Tokenizer(model)
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    return Words(tokenizer, _ids(vocab, BERT_MARKS), _digest(vocab, ()))


def _clip_files(folder: Path) -> tuple[Any, Sequence[Any]]:
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if vocab.is_file() and merges.is_file():
        with decoding(f"{merges} is no text"):
            lines = read_text(merges).split("\n")
        return read_config(vocab), [x for x in lines if x and not x.startswith("#version")]
    model = _model_of(folder, "vocab.json and merges.txt")
    return model.get("vocab"), model.get("merges") or ()


def _model_of(folder: Path, otherwise: str) -> Mapping[str, Any]:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{folder} should hold {otherwise} or tokenizer.json; found neither.")
    model = read_config(file).get("model")
    return model if isinstance(model, Mapping) else {}


def _checked(vocab: Any, marks: tuple[str, str], size: int, folder: Path) -> dict[str, int]:
    """A vocabulary of exactly `size` entries, numbered from 0, that holds both marks."""
    count = len(vocab) if isinstance(vocab, dict) else 0
    if count != size:
        raise UserError(
            f"The vocabulary in {folder} should have {size:,} entries, found {count:,}; take the "
            "files as published."
        )
    ids = [number for number in vocab.values() if type(number) is int]
    if sorted(ids) != list(range(size)) or not all(mark in vocab for mark in marks):
        raise UserError(
            f"The vocabulary in {folder} should number its entries from 0 to {size - 1:,} and hold "
            f"{' and '.join(marks)}; take the files as published."
        )
    return vocab


def _ids(vocab: Mapping[str, int], marks: tuple[str, str]) -> tuple[int, int]:
    return vocab[marks[0]], vocab[marks[1]]


def _pair(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _digest(vocab: Mapping[str, int], pairs: Sequence[tuple[str, str]]) -> str:
    content = [sorted(vocab, key=vocab.__getitem__), [" ".join(pair) for pair in pairs]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            'Encoding instructions needs tokenizers; run `pip install "foreact[text]"`.'
        ) from None
    return tokenizers
