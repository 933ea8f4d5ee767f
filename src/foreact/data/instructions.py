"""What `foreact data text` reports: which instructions a store holds, and how alike they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.text_features import TextFeatures


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of a store.

    Attributes:
        text: the instruction.
        episodes: how many follow it, at one step at least.
        steps: how many do, over all episodes.
        nearest: the instruction whose features point most nearly the same way; None where there
            are no features or no other instruction.
        cosine: of the angle between the two, 1 for the same direction.
    """

    text: str
    episodes: int
    steps: int
    nearest: str | None = None
    cosine: float = 0.0

    def __str__(self) -> str:
        near = "" if self.nearest is None else f"   {self.cosine:.3f} to '{self.nearest}'"
        return f"{self.episodes:>8}{self.steps:>10}   {self.text}{near}"


def list_instructions(
    store: EpisodeStore, features: TextFeatures | None = None
) -> list[Instruction]:
    """The instructions of a store, in the order of their first use.

    Args:
        store: the episodes.
        features: of its instructions, in their order, to tell how alike they are.

    Raises:
        UserError: the episodes carry none.
    """
    texts = store.instructions
    followed = store.instruction_of(np.arange(int(store.lengths.sum())))
    episodes = np.repeat(np.arange(len(store)), store.lengths)
    pairs = np.unique(np.stack([episodes, followed]), axis=1)
    in_episodes = np.bincount(pairs[1], minlength=len(texts))
    in_steps = np.bincount(followed, minlength=len(texts))
    near = [(None, 0.0)] * len(texts) if features is None else _nearest(features)
    return [
        Instruction(
            text=text,
            episodes=int(in_episodes[i]),
            steps=int(in_steps[i]),
            nearest=near[i][0],
            cosine=near[i][1],
        )
        for i, text in enumerate(texts)
    ]


def _nearest(features: TextFeatures) -> list[tuple[str | None, float]]:
    """For each text, the one most like it, and the cosine between them."""
    if len(features.texts) < 2:
        return [(None, 0.0)] * len(features.texts)
    lengths = np.linalg.norm(features.features, axis=1, keepdims=True)
    unit = features.features / np.maximum(lengths, 1e-12)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    near = cosines.argmax(axis=1)
    return [(features.texts[j], float(cosines[i, j])) for i, j in enumerate(near)]
