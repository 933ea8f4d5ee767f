"""Features of a store's instructions, computed once and kept beside the data."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from foreact.data.stores.companion import AccompaniedStore, accompanied
from foreact.data.stores.episodes import EpisodeStore
from foreact.errors import UserError, decoding, in_short, room_or
from foreact.progress import Progress
from foreact.types import TextEncoder

FOLDER = "text"
"""Of a store, or of its companion, where files of features lie."""
AT_ONCE = 64
"""Texts encoded between two steps of the progress bar."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFeatures:
    """Texts and what an encoder makes of them.

    Attributes:
        texts: distinct.
        features: float32 (n, L), one row per text.
        encoder: name of the kind of encoder, such as "clip".
        hash: of its weights and vocabulary.

    Raises:
        UserError: the features are of another shape or type, or not finite.
    """

    texts: tuple[str, ...]
    features: np.ndarray
    encoder: str
    hash: str

    def __post_init__(self) -> None:
        found = self.features
        fits = found.ndim == 2 and len(found) == len(self.texts) and found.dtype == np.float32
        if not fits or not np.isfinite(found).all():
            raise UserError(
                f"The text encoder '{self.encoder}' should yield {len(self.texts)} rows of finite "
                f"float32, found {found.dtype} {found.shape}."
            )

    @property
    def dim(self) -> int:
        """Numbers per text, L."""
        return self.features.shape[1]

    def numbers(self, texts: Sequence[str]) -> np.ndarray:
        """Which row of `features` belongs to each text: int64, -1 where none does."""
        known = {text: number for number, text in enumerate(self.texts)}
        return np.array([known.get(text, -1) for text in texts], np.int64)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            OSError: the disk refuses.
        """
        notes = {"encoder": self.encoder, "hash": self.hash, "texts": json.dumps(self.texts)}
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_bytes(save({"features": np.ascontiguousarray(self.features)}, notes))
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    @staticmethod
    def load(path: Path) -> TextFeatures:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, damaged or of another kind.
        """
        with decoding(f"{path} is no whole file of text features"):
            with safe_open(path, framework="np") as file:
                notes, features = file.metadata(), file.get_tensor("features")
            texts = json.loads(notes["texts"])
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError("its texts are no list of texts")
            return TextFeatures(
                texts=tuple(texts),
                features=features,
                encoder=notes["encoder"],
                hash=notes["hash"],
            )


def encode_texts(encoder: TextEncoder, texts: Sequence[str]) -> TextFeatures:
    """Features of distinct texts.

    Raises:
        UserError: the encoder refuses a text, or yields anything but finite rows of its width.
    """
    parts = [np.zeros((0, encoder.dim), np.float32)]
    few = len(texts) <= AT_ONCE
    with Progress(total=len(texts), desc="instructions", unit="text", disable=few) as bar:
        for first in range(0, len(texts), AT_ONCE):
            some = texts[first : first + AT_ONCE]
            part = np.asarray(encoder.encode(some))
            if part.shape != (len(some), encoder.dim):
                raise UserError(
                    f"The text encoder '{encoder.name}' should yield features "
                    f"{(len(some), encoder.dim)}, found {part.shape}."
                )
            parts.append(part)
            bar.update(len(some))
    return TextFeatures(
        texts=tuple(texts),
        features=np.concatenate(parts),
        encoder=encoder.name,
        hash=encoder.hash,
    )


def text_features(store: EpisodeStore, encoder: TextEncoder) -> TextFeatures:
    """The features of a store's instructions, in their order.

    They are kept in `text/ENCODER-HASH.safetensors` of a store folder of ours, and of any other
    data in its companion; another encoder has another file, and only texts that a file lacks are
    encoded.

    Raises:
        UserError: the episodes carry no instructions or an empty one, the encoder refuses one, or
            the disk refuses.
    """
    texts = tuple(store.instructions)
    if not all(text.strip() for text in texts):
        raise UserError(
            f"{store.label} has episodes with an empty instruction; say in words what is done in "
            "them, or leave them out."
        )
    path = _place(store, encoder)
    kept = _kept(path, encoder)
    missing = [text for text in texts if kept is None or text not in kept.texts]
    if missing or kept is None:
        made = encode_texts(encoder, missing)
        kept = made if kept is None else _joined(kept, made)
        _write(kept, path, store)
    return TextFeatures(
        texts=texts,
        features=kept.features[kept.numbers(texts)],
        encoder=encoder.name,
        hash=encoder.hash,
    )


class InstructionRows:
    """Which row of some features each step of a store follows.

    Kept as runs of steps with one instruction, of which an episode has one, as a rule.

    Raises:
        UserError: the store follows an instruction without features.
    """

    def __init__(self, store: EpisodeStore, features: TextFeatures) -> None:
        instructions = store.instructions
        numbers = features.numbers(instructions)
        if (numbers < 0).any():
            lacking = instructions[int(np.argmin(numbers))]
            raise UserError(
                f"{store.label} has the instruction '{lacking}', for which there are no features; "
                "encode its instructions."
            )
        of_rows = store.instruction_of(np.arange(int(store.lengths.sum())))
        begins = np.diff(of_rows, prepend=-1) != 0
        self._starts = np.flatnonzero(begins)
        self._numbers = numbers[of_rows[begins]]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the whole stream (...) -> rows of the features, int64 (...)."""
        return self._numbers[np.searchsorted(self._starts, rows, side="right") - 1]


def _place(store: EpisodeStore, encoder: TextEncoder) -> Path:
    host = store if isinstance(store, AccompaniedStore) else accompanied(store)
    folder = host.make_companion() if isinstance(host, AccompaniedStore) else host.path
    name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{encoder.name}-{encoder.hash.split(':')[-1][:12]}")
    return folder / FOLDER / f"{name}.safetensors"


def _kept(path: Path, encoder: TextEncoder) -> TextFeatures | None:
    """What an earlier run kept; None where there is nothing, or a damaged file, which is remade."""
    try:
        kept = TextFeatures.load(path) if path.is_file() else None
    except UserError:
        return None
    fits = kept is not None and kept.hash == encoder.hash and kept.dim == encoder.dim
    return kept if fits else None


def _joined(one: TextFeatures, other: TextFeatures) -> TextFeatures:
    return TextFeatures(
        texts=one.texts + other.texts,
        features=np.concatenate([one.features, other.features]),
        encoder=one.encoder,
        hash=one.hash,
    )


def _write(features: TextFeatures, path: Path, store: EpisodeStore) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        features.save(path)
    except OSError as error:
        raise UserError(
            f"The features of the instructions of {store.label} cannot be kept in {path} "
            f"({in_short(error)}); {room_or(error, 'give it the rights')} and run again."
        ) from None
