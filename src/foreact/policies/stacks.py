"""What policies on codes remember: the newest T frames of every episode, each encoded once, when it arrives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foreact.policies.history import generator_for
from foreact.types import Observation, StreamSpec, UserError
from foreact.weights.tokenizers import LoadedTokenizer


class Moment(NamedTuple):
    """Some episodes at one and the same step.

    Attributes:
        stacks: int64 (B, T, h, w) on the device, oldest frame first; before an episode its first frame stands in.
        step: which step it is.
        rngs: a generator on the CPU for every episode, seeded by its seed and the step.
    """

    stacks: Tensor
    step: int
    rngs: list[torch.Generator]


@dataclass
class _Episode:
    seed: int
    step: int = -1
    codes: deque[Tensor] = field(default_factory=deque)


class Stacks:
    """Frames in, stacks of codes out.

    Args:
        tokenizer: the one whose codes the model reads, on `device` already.
        spec: of the task; says how large the pictures of the camera are.
        camera: which one the model watches.
        frames: T.
        grid: (h, w) of the model.
        batch_size: frames encoded at once; fewer are filled up, so that no code depends on how many run together.
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
            raise UserError(f"The model watches camera '{camera}'; the spec knows {sorted(spec.cameras)}.")
        if tokenizer.tokenizer.vocab is None:
            raise UserError("The model reads codes, and this tokenizer gives continuous latents; use its own.")
        if batch_size < 1:
            raise UserError(f"batch_size should be at least 1, found {batch_size}.")
        self.tokenizer, self.camera, self.size = tokenizer, camera, tuple(spec.cameras[camera])
        self.frames, self.grid = frames, tuple(grid)
        self.batch_size, self.device = batch_size, torch.device(device)
        self._episodes: list[_Episode] = []

    def reset(self, seeds: Sequence[int]) -> None:
        self._episodes = [_Episode(int(seed)) for seed in seeds]

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        """Take in one frame of each of the episodes `ids`; see `foreact.types.Policy`."""
        episodes = self._chosen(ids)
        frames = obs.cameras.get(self.camera)
        if frames is None:
            raise UserError(f"The policy watches camera '{self.camera}'; the observation has {sorted(obs.cameras)}.")
        expected = (len(episodes), *self.size, 3)
        if frames.dtype != np.uint8 or frames.shape != expected:
            raise UserError(
                f"Camera '{self.camera}' should be uint8 {expected}, found {frames.dtype} {frames.shape}; "
                "give one picture per running episode, as large as in training."
            )
        for episode, codes in zip(episodes, self._encode(frames), strict=True):
            if not episode.codes:
                episode.codes = deque([codes] * self.frames, maxlen=self.frames)
            episode.codes.append(codes)
            episode.step += 1

    def now(self, ids: Sequence[int] | None = None) -> Moment:
        """The present of the episodes `ids`, which are all at the same step."""
        episodes = self._chosen(ids)
        steps = {episode.step for episode in episodes}
        if len(steps) != 1 or -1 in steps:
            raise ValueError(
                f"act plans for episodes observed up to one and the same step; these are at {sorted(steps)}."
            )
        step = steps.pop()
        stacks = torch.stack([torch.stack(list(episode.codes)) for episode in episodes])
        return Moment(stacks, step, [generator_for(episode.seed, step) for episode in episodes])

    def _chosen(self, ids: Sequence[int] | None) -> list[_Episode]:
        if not self._episodes:
            raise ValueError("No episode runs; call reset(seeds) first.")
        return self._episodes if ids is None else [self._episodes[i] for i in ids]

    @torch.inference_mode()
    def _encode(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) -> int64 (B, h, w) on the device."""
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)

        def encode(part: Tensor) -> Tensor:
            return self.tokenizer.tokenizer.encode(self.tokenizer.prepare(part.to(self.device))[:, None])[:, 0]

        codes = in_batches(encode, self.batch_size, pictures)
        if tuple(codes.shape[1:]) != self.grid:
            raise UserError(
                f"The model reads {self.grid[0]} x {self.grid[1]} codes per frame, the tokenizer gives "
                f"{' x '.join(map(str, codes.shape[1:]))}; use the tokenizer it was trained with."
            )
        return codes


def in_batches(compute: Callable[..., Tensor], size: int, *rows: Tensor | list[torch.Generator]) -> Tensor:
    """Concatenate `compute` over batches of exactly `size` rows of every argument; what fills up the last is cut off.

    Rounding depends on the shapes of a call, so calls of one shape give a row the same result whatever its neighbours.

    Args:
        compute: called with as many arguments as there are `rows`; its result has one row for each of theirs.
        size: rows of a call.
        rows: tensors (B, ...) or generators, one per row.
    """
    total, parts = len(rows[0]), []
    for start in range(0, total, size):
        here = min(size, total - start)
        parts.append(compute(*(_filled(values[start : start + here], size) for values in rows))[:here])
    return torch.cat(parts)


def _filled(values: Tensor | list[torch.Generator], size: int) -> Tensor | list[torch.Generator]:
    """Repeat the first row until there are `size`; generators of such rows are new ones, so that no draw is taken."""
    missing = size - len(values)
    if missing == 0:
        return values
    if isinstance(values, list):
        return [*values, *(torch.Generator().manual_seed(0) for _ in range(missing))]
    return torch.cat([values, values[:1].expand(missing, *values.shape[1:])])
