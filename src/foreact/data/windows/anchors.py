"""Where the windows of a store lie: every anchor of every run of steps without a gap."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.windows.window import Window
from foreact.errors import UserError

Gaps = Literal["leave_out", "keep"]

TIMESTAMP = "timestamp"
"""Stream int64 (N,) or (N, 1): microseconds at which each step was recorded."""

LARGEST_GAP = 1.5
"""Nominal frame periods from one step to the next beyond which steps are missing between them."""


class Anchors:
    """Episode and anchor of every window, episode after episode, by number.

    Nothing is kept per window: a data set of 60 million steps has nearly as many.

    Args:
        window: what one sample is.
        lengths: int64 (E,) steps of all episodes.
        runs: int64 (R, 3) runs of steps to cut windows from: episode, first step, end step.
    """

    def __init__(self, window: Window, lengths: np.ndarray, runs: np.ndarray) -> None:
        ranges = [window.anchors(int(lengths[e]), start, stop) for e, start, stop in runs.tolist()]
        self._episodes = runs[:, 0]
        self._first = np.array([anchors.start for anchors in ranges], np.int64)
        # Run r holds the windows _ends[r - 1] .. _ends[r].
        self._ends = np.cumsum(np.array([len(anchors) for anchors in ranges], np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, chosen: np.ndarray | Sequence[int]) -> np.ndarray:
        """Episode and anchor step of windows (B,): int64 (B, 2).

        Raises:
            UserError: there is no such window.
        """
        chosen = np.asarray(chosen, np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise UserError(
                f"There are windows 0..{len(self) - 1}; {chosen.min()}..{chosen.max()} were asked "
                "for."
            )
        run = np.searchsorted(self._ends, chosen, side="right")
        before = np.concatenate([[0], self._ends])[run]
        return np.stack([self._episodes[run], self._first[run] + chosen - before], axis=-1)


def find_anchors(
    store: EpisodeStore, window: Window, episodes: np.ndarray, gaps: Gaps = "leave_out"
) -> Anchors:
    """Anchors of all windows of the chosen episodes of a store.

    Args:
        store: where the steps lie.
        window: what one sample is.
        episodes: episode numbers, int64 (E,).
        gaps: windows across a gap in the time stamps, where the store has any, are left out, with a
            warning that counts them, or kept.

    Raises:
        UserError: no window fits.
    """
    lengths = store.lengths[episodes]
    whole = np.stack([episodes, np.zeros_like(episodes), lengths], axis=1)
    anchors = uncut = Anchors(window, store.lengths, whole)
    if gaps == "leave_out" and len(episodes) and store.has(TIMESTAMP):
        runs = np.concatenate([_runs_between_gaps(store, int(episode)) for episode in episodes])
        anchors = Anchors(window, store.lengths, runs)
    if len(anchors) == 0:
        first, last = window.bounds
        has = "no episode at all"
        if len(lengths):
            many = f"{len(lengths)} episode{'s' * (len(lengths) != 1)}"
            has = f"{many} of {lengths.min()} to {lengths.max()} steps"
        has += ", whose time stamps have gaps," if len(uncut) else ""
        raise UserError(
            f"A window spans {last - first + 1} steps and may reach {window.pad_before} before and "
            f"{window.pad_after} after an episode; none fits into {has} in {store.label}: use "
            "longer episodes or shorten the window."
        )
    if len(anchors) < len(uncut):
        warnings.warn(
            f"{len(uncut) - len(anchors)} of {len(uncut)} windows of {store.label} cross a gap of "
            f"more than {LARGEST_GAP} frame periods in the timestamps and are left out.",
            stacklevel=3,
        )
    return anchors


def gaps_in(stamps: np.ndarray, fps: float) -> np.ndarray:
    """Whether steps are missing after each time stamp (T,) or (T, 1), microseconds: (T-1,)."""
    periods = np.diff(stamps.reshape(-1).astype(np.int64))
    return (periods > LARGEST_GAP * 1e6 / fps) | (periods <= 0)


def _runs_between_gaps(store: EpisodeStore, episode: int) -> np.ndarray:
    """Runs of an episode, int64 (R, 3): episode, first step, end step."""
    length = int(store.lengths[episode])
    gap = gaps_in(store.read(episode, 0, length, [TIMESTAMP])[TIMESTAMP], store.spec.fps)
    edges = np.concatenate([[0], 1 + np.flatnonzero(gap), [length]])
    return np.stack([np.full(len(edges) - 1, episode), edges[:-1], edges[1:]], axis=1)
