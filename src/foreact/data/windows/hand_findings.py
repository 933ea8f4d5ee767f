"""What a check says of recorded poses of hands: units, lost tracking, start poses that move."""

from __future__ import annotations

import numpy as np

from foreact.data.rotations import angle_between, convert
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.findings import Finding
from foreact.data.windows.hand_poses import Hand, HandPoses

REACH = 10.0
"""Metres that a hand moves within an episode at most; millimetres go far beyond."""
JUMP, TURN = 0.25, np.deg2rad(60.0)
"""Metres and radians from one recorded step to the next, far beyond what a person does in 1/60 s.
"""
LARGEST_ANGLE = 2.0 * np.pi + 1e-3
"""Radians of an axis times an angle."""
OPENING = (-0.005, 0.3)
"""Metres between the fingers of a gripper."""


def hand_findings(store: EpisodeStore, hands: HandPoses) -> list[Finding]:
    """Look at all poses of a store; streams with NaN or infinite values are told elsewhere."""
    found = []
    for hand in hands.hands:
        found += _positions(store, hand)
        if hands.form == "axis_angle":
            found += _rotations(store, hand)
        found += _opening(store, hand)
        if hand.start is not None:
            found += _starts(store, hand.start)
    return found


def _positions(store: EpisodeStore, hand: Hand) -> list[Finding]:
    positions = store.all_rows(hand.position)
    if not np.isfinite(positions).all():
        return []
    starts = store.starts
    span = np.maximum.reduceat(positions, starts) - np.minimum.reduceat(positions, starts)
    if (widest := float(span.max())) > REACH:
        text = f"'{hand.position}' moves {widest:.4g} within an episode; metres are expected"
        return [Finding("error", text)]
    moves = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    return _jumps(store, hand.position, moves, JUMP, f"{JUMP:g} m")


def _rotations(store: EpisodeStore, hand: Hand) -> list[Finding]:
    vectors = store.all_rows(hand.rotation).astype(np.float64)
    if not np.isfinite(vectors).all():
        return []
    if (largest := float(np.linalg.norm(vectors, axis=1).max())) > LARGEST_ANGLE:
        text = f"'{hand.rotation}' has angles up to {largest:.4g}; radians are expected"
        return [Finding("error", text)]
    matrices = convert(vectors, "axis_angle", "matrix")
    turns = angle_between(matrices[1:], matrices[:-1])
    return _jumps(store, hand.rotation, turns, TURN, f"{np.rad2deg(TURN):.0f} degrees")


def _opening(store: EpisodeStore, hand: Hand) -> list[Finding]:
    widths = store.all_rows(hand.gripper)
    low, high = float(widths.min()), float(widths.max())
    if not np.isfinite(widths).all() or (low >= OPENING[0] and high <= OPENING[1]):
        return []
    text = f"'{hand.gripper}' lies in {low:.4g} .. {high:.4g}; openings in metres are expected"
    return [Finding("error", f"{text}, 0 where the gripper is closed")]


def _starts(store: EpisodeStore, stream: str) -> list[Finding]:
    poses = store.all_rows(stream)
    wrong = _within_episodes(store, (np.diff(poses, axis=0) != 0).any(axis=1))
    if not len(wrong):
        return []
    text = f"'{stream}' should be one pose an episode, it changes at {store.where(int(wrong[0]))}"
    return [Finding("error", text)]


def _jumps(
    store: EpisodeStore, stream: str, change: np.ndarray, most: float, words: str
) -> list[Finding]:
    rows = _within_episodes(store, change > most)
    if not len(rows):
        return []
    text = (
        f"'{stream}' jumps by more than {words} at {len(rows)} steps, as where tracking was lost, "
        f"first {store.where(int(rows[0]))}"
    )
    return [Finding("warning", text)]


def _within_episodes(store: EpisodeStore, changes: np.ndarray) -> np.ndarray:
    """Rows (n,) that differ from the one before in the same episode; changes: bool (N - 1,)."""
    return np.setdiff1d(np.flatnonzero(changes) + 1, store.starts)
