"""Memory of policies on codes: each episode's newest T frames, encoded as they arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foreact.checkpoints.format import Checkpoint
from foreact.checkpoints.tokenizers import LoadedTokenizer, tokenizer_of
from foreact.errors import UserError
from foreact.policies.memory import Episode, Memory, generator_for, pictures_of
from foreact.types import Observation, StreamSpec


class StackBatch(NamedTuple):
    """Stacks of some episodes that are all at the same step.

    Attributes:
        stacks: int64 (B, T, h, w) on the device, oldest frame first; before an episode its first
            frame stands in.
        step: which step it is.
        rngs: a generator on the CPU for every episode, seeded by its seed and the step.
    """

    stacks: Tensor
    step: int
    rngs: list[torch.Generator]


@dataclass
class _EpisodeCodes(Episode):
    codes: deque[Tensor] = field(default_factory=deque)


class CodeStacks:
    """Frames in, stacks of codes out.

    Args:
        tokenizer: the one whose codes the model reads, on `device` already.
        spec: of the task; says how large the pictures of the camera are.
        camera: which one the model watches.
        frames: T.
        grid: (h, w) of the model.
        batch_size: frames encoded at once; fewer are filled up, so that no code depends on how many
            run together.
        device: where the tokenizer computes.

    Raises:
        UserError: the spec has no such camera, or the tokenizer gives no codes.
    """

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        spec: StreamSpec,
        *,
        camera: str,
        frames: int,
        grid: tuple[int, int],
        batch_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if camera not in spec.cameras:
            raise UserError(
                f"The model watches camera '{camera}'; the spec knows {sorted(spec.cameras)}."
            )
        if tokenizer.tokenizer.vocab is None:
            raise UserError(
                "The model reads codes, and this tokenizer gives continuous latents; use its own."
            )
        if batch_size < 1:
            raise UserError(f"--batch-size should be at least 1, found {batch_size}.")
        self.spec = spec
        self.tokenizer, self.camera, self.size = tokenizer, camera, spec.cameras[camera]
        self.frames, self.grid = frames, tuple(grid)
        self.batch_size, self.device = batch_size, torch.device(device)
        self._memory = Memory(_EpisodeCodes)

    def reset(self, seeds: Sequence[int]) -> None:
        self._memory.reset(seeds)

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        """Take in one frame of each of the episodes `ids`; see `foreact.types.Policy`."""
        episodes = self._memory.episodes(ids)
        frames = pictures_of(obs, self.camera, len(episodes), self.size)
        for episode, codes in zip(episodes, self._encode(frames), strict=True):
            if not episode.codes:  # the first frame stands in for those before it
                episode.codes = deque([codes] * self.frames, maxlen=self.frames)
            episode.codes.append(codes)
            episode.step += 1

    def now(self, ids: Sequence[int] | None = None) -> StackBatch:
        """The present of the episodes `ids`, which are all at the same step."""
        episodes, step = self._memory.now(ids)
        stacks = torch.stack([torch.stack(list(episode.codes)) for episode in episodes])
        return StackBatch(stacks, step, [generator_for(episode.seed, step) for episode in episodes])

    @torch.inference_mode()
    def _encode(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) -> int64 (B, h, w) on the device."""
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)

        def encode(part: Tensor) -> Tensor:
            video = self.tokenizer.prepare(part.to(self.device))[:, None]  # (B, 1, 3, H, W)
            return self.tokenizer.tokenizer.encode(video)[:, 0]

        codes = in_batches(encode, self.batch_size, pictures)
        if tuple(codes.shape[1:]) != self.grid:
            raise UserError(
                f"The model reads {self.grid[0]} x {self.grid[1]} codes per frame, the tokenizer "
                f"gives {' x '.join(map(str, codes.shape[1:]))}; use the tokenizer it was trained "
                "with."
            )
        return codes


def open_stacks(
    checkpoint: Checkpoint,
    config: Any,
    tokenizer: str | None,
    batch_size: int | None,
    device: torch.device | str,
) -> CodeStacks:
    """The memory of a model on codes.

    Args:
        checkpoint: the model's.
        config: of the model; has `camera`, `frames` and `grid`.
        tokenizer: where its tokenizer lies, if it is not embedded.
        batch_size: see `CodeStacks`; None: 1 on a CPU, which gains little from more, else 32.
        device: where to compute.

    Raises:
        UserError: the checkpoint has no spec, or the tokenizer is not at hand.
    """
    if checkpoint.spec is None:
        raise UserError(
            f"{checkpoint.path} has no spec, so it cannot act; export it again with the task it "
            "was trained on."
        )
    if batch_size is None:
        batch_size = 1 if torch.device(device).type == "cpu" else 32
    return CodeStacks(
        tokenizer_of(checkpoint, tokenizer, device),
        checkpoint.spec,
        camera=config.camera,
        frames=config.frames,
        grid=config.grid,
        batch_size=batch_size,
        device=device,
    )


def in_batches(
    compute: Callable[..., Tensor], size: int, *rows: Tensor | list[torch.Generator]
) -> Tensor:
    """Concatenate `compute` over batches of exactly `size` rows, without those that fill up.

    Rounding depends on the shapes of a call, so calls of one shape give a row the same result
    whatever its neighbours.

    Args:
        compute: called with as many arguments as there are `rows`; its result has one row for each
            of theirs.
        size: rows of a call.
        rows: tensors (B, ...) or generators, one per row.
    """
    total, parts = len(rows[0]), []
    for start in range(0, total, size):
        count = min(size, total - start)
        batch = [_filled(values[start : start + count], size) for values in rows]
        parts.append(compute(*batch)[:count])
    return torch.cat(parts)


def _filled(values: Tensor | list[torch.Generator], size: int) -> Tensor | list[torch.Generator]:
    """Repeat the first row until there are `size` of them.

    Generators that fill up are new ones, so that no draw of the first row is taken.
    """
    missing = size - len(values)
    if missing == 0:
        return values
    if isinstance(values, list):
        return [*values, *(torch.Generator().manual_seed(0) for _ in range(missing))]
    return torch.cat([values, values[:1].expand(missing, *values.shape[1:])])
