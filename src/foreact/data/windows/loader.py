"""Windows of a store -> `Batch`, in an order that is a pure function of (seed, position).

Training sees the concatenation of one permutation of all windows per epoch. Micro-batch m holds its
positions m * batch_size .. (m + 1) * batch_size, whoever makes it; so any run goes on at any m,
with any number of ranks and workers, and nothing about the order has to be saved.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.text_features import InstructionRows, TextFeatures
from foreact.data.windows.anchors import Gaps, find_anchors
from foreact.data.windows.augment import Augment
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window, place
from foreact.errors import UserError
from foreact.types import Batch, StreamSpec

# Separate streams of one seed, so that augmentation and order never share draws.
ORDER, SAMPLE = 0, 1

PIPE_BYTES = 2**20
"""Tensors below this size leave a worker process through its pipe."""


class Windows(Protocol):
    """Samples by number, which `batches` and `ordered_batches` put in order."""

    @property
    def augments(self) -> bool:
        """Whether `batch` makes use of `rngs`."""
        ...

    def __len__(self) -> int: ...

    def load(self) -> None:
        """Take in memory what fits, before worker processes are forked."""
        ...

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """Collate the samples `chosen` (B,); training gives each its generator for augmentation."""
        ...


class WindowDataset:
    """All windows of the chosen episodes of a store.

    Args:
        store: where they come from.
        window: what one sample is.
        episodes: episode numbers, such as one side of `split_episodes`.
        normalizer: scales actions and states; None only where the window has neither.
        augment: changes the pixels of training samples; None for validation.
        gaps: see `find_anchors`.
        vocab: number of token ids; ids beyond are an error. None: not checked.
        spec: what the batches should fit; the store's own by default.
        text: features of the store's instructions; None only where the window has no text.

    Raises:
        UserError: no window fits, a stream is missing in the store or in the statistics, an
            instruction has no features, or `augment` without pixels.
    """

    def __init__(
        self,
        store: EpisodeStore,
        window: Window,
        episodes: np.ndarray | Sequence[int],
        normalizer: Normalizer | None = None,
        augment: Augment | None = None,
        *,
        gaps: Gaps = "leave_out",
        vocab: int | None = None,
        spec: StreamSpec | None = None,
        text: TextFeatures | None = None,
    ) -> None:
        self.store, self.window, self.normalizer, self.augment = store, window, normalizer, augment
        self.spec, self.vocab = spec or store.spec, vocab
        self.anchors = find_anchors(store, window, np.asarray(episodes, np.int64), gaps)
        self.text = self._text(text) if window.text else None
        if augment is not None and not window.video:
            raise UserError(
                "Augmentation changes pixels, and this window has none; leave it out "
                "or train on pixels."
            )
        for entry in window.entries:
            if entry.kind == "video" and entry.stream not in store.spec.cameras:
                raise UserError(
                    f"The store {store.path} has cameras "
                    f"{sorted(store.spec.cameras)}, not '{entry.name}'."
                )
            if entry.kind == "rewards" and not store.spec.has_reward:
                raise UserError(
                    f"The store {store.path} has no rewards, and the window needs "
                    "them; use another store."
                )
            if entry.kind in ("state", "actions", "past_actions"):
                self._normalize(np.zeros((1, self._width(entry.stream)), np.float32), entry.stream)

    def _text(self, text: TextFeatures | None) -> tuple[np.ndarray, InstructionRows]:
        if text is None:
            raise UserError(
                f"The window has instructions and {self.store.label} has no features for them; "
                "name a text encoder."
            )
        return text.features, InstructionRows(self.store, text)

    @property
    def augments(self) -> bool:
        return self.augment is not None

    def __len__(self) -> int:
        return len(self.anchors)

    @property
    def index(self) -> np.ndarray:
        """Episode and anchor of every window: int64 (N, 2)."""
        return self.anchors.at(np.arange(len(self)))

    def load(self) -> None:
        """Take in memory what fits, now: worker processes forked afterwards share it."""
        for entry in self.window.entries:
            self.store.reader(entry.stream)

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """Collate windows.

        Args:
            chosen: int (B,) their numbers.
            rngs: one generator per window for augmentation; None for no augmentation.

        Raises:
            UserError: rows that are missing or damaged, or token ids outside the vocabulary.
        """
        at = self.anchors.at(chosen)
        lengths, starts = self.store.lengths[at[:, 0]], self.store.starts[at[:, 0]]
        batch = Batch(index=torch.from_numpy(at))
        if self.text is not None:
            features, instructions = self.text
            anchors = np.clip(at[:, 1], 0, lengths - 1)  # one may lie in the padding
            batch.text = torch.from_numpy(features[instructions[starts + anchors]])
        for entry in self.window.entries:
            steps, inside = place(entry.offsets, at[:, 1], lengths)
            if self.window.leaves(entry.offsets):
                batch.valid[entry.name] = torch.from_numpy(inside)
            rows = starts[:, None] + steps
            values = self.store.gather(entry.stream, rows)
            if entry.compute is not None:
                setattr(batch, entry.kind, torch.from_numpy(entry.compute(values)))
            elif entry.kind == "video":
                video = torch.from_numpy(values).permute(0, 1, 4, 2, 3).contiguous()
                batch.video[entry.name] = video if rngs is None else self._augmented(video, rngs)
            elif entry.kind == "latents":
                batch.latents[entry.name] = torch.from_numpy(values.astype(np.float32))
            elif entry.kind == "tokens":
                tokens = values.astype(np.int64, copy=False)
                self._require_known(tokens, rows)
                batch.tokens[entry.name] = torch.from_numpy(tokens)
            elif entry.kind == "rewards":
                batch.rewards = torch.from_numpy(values.astype(np.float32, copy=False)[..., 0])
            elif entry.kind == "state":
                batch.state[entry.name] = self._normalize(values, entry.stream)
            else:
                setattr(batch, entry.kind, self._normalize(values, entry.stream))
        return batch.check(self.spec)

    def _require_known(self, tokens: np.ndarray, rows: np.ndarray) -> None:
        """Raise a `UserError` for an id of `tokens` (B, T, h, w) outside the vocabulary."""
        if self.vocab is None or not tokens.size:
            return
        if tokens.min() < 0 or tokens.max() >= self.vocab:
            bad = tuple(np.argwhere((tokens < 0) | (tokens >= self.vocab))[0])  # window, step, ...
            raise UserError(
                f"Token ids should be in 0..{self.vocab - 1}, found {tokens[bad]} in "
                f"{self.store.where(int(rows[bad[:2]]))}; use tokens and weights of the same "
                "tokenizer."
            )

    def _augmented(self, video: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        if self.augment is None:
            return video
        return torch.stack([self.augment(clip, rng) for clip, rng in zip(video, rngs, strict=True)])

    def _normalize(self, values: np.ndarray, stream: str) -> Tensor:
        if self.normalizer is None:
            raise UserError(
                f"The window has '{stream}' and there are no statistics for it; give a normalizer."
            )
        return torch.from_numpy(self.normalizer.encode(values, stream))

    def _width(self, stream: str) -> int:
        spec = self.store.spec
        if stream == "action" and spec.action is not None:
            return spec.action.dim
        if stream not in spec.state:
            has = [*spec.state, *(["action"] if spec.action is not None else [])]
            raise UserError(f"The store {self.store.path} has the numbers {has}, not '{stream}'.")
        return len(spec.state[stream])


def batches(
    dataset: Windows,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Endless micro-batches for training: numbers start + rank, start + rank + world, ...

    Args:
        dataset: the windows.
        batch_size: windows per micro-batch; an epoch's border may lie inside one.
        seed: decides order and augmentation, together with the position.
        workers: processes that prepare batches; 0 for this one. Changes nothing in the batches.
        start: first micro-batch of all ranks together.
        rank, world: this process and how many there are.
    """
    if batch_size < 1 or world < 1 or not 0 <= rank < world or start < 0 or workers < 0:
        raise UserError(
            "Expected batch_size >= 1, workers >= 0, start >= 0 and 0 <= rank < world, found "
            f"batch_size {batch_size}, workers {workers}, start {start}, rank {rank}, world "
            f"{world}."
        )
    dataset.load()
    loader = DataLoader(
        cast(Dataset, MicroBatches(dataset, batch_size, seed)),
        batch_size=None,
        sampler=itertools.count(start + rank, world),
        num_workers=workers,
        # Torch's type is for a list of samples; without a batch size it is called with one sample.
        collate_fn=_parcel if workers else None,  # pyright: ignore[reportArgumentType]
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader takes a number from the global generator
    )
    return _raising(loader)


def ordered_batches(
    dataset: Windows, *, batch_size: int, chosen: np.ndarray | None = None
) -> Iterator[Batch]:
    """Every window once, in order, without augmentation: for evaluation.

    Args:
        dataset: the windows.
        batch_size: windows per batch; the last may have fewer.
        chosen: int (M,) windows to take instead of all.
    """
    if batch_size < 1:
        raise UserError(f"Expected batch_size >= 1, found {batch_size}.")
    rows = np.arange(len(dataset)) if chosen is None else np.asarray(chosen)
    for first in range(0, len(rows), batch_size):
        yield dataset.batch(rows[first : first + batch_size])


def spread(windows: int, at_most: int) -> np.ndarray:
    """Up to `at_most` of the numbers 0..windows-1, evenly spaced from first to last: int64."""
    return np.linspace(0, windows - 1, min(at_most, windows)).round().astype(np.int64)


def spread_batches(dataset: Windows, *, at_most: int, batch_size: int) -> list[Batch]:
    """Up to `at_most` windows, spread evenly over the set, for measuring during training."""
    chosen = spread(len(dataset), at_most)
    return list(ordered_batches(dataset, batch_size=batch_size, chosen=chosen))


class MicroBatches:
    """Micro-batch number -> `Batch`; a map-style dataset for torch's DataLoader.

    A `UserError` comes back as a value, since the DataLoader would bury its sentence in a
    traceback.
    """

    def __init__(self, dataset: Windows, batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed

    def __getitem__(self, number: int) -> Batch | UserError:
        positions = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        rngs = None
        if self.dataset.augments:
            rngs = [_generator(self.seed, SAMPLE, int(p)) for p in positions]
        try:
            return self.dataset.batch(order(len(self.dataset), self.seed, positions), rngs)
        except UserError as error:
            return error


class _Parcel:
    """A batch on its way out of a worker process, where it arrives as a plain `Batch`.

    torch passes every tensor as a shared memory file of its own, announced over a socket; a copy
    through the pipe that is there anyway takes a tenth of the time for small ones.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        batch = self.batch.map(lambda t: cast(Tensor, t.numpy()) if t.nbytes < PIPE_BYTES else t)
        return _unpack, (batch,)


def _parcel(sample: Batch | UserError) -> _Parcel | UserError:
    return _Parcel(sample) if isinstance(sample, Batch) else sample


def _unpack(batch: Batch) -> Batch:
    return batch.map(torch.as_tensor)


def order(windows: int, seed: int, positions: np.ndarray) -> np.ndarray:
    """Windows (0..windows-1) at the given positions of the endless training order."""
    epochs, within = np.divmod(positions, windows)
    out = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        out[in_epoch] = _permutation(windows, seed, int(epoch))[within[in_epoch]]
    return out


@lru_cache(maxsize=4)
def _permutation(windows: int, seed: int, epoch: int) -> np.ndarray:
    return _generator(seed, ORDER, epoch).permutation(windows)


def _generator(seed: int, stream: int, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, number)))


def _raising(loader: DataLoader) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
