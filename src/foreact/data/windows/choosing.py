"""Which episodes of a data set are used: listed in a file, or a share drawn by a seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foreact.data.windows.loader import WindowDataset
from foreact.errors import UserError, decoding
from foreact.files import parse_json, read_text


def read_episode_lists(path: Path) -> dict[str, list[int]]:
    """A file of UVA's `used_episode_indices`: {member name: [episode numbers]}.

    Raises:
        UserError: it is no such file.
    """
    with decoding(f"{path} should hold lists of episode numbers by data set, as JSON"):
        raw = parse_json(read_text(path))
    if not isinstance(raw, dict):
        raise UserError(
            f"{path} should hold a JSON object {{data set: [episode, ...]}}, found "
            f"{json.dumps(raw)[:60]}."
        )
    return raw


def listed_episodes(lists: Mapping[str, Any], member: str, episodes: int) -> np.ndarray:
    """Episodes that the lists name for one member, in their order: int64 (E,).

    Args:
        lists: see `read_episode_lists`.
        member: name of the data set.
        episodes: how many it has.

    Raises:
        UserError: no list for it, or an episode that it lacks or that is named twice.
    """
    if member not in lists:
        raise UserError(
            f"The lists of episodes name {sorted(lists)}, not '{member}'; add a list for it."
        )
    return check_episodes(lists[member], episodes, f"The list of episodes of '{member}'")


def check_episodes(chosen: Any, episodes: int, label: str) -> np.ndarray:
    """Episode numbers as int64 (E,); a `UserError` for what a data set of `episodes` lacks."""
    is_list = isinstance(chosen, Sequence | np.ndarray) and not isinstance(chosen, str)
    if not is_list or not len(chosen):
        raise UserError(f"{label} should be a list of at least one number, found {chosen!r:.60}.")
    seen = set()
    for number in chosen:
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise UserError(f"{label} should hold whole numbers, found {number!r:.40}.")
        if not 0 <= number < episodes:
            raise UserError(
                f"{label} names episode {number}, and the data set has 0..{episodes - 1}; correct "
                "the list or name the whole data set."
            )
        if number in seen:
            raise UserError(f"{label} names episode {number} twice; name it once.")
        seen.add(number)
    return np.array(chosen, np.int64)


def share_of_episodes(
    chosen: np.ndarray | Sequence[int], ratio: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split episodes as UVA does for UMI: int(n * ratio) drawn for training, the rest is kept back.

    UVA's rule leaves one of two, and none of one; ours keeps at least one.

    Args:
        chosen: (n,) episode numbers.
        ratio: share that is trained on, 0..1; 1 leaves nothing for validation.
        seed: of the draw, by numpy's generator.

    Returns:
        Episodes to train on and those kept back, both int64 and in increasing order.

    Raises:
        UserError: the ratio is no share.
    """
    if not 0.0 < ratio <= 1.0:
        raise UserError(f"The used share of episodes should lie in 0..1, found {ratio:g}.")
    chosen = np.sort(np.asarray(chosen, np.int64))
    count = max(1, int(len(chosen) * ratio))
    drawn = np.random.default_rng(seed).choice(len(chosen), count, replace=False)
    training = np.zeros(len(chosen), bool)
    training[drawn] = True
    return chosen[training], chosen[~training]


def anchors_between(windows: WindowDataset, first: float, last: float) -> np.ndarray:
    """Windows whose "now" lies in a part of its episode, for `mixing.Subset`: int64 (N,).

    Args:
        windows: with an anchor at every step of an episode.
        first, last: shares of the episode's steps, 0 <= first < last <= 1; `last` is left out.

    Raises:
        UserError: shares that make no sense, or no window is left.
    """
    if not 0.0 <= first < last <= 1.0:
        raise UserError(
            f"Windows may begin between two shares of an episode, 0..1, found {first:g} and "
            f"{last:g}."
        )
    episodes, steps = windows.index.T
    lengths = windows.store.lengths[episodes]
    inside = (steps >= (lengths * first).astype(int)) & (steps < (lengths * last).astype(int))
    if not inside.any():
        raise UserError(
            f"No window begins between {first:g} and {last:g} of its episode; widen that part."
        )
    return np.flatnonzero(inside)
