"""Combined sets of windows: subsets, concatenations, given shares, and the sharpest turns."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from foreact.data.windows.loader import Windows
from foreact.errors import UserError
from foreact.types import Batch


class Subset:
    """The windows `rows` (M,) of a set, in that order; a row may occur more than once.

    Raises:
        UserError: there is no such window.
    """

    def __init__(self, windows: Windows, rows: np.ndarray | Sequence[int]) -> None:
        self.windows, self.rows = windows, np.asarray(rows, np.int64)
        if self.rows.size == 0 or self.rows.min() < 0 or self.rows.max() >= len(windows):
            found = f"{self.rows.min()}..{self.rows.max()}" if self.rows.size else "none"
            raise UserError(f"A subset expects windows of 0..{len(windows) - 1}, found {found}.")

    @property
    def augments(self) -> bool:
        return self.windows.augments

    def __len__(self) -> int:
        return len(self.rows)

    def load(self) -> None:
        self.windows.load()

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        return self.windows.batch(self.rows[chosen], rngs)

    def yaw_rates(self, chosen: np.ndarray) -> np.ndarray:
        return _turning(self.windows).yaw_rates(self.rows[chosen])


class Concat:
    """Sets of windows one after another; `Batch.index` counts within each set.

    A batch may hold windows of all sets.
    """

    def __init__(self, parts: Sequence[Windows]) -> None:
        if not parts:
            raise UserError("There is no set of windows to put together.")
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    @property
    def augments(self) -> bool:
        return any(part.augments for part in self.parts)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def load(self) -> None:
        for part in self.parts:
            part.load()

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        pieces, places = [], []
        for part, part_places, rows in self._split(chosen):
            part_rngs = None
            if rngs is not None and part.augments:
                part_rngs = [rngs[i] for i in part_places]
            pieces.append(part.batch(rows, part_rngs))
            places.append(part_places)
        # Pieces are grouped by part; the inverse permutation restores the order of `chosen`.
        inverse = torch.from_numpy(np.argsort(np.concatenate(places)))
        return _concatenate(pieces).map(lambda t: t[inverse])

    def yaw_rates(self, chosen: np.ndarray) -> np.ndarray:
        rates = np.empty(len(chosen))
        for part, places, rows in self._split(chosen):
            rates[places] = _turning(part).yaw_rates(rows)
        return rates

    def _split(self, chosen: np.ndarray) -> list[tuple[Windows, np.ndarray, np.ndarray]]:
        """Per set: the set, positions in `chosen`, and rows counted within the set."""
        part_of = np.searchsorted(self.ends, chosen, side="right")
        pieces = []
        for number in np.unique(part_of):
            places = np.flatnonzero(part_of == number)
            first = self.ends[number] - len(self.parts[number])
            pieces.append((self.parts[number], places, chosen[places] - first))
        return pieces


class TurningWindows(Windows, Protocol):
    """Windows that know how sharply they turn."""

    def yaw_rates(self, chosen: np.ndarray) -> np.ndarray: ...


class HardTurns:
    """Of every drawn batch, only the `keep` windows that turn most, in the order drawn."""

    def __init__(self, windows: TurningWindows, keep: int) -> None:
        if keep < 1:
            raise UserError(f"Expected at least 1 window to keep of each batch, found {keep}.")
        self.windows, self.keep = windows, keep

    @property
    def augments(self) -> bool:
        return self.windows.augments

    def __len__(self) -> int:
        return len(self.windows)

    def load(self) -> None:
        self.windows.load()

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        if len(chosen) < self.keep:
            raise UserError(
                f"{self.keep} windows should be kept of batches of {len(chosen)}; "
                "draw larger batches."
            )
        sharpest = np.sort(np.argsort(-self.windows.yaw_rates(chosen), kind="stable")[: self.keep])
        return self.windows.batch(
            chosen[sharpest], None if rngs is None else [rngs[i] for i in sharpest]
        )


def mix(parts: Sequence[Windows], ratios: Sequence[float], total: int, seed: int) -> Concat:
    """Mix sets of windows in given shares, as VaViM was fine-tuned.

    VaViM's shares are OpenDV 0.4, nuPlan 0.5872 and nuScenes 0.0128.

    A set gives int(ratio * total) windows: a random choice where it has more, and where it has
    fewer as many whole copies as fit and a random choice for the rest. A share of less than one
    window leaves the set out.

    Args:
        parts: the sets.
        ratios: shares, >= 0, of sum 1.
        total: windows altogether; by the rounding down, a few less may come out.
        seed: of the choices.

    Raises:
        UserError: ratios that are no shares, or nothing to choose from.
    """
    non_negative = all(ratio >= 0 for ratio in ratios)
    if len(ratios) != len(parts) or not non_negative or abs(sum(ratios) - 1.0) > 1e-6:
        raise UserError(
            f"Expected {len(parts)} ratios >= 0 that sum to 1, found {list(ratios)} with sum "
            f"{sum(ratios):.6g}."
        )
    if total < 1:
        raise UserError(f"Expected a mix of at least 1 window, found {total}.")
    chosen = []
    for part, ratio in zip(parts, ratios, strict=True):
        count = int(ratio * total)
        if count == 0:
            continue
        if len(part) == 0:
            raise UserError(f"A set without any window cannot give {count}.")
        copies, rest = divmod(count, len(part))
        rows = np.tile(np.arange(len(part)), copies)
        if rest:
            rows = np.concatenate([rows, _shuffled(len(part), seed)[:rest]])
        chosen.append(Subset(part, rows))
    return Concat(chosen)


def weighted(parts: Sequence[Windows], weights: Sequence[float], *, seed: int) -> Concat:
    """Sets of windows in the shares of their weights, no window left out.

    One pass is as long as it takes the set that is drawn least, for its size, to be seen once;
    windows of the others come again within it. Training goes on with further passes.

    Args:
        parts: the sets.
        weights: > 0; only their ratios count.
        seed: chooses which windows of a set come once more than others.

    Raises:
        UserError: weights that are not above 0, or a set without any window.
    """
    if len(weights) != len(parts) or not all(0.0 < weight < math.inf for weight in weights):
        raise UserError(f"Expected {len(parts)} weights above 0, found {list(weights)}.")
    shares = [weight / math.fsum(weights) for weight in weights]
    sizes = [len(part) for part in parts]
    # Rounding must not leave out the last window of the largest set.
    total = max(math.ceil((n + 0.5) / share) for n, share in zip(sizes, shares, strict=True))
    return mix(parts, shares, total, seed)


def _shuffled(n: int, seed: int) -> np.ndarray:
    rows = list(range(n))
    random.Random(seed).shuffle(rows)
    return np.array(rows)


def _turning(windows: Windows) -> TurningWindows:
    if not hasattr(windows, "yaw_rates"):
        raise UserError(f"{type(windows).__name__} has no plans to tell turns by.")
    return cast(TurningWindows, windows)


def _concatenate(batches: Sequence[Batch]) -> Batch:
    joined = {}
    for name in (f.name for f in dataclasses.fields(Batch)):
        values = [getattr(batch, name) for batch in batches]
        if isinstance(values[0], dict):
            keys = [sorted(value) for value in values]
            if any(key != keys[0] for key in keys):
                raise UserError(
                    f"The sets disagree on '{name}': {keys}; put windows of one kind together."
                )
            joined[name] = {
                key: _join([value[key] for value in values], f"{name}.{key}") for key in values[0]
            }
        elif any(value is not None for value in values):
            joined[name] = _join(values, name)
    return Batch(**joined)


def _join(tensors: Sequence[Tensor | None], label: str) -> Tensor:
    shapes = [None if t is None else tuple(t.shape[1:]) for t in tensors]
    if any(shape != shapes[0] for shape in shapes):
        raise UserError(
            f"The sets disagree on '{label}' (per window: {shapes}); put windows of "
            "one kind together."
        )
    return torch.cat([t for t in tensors if t is not None])
