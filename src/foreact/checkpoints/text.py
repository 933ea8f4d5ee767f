"""Instructions of a checkpoint: those it was trained on, with their features, and new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foreact.data.stores.text_features import TextFeatures, encode_texts
from foreact.errors import UserError
from foreact.types import TextEncoder

FILE = "text.safetensors"
MOST_SHOWN = 20
"""Known instructions that a message lists."""


@dataclass(frozen=True)
class TextTable:
    """What a model that follows instructions needs to read them.

    Attributes:
        known: the instructions it was trained on and their features, with name and hash of the
            encoder that made them.
    """

    known: TextFeatures

    def save(self, folder: Path) -> None:
        """Write `text.safetensors` into a checkpoint folder.

        Raises:
            OSError: the disk refuses.
        """
        self.known.save(folder / FILE)

    @staticmethod
    def load(folder: Path) -> TextTable | None:
        """The table of a checkpoint folder, or None where it has none.

        Raises:
            UserError: it is damaged.
        """
        file = folder / FILE
        return TextTable(TextFeatures.load(file)) if file.is_file() else None

    def features_for(self, texts: Sequence[str], encoder: TextEncoder | None = None) -> np.ndarray:
        """Features float32 (n, L), one row per text.

        Args:
            texts: instructions, such as those of a batch of environments; one may occur repeatedly.
            encoder: for instructions that are not in the table. It must be the one that the model
                was trained with.

        Raises:
            UserError: it is another encoder, or an instruction is new and there is no encoder.
        """
        if encoder is not None and encoder.hash != self.known.hash:
            raise UserError(
                f"The model was trained with the text encoder '{self.known.encoder}' "
                f"{self.known.hash[:19]}, found '{encoder.name}' {encoder.hash[:19]}; give the one "
                "it was trained with."
            )
        numbers = self.known.numbers(texts)
        new = list(dict.fromkeys(t for t, n in zip(texts, numbers, strict=True) if n < 0))
        if not new:
            return self.known.features[numbers]
        if encoder is None:
            raise UserError(
                f"The model was not trained on the instruction '{new[0]}'; it knows "
                f"{self._listed()}: give one of them, or name its text encoder "
                f"'{self.known.encoder}' with --text-encoder."
            )
        made = encode_texts(encoder, new)
        features = np.concatenate([self.known.features, made.features])
        return features[np.where(numbers < 0, len(self.known.texts) + made.numbers(texts), numbers)]

    def _listed(self) -> str:
        known = self.known.texts
        more = f" and {len(known) - MOST_SHOWN} more" if len(known) > MOST_SHOWN else ""
        return ", ".join(f"'{text}'" for text in known[:MOST_SHOWN]) + more
