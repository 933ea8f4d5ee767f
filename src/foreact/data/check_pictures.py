"""Whether the pictures of a store can be decoded, and show something."""

from __future__ import annotations

import numpy as np

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.findings import Finding
from foreact.errors import UserError
from foreact.progress import Progress

PICTURES = 1024
"""Of each camera that are decoded: all of a small store, evenly spread ones of a large one."""
TOGETHER = 32
"""Pictures that are asked for at a time."""


def check_pictures(store: EpisodeStore) -> list[Finding]:
    """Decode up to `PICTURES` pictures of every camera, each episode's first and last among them.

    Windows drawn at random seldom reach the ends of episodes, where recordings are cut.
    """
    found = []
    for camera in store.spec.cameras:
        rows = _rows(store)
        blank = []
        parts = np.array_split(rows, -(-len(rows) // TOGETHER))
        is_quick = len(rows) < PICTURES
        for part in Progress(parts, desc=f"decode '{camera}'", unit="part", disable=is_quick):
            try:
                pictures = store.peek(camera, part)
            except UserError as error:
                found.append(Finding("error", str(error)))
                break
            is_blank = (pictures == pictures[:, :1, :1]).all(axis=(1, 2, 3))
            blank += part[is_blank].tolist()
        else:
            found += _told(store, camera, blank, len(rows))
    return found


def _rows(store: EpisodeStore) -> np.ndarray:
    """int64 (R,) rows to look at, rising."""
    total = int(store.lengths.sum())
    ends = np.concatenate([store.starts, store.starts + store.lengths - 1])
    spread = np.linspace(0, total - 1, min(total, PICTURES)).round().astype(np.int64)
    if len(ends) + len(spread) > 2 * PICTURES:  # of very many episodes, some
        ends = ends[:: -(-len(ends) // PICTURES)]
    return np.unique(np.concatenate([ends, spread]))


def _told(store: EpisodeStore, camera: str, blank: list[int], looked_at: int) -> list[Finding]:
    if not blank:
        return []
    share = "every picture" if len(blank) == looked_at else f"{len(blank)} of {looked_at} pictures"
    first = store.where(blank[0])
    text = f"camera '{camera}' shows one single colour in {share} looked at, first {first}"
    return [Finding("error" if len(blank) == looked_at else "warning", text)]
