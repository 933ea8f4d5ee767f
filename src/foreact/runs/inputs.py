"""What a run learns from and starts with, by content: data sets, their split, other weights.

A run's folder keeps it in inputs.json, and the card of its weights as "data" and "weights". A path
in config.json says only where things lay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreact.checkpoints.configs import read_json
from foreact.checkpoints.format import Checkpoint
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.fingerprint import Fingerprint, fingerprint
from foreact.data.windows.split import split_episodes
from foreact.errors import UserError
from foreact.files import listed
from foreact.runs.options import TrainingRun

FILE = "inputs.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that a run learns from.

    Attributes:
        path: where it lay last.
        fingerprint: of all that the run has learned from.
        started_with: episodes when the run began; the statistics are those of their training side.
        validation: episodes kept for validation; the others are learned from.
        held_out: whether it was named as a data set to validate with, all of it.
    """

    path: str
    fingerprint: Fingerprint
    started_with: int
    validation: tuple[int, ...]
    held_out: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "fingerprint": self.fingerprint.to_json(),
            "started_with": self.started_with,
            "validation": list(self.validation),
            "held_out": self.held_out,
        }

    @classmethod
    def from_json(cls, raw: Any, where: str) -> Source:
        """Read back `to_json`; `where` names the file in errors."""
        try:
            return cls(
                path=str(raw["path"]),
                fingerprint=Fingerprint.from_json(raw["fingerprint"], where),
                started_with=int(raw["started_with"]),
                validation=_numbers(raw["validation"], raw["fingerprint"]["episodes"]),
                held_out=bool(raw.get("held_out", False)),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(f"{where} should describe data sets, found {raw!r:.80}.") from None


def _numbers(raw: Any, count: int) -> tuple[int, ...]:
    """Different episode numbers below `count`; ValueError for anything else."""
    if not all(type(n) is int and 0 <= n < count for n in raw) or len(set(raw)) < len(raw):
        raise ValueError("no episode numbers")
    return tuple(raw)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Episode numbers, int64.

    Attributes:
        training, validation: the two sides.
        fitted: those of training that the statistics are taken from: all but episodes that came to
            the data after the run had begun.
    """

    training: np.ndarray
    validation: np.ndarray
    fitted: np.ndarray


class Inputs:
    """The inputs of a run, compared with those that it began with as each is named.

    Args:
        out: folder of the run; nothing is written to it here. None: there is no run.
        seed: of the split.
        new_episodes: whether episodes that came to the data since are learned from.
    """

    def __init__(self, out: Path | None, *, seed: int, new_episodes: bool = False) -> None:
        self.out, self.seed, self.new_episodes = out, seed, new_episodes
        self.sources: list[Source] = []
        self.weights: dict[str, str] = {}
        self.learned_before: list[Any] = []
        self._before: Mapping[str, Any] | None = None
        if out is not None and (path := out / FILE).exists():
            self._before = read_json(path)
            entries = self._before if isinstance(self._before, dict) else {}
            if not isinstance(entries.get("data"), list) or not isinstance(
                entries.get("weights"), dict
            ):
                raise UserError(
                    f"{path} should hold 'data' and 'weights' of the run; restore it, or begin a "
                    "new run with another --out."
                )

    @classmethod
    def of(cls, run: TrainingRun) -> Inputs:
        """Those of a run, with nothing named yet."""
        inputs = cls(run.out, seed=run.train.seed, new_episodes=run.new_episodes)
        if (start := run.train.start_from) is not None:
            records = (folder / FILE for folder in (start, start.parent.parent))
            for record in (record for record in records if record.is_file()):
                inputs.descend_from(read_json(record))
        return inputs

    def start(self, option: str, checkpoint: Checkpoint | None) -> None:
        """Note weights that the run starts with, and what they have learned from."""
        self.note(option, None if checkpoint is None else checkpoint.hash)
        if checkpoint is not None:
            self.descend_from(checkpoint.card)

    def descend_from(self, record: Any) -> None:
        """Note what a record of earlier inputs, such as a card, says was learned from."""
        if isinstance(record, Mapping):
            for name in ("data", "learned_before"):
                sources = record.get(name)
                self.learned_before += sources if isinstance(sources, list) else []

    def split(self, store: EpisodeStore, val_ratio: float, *, both_sides: bool = True) -> Split:
        """The split of a data set: a new one at random, or that of the run in this folder.

        Args:
            store: the data.
            val_ratio: share of the episodes for validation, for a new run.
            both_sides: whether a side may not be empty.

        Raises:
            UserError: it is not what the run began with, or nothing is left on a side.
        """
        now = fingerprint(store)
        before = self._source_before(store)
        if before is None:
            sides = split_episodes(len(store), val_ratio, self.seed)
            started_with, validation = len(store), sides[1]
        else:
            self._require_same(store, before, now)
            started_with = before.started_with
            validation = np.array(before.validation, np.int64)
        training = np.setdiff1d(np.arange(len(store)), validation)
        if both_sides and (len(training) == 0 or len(validation) == 0):
            raise UserError(
                f"{store.label} has {len(store)} episode{'s' * (len(store) > 1)}, of which "
                f"--val-ratio {val_ratio:g} leaves {len(training)} to train on and "
                f"{len(validation)} to validate; training needs at least one of each."
            )
        self.sources.append(
            Source(
                path=store.label,
                fingerprint=now,
                started_with=started_with,
                validation=tuple(validation.tolist()),
            )
        )
        fitted = training[training < started_with]
        return Split(training=training, validation=validation, fitted=fitted)

    def held_out(self, store: EpisodeStore) -> None:
        """Note a data set that is for validation as a whole."""
        now, before = fingerprint(store), self._source_before(store, held_out=True)
        if before is not None and (difference := before.fingerprint.difference(now)):
            raise UserError(
                f"{store.label} holds other data than the run in {self.out} validates on "
                f"({difference}); give those."
            )
        everything = tuple(range(len(store)))
        self.sources.append(
            Source(
                path=store.label,
                fingerprint=now,
                started_with=len(store),
                validation=everything,
                held_out=True,
            )
        )

    def note(self, option: str, digest: str | None) -> None:
        """Note what an option names, such as a tokenizer, by its hash; None: nothing.

        Raises:
            UserError: the run began with something else.
        """
        if self._before is not None and (old := self._before["weights"].get(option)) != digest:
            raise UserError(
                f"The run in {self.out} began with --{option} {old or 'left out'}, now it is "
                f"{digest or 'left out'}; give what it began with, wherever it lies now, or "
                "another --out."
            )
        if digest is not None:
            self.weights[option] = digest

    def require_all(self) -> None:
        """Raise a `UserError` where something that the run began with has not been named."""
        if self._before is None:
            return
        if missing := [Source.from_json(s, str(self.out)) for s in self._before["data"]][
            len(self.sources) :
        ]:
            raise UserError(
                f"The run in {self.out} began with {len(self._before['data'])} data sets, and "
                f"{missing[0].path} is not among those named now; give those, or another --out."
            )
        for option in self._before["weights"]:
            if option not in self.weights:
                self.note(option, None)

    def require_unchanged(self) -> None:
        """Raise a `UserError` where another start has written the run's record since."""
        path = None if self.out is None else self.out / FILE
        if path is not None and (read_json(path) if path.exists() else None) != self._before:
            raise UserError(
                f"Another start has begun or changed the run in {self.out} meanwhile; start again, "
                "or give another --out."
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "data": [s.to_json() for s in self.sources],
            "weights": self.weights,
            "learned_before": self.learned_before,
        }

    def _source_before(self, store: EpisodeStore, *, held_out: bool = False) -> Source | None:
        if self._before is None:
            return None
        sources, number = self._before["data"], len(self.sources)
        if number >= len(sources):
            raise UserError(
                f"The run in {self.out} began with {len(sources)} data sets, and {store.label} is "
                "one more; give those, or another --out."
            )
        before = Source.from_json(sources[number], f"{self.out}/{FILE}")
        if before.held_out != held_out:
            kinds = ("to learn from", "to validate with")
            raise UserError(
                f"The run in {self.out} began with {before.path} as data {kinds[before.held_out]}, "
                f"now {store.label} is named as data {kinds[held_out]}; name them as before, or "
                "give another --out."
            )
        return before

    def _require_same(self, store: EpisodeStore, before: Source, now: Fingerprint) -> None:
        old = before.fingerprint
        if (difference := old.difference(now)) is None:
            return
        grown = now.episodes > old.episodes
        if not grown or old.difference(fingerprint(store, old.episodes)) is not None:
            raise UserError(
                f"{store.label} holds other data than the run in {self.out} began with "
                f"({difference}); give those, wherever they lie now, or another --out."
            )
        if not self.new_episodes:
            raise UserError(
                f"{store.label} has grown since the run in {self.out} began: {now.episodes} "
                f"episodes instead of {old.episodes}; add --new-episodes to learn from the new "
                "ones too, with the split and the statistics of the run, or give another --out."
            )


def file_digest(name: str | Path | None) -> str | None:
    """What an option names, by content: "sha256:..." of a file, of all its files for a folder.

    What is neither, such as "module:function", stands for itself; None for nothing.
    """
    if name is None:
        return None
    path, digest = Path(name), hashlib.sha256()
    if not path.exists():
        return str(name)
    for file in listed(path, "**/*") if path.is_dir() else [path]:
        if not file.is_file() or "__pycache__" in file.parts:
            continue
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
