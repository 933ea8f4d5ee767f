"""Which episodes of a data set weights may be measured on: those they did not learn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foreact.checkpoints.configs import read_json
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.fingerprint import Fingerprint, fingerprint
from foreact.errors import UserError
from foreact.runs.inputs import Source


def unseen_episodes(card: Mapping[str, Any], store: EpisodeStore) -> np.ndarray | None:
    """Episodes of a store that the training behind a checkpoint did not learn from: int64.

    Args:
        card: of the checkpoint.
        store: any data.

    Returns:
        Those kept for validation, and those that came to the data since, by the training and by
        those whose weights it started with; None where the store is none of their data.
    """
    own, before = card.get("data"), card.get("learned_before")
    matching = [
        source
        for sources in (own, before)
        for source in (_sources(sources) if sources is not None else [])
        if _begins_with(store, source.fingerprint)
    ]
    if not matching:
        return None
    unseen = np.arange(len(store))
    for source in matching:
        learned = np.setdiff1d(np.arange(source.fingerprint.episodes), source.validation)
        unseen = np.setdiff1d(unseen, learned)
    return unseen


def _sources(raw: Any) -> list[Source]:
    entries = raw if isinstance(raw, list) else []
    return [Source.from_json(entry, "The card of the weights") for entry in entries]


def _begins_with(store: EpisodeStore, old: Fingerprint) -> bool:
    """Whether a store is what had this fingerprint, or has grown out of it."""
    return len(store) >= old.episodes and old.difference(fingerprint(store, old.episodes)) is None


def episodes_to_measure(weights: Path | None, store: EpisodeStore) -> tuple[np.ndarray, str]:
    """The episodes of a store that weights may be measured on, int64, and what they are in words.

    Args:
        weights: a checkpoint folder; None where nothing was trained.
        store: any data.

    Raises:
        UserError: the weights were trained on every one of them.
    """
    everything, count = np.arange(len(store)), len(store)
    if weights is None:
        return everything, f"{count} in all"
    path = weights / "card.json"
    card = read_json(path) if path.exists() else None
    if not isinstance(card, Mapping) or not isinstance(card.get("data"), list):
        return everything, f"{count} in all; the weights do not say what they were trained on"
    unseen = unseen_episodes(card, store)
    if unseen is None:
        return everything, f"{count} in all, of other data than the weights name as theirs"
    if len(unseen) == 0:
        raise UserError(
            f"{weights} was trained on every episode of {store.label}; name other data."
        )
    return unseen, f"{len(unseen)} of {count} were not trained on"
