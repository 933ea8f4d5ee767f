"""Frames of a store -> a stream of latents or tokens, one shard after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from foreact.checkpoints.tokenizers import LoadedTokenizer
from foreact.data.stores.derived import Shard, open_stream
from foreact.data.stores.episodes import EpisodeStore
from foreact.errors import UserError
from foreact.machine import Precision, autocast, choose_precision
from foreact.progress import Progress
from foreact.runs.ranks import Ranks

SHARD_STEPS = 4096
"""Default rows per shard, rounded up to whole chunks: what a process that is killed loses at most.
"""


class StreamEncoder:
    """Encodes a camera's frames: `latents_<camera>` float16 or `tokens_<camera>` uint16.

    What a row holds depends on its frame, the tokenizer, the precision and the batch it is encoded
    in; batches start anew in every shard, so that no row depends on who encodes which shard, or
    when.

    Args:
        store: where the frames lie.
        home: store that gets the stream, if not the one of the frames.
        camera: which ones.
        tokenizer: see `foreact.checkpoints.tokenizers.open_tokenizer`; on `device` already.
        batch_size: frames per call.
        device: where the tokenizer computes.
        precision: "bf16" computes under autocast, as the reference did for its data sets.

    Attributes:
        stream: the stream in the making.
        hash: the tokenizer's.
        vocab: the tokenizer's.

    Raises:
        UserError: the vocabulary does not fit 16 bits, or the stream cannot be begun.
    """

    def __init__(
        self,
        store: EpisodeStore,
        camera: str,
        tokenizer: LoadedTokenizer,
        *,
        home: Path | None = None,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        if batch_size < 1:
            raise UserError(f"--batch-size should be at least 1, found {batch_size}.")
        self.store, self.camera, self.batch_size, self.hash = (
            store,
            camera,
            batch_size,
            tokenizer.hash,
        )
        self.tokenizer, self.prepare = tokenizer.tokenizer, tokenizer.prepare
        self.device = torch.device(device)
        self.precision: Precision = choose_precision(precision, torch.device(device))
        self.vocab = self.tokenizer.vocab
        if self.vocab is not None and self.vocab > 2**16:
            raise UserError(
                f"Tokens are stored in 16 bits; a vocabulary of {self.vocab} does not "
                "fit into 65536."
            )
        row = self.encode(store.gather(camera, np.arange(1)), 0)
        self.stream = open_stream(
            home or store.path,
            f"{'latents' if self.vocab is None else 'tokens'}_{camera}",
            shape=row.shape[1:],
            dtype=row.dtype,
            attrs={"tokenizer": tokenizer.hash, "precision": precision},
        )

    def fill(self, shard: Shard, progress: Callable[[int], object]) -> None:
        """Encode and write one shard; `progress` is told the number of frames after each batch."""
        starts = range(shard.start, shard.stop, self.batch_size)
        parts = []
        # One thread decodes the next batch of frames while this one is encoded.
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._read, shard, starts[0])
            for start in starts:
                frames = ahead.result()
                if start != starts[-1]:
                    ahead = reader.submit(self._read, shard, start + self.batch_size)
                parts.append(self.encode(frames, start))
                progress(len(frames))
        self.stream.write(shard, np.concatenate(parts))

    @torch.inference_mode()
    def encode(self, frames: np.ndarray, start: int) -> np.ndarray:
        """Encode one batch.

        Args:
            frames: uint8 (T, H, W, 3).
            start: step of the first one.

        Returns:
            float16 (T, c, h, w) in scaled units, or uint16 (T, h, w) in 0..vocab-1.

        Raises:
            UserError: the result is not finite or not in the vocabulary, or the batch does not fit
                in memory.
        """
        # For tokenizers that sample: draws depend on the batch's first step alone.
        rng = torch.Generator(self.device).manual_seed(start)
        try:
            video = self.prepare(torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2)[None])
            with autocast(self.device, self.precision):
                codes = self.tokenizer.encode(video, rng=rng)[0]
        except torch.OutOfMemoryError:
            raise UserError(
                f"{len(frames)} frames at once do not fit in the memory of {self.device}; lower "
                "--batch-size."
            ) from None
        rows = (codes.float() if self.vocab is None else codes).cpu().numpy()
        self.require_valid(rows, start)
        return rows.astype(np.float16 if self.vocab is None else np.uint16)

    def _read(self, shard: Shard, start: int) -> np.ndarray:
        return self.store.gather(
            self.camera, np.arange(start, min(start + self.batch_size, shard.stop))
        )

    def require_valid(self, rows: np.ndarray, start: int) -> None:
        """Raise a `UserError` on tokens outside the vocabulary or latents beyond float16."""
        if self.vocab is None:
            # NaN fails every comparison, so it counts as wrong too.
            wrong = ~(np.abs(rows) <= np.finfo(np.float16).max)
            meant = "numbers within the range of float16"
        else:
            wrong = (rows < 0) | (rows >= self.vocab)
            meant = f"tokens in 0..{self.vocab - 1}"
        if wrong.any():
            at = np.argwhere(wrong)[0]
            raise UserError(
                f"Camera '{self.camera}' of {self.store.path} should be encoded into {meant}, "
                f"found {rows[tuple(at)]} at step {start + at[0]}; check that tokenizer and store "
                "are whole."
            )

    def finish(self, steps: int) -> None:
        """Read the whole stream back, check it and put it in its place.

        Raises:
            UserError: rows are missing or damaged; damaged ones are made anew by the next run.
        """
        if self.stream.is_whole():
            return
        with Progress(total=self.stream.rows, unit="frame", desc="verify") as bar:
            for shard in self.stream.shards(steps):
                try:
                    self.require_valid(self.stream.read(shard), shard.start)
                except UserError:
                    if self.stream.is_whole():  # moved into its place by another process
                        return
                    self.stream.discard(shard)
                    raise
                bar.update(len(shard))
        self.stream.finish()


@dataclass(frozen=True)
class Throughput:
    """What one run did: frames encoded by all of its processes, and the seconds that took."""

    frames: int
    seconds: float

    def __str__(self) -> str:
        if not self.frames:
            return "nothing was left to encode"
        rate = self.frames / self.seconds
        return f"{self.frames} frames in {self.seconds:.1f} s, {rate:.1f} frames/s"


def encode_stream(
    encoder: StreamEncoder, *, shard_steps: int = SHARD_STEPS, ranks: Ranks | None = None
) -> Throughput:
    """Fill and finish the stream of `encoder`, alone or with torchrun's other processes.

    Shard i is the work of process i modulo their number. The first process shows the progress of
    all, waits for the others and finishes; they return as soon as their own shards are done.

    Args:
        encoder: of this process.
        shard_steps: rows per shard.
        ranks: this process among the others; default: it is alone.

    Raises:
        UserError: this process or another one failed; what was done is kept.
    """
    ranks, stream, started = ranks or Ranks(), encoder.stream, time.monotonic()
    missing = stream.missing(shard_steps)
    own_shards = [shard for shard in missing if shard.index % ranks.count == ranks.rank]
    if (not own_shards and ranks.rank > 0) or stream.finished:
        return Throughput(0, 0.0)
    total = sum(map(len, missing))
    with (
        ranks.working(stream.notes),
        Progress(total=total, unit="frame", desc="encode", disable=ranks.rank > 0) as bar,
    ):

        def progress(frames: int) -> None:
            ranks.report(frames)
            bar.update(frames)

        def left() -> int:
            return sum(map(len, stream.missing(shard_steps)))

        for shard in own_shards:
            encoder.fill(shard, progress)
            ranks.check()
            if ranks.count > 1:
                bar.update(total - left() - bar.n)
        if ranks.rank == 0:
            for remaining in ranks.wait(left):
                bar.update(total - remaining - bar.n)
    done = Throughput(total, time.monotonic() - started)
    if ranks.rank == 0:
        encoder.finish(shard_steps)
    return done
