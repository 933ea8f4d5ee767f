"""Windows of drives: token frames at a lower rate, each with a plan (waypoints) and a command.

raw frames      .   .   .   .   .   .   .   .   .   .   .         stride 2, 3 frames, horizon 2
frames          t0      t1      t2
plan of t0              k0      k1
plan of t2                              k0      k1
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from foreact.errors import UserError
from foreact.families.driving.data import ego
from foreact.families.driving.data.drives import Drives
from foreact.types import ActionSpec, Batch, StreamSpec

LARGEST_GAP = 1.5
"""Nominal frame periods from one frame to the next beyond which frames are missing between them."""


class DrivingWindows:
    """All windows of some drives, at every raw start frame, in the order of the drives.

    Args:
        drives: where they come from.
        frames: T, frames per window.
        stride: raw frames from one frame to the next; 5 makes 2 Hz of 10 Hz.
        horizon: K, waypoints per frame, `stride` raw frames apart; None for tokens alone.
        future: strides that must follow the last frame; by default the horizon. The released VaViM
            was fine-tuned on tokens alone with 6, which leaves out the last three seconds of every
            drive.
        command_horizon: how far ahead a command looks. "plan": to the last waypoint. "reference":
            `horizon` raw frames, as the released VaVAM was trained; the same for stride 1, a fifth
            of the plan for stride 5.
        command_threshold: metres to a side that make a turn.
        gaps: windows across a gap in the timestamps are left out, with a warning that counts them,
            or kept.
        vocab: number of token ids; ids beyond are an error. None: not checked.
        camera: key of the tokens in the batch.
        episodes: numbers of the drives to take; by default all.

    Attributes:
        spec: what the plans mean.

    Raises:
        UserError: no window fits, plans are asked for and the drives have no poses, or a size that
            makes no sense.
    """

    augments = False

    def __init__(
        self,
        drives: Drives,
        *,
        frames: int = 8,
        stride: int = 5,
        horizon: int | None = 6,
        future: int | None = None,
        command_horizon: Literal["plan", "reference"] = "plan",
        command_threshold: float = 2.0,
        gaps: Literal["leave_out", "keep"] = "leave_out",
        vocab: int | None = None,
        camera: str = "front",
        episodes: np.ndarray | Sequence[int] | None = None,
    ) -> None:
        waypoints = horizon or 0
        future = waypoints if future is None else future
        if frames < 1 or stride < 1 or (horizon is not None and horizon < 1) or future < waypoints:
            raise UserError(
                "Expected frames, stride and horizon >= 1 and future >= horizon, found "
                f"frames {frames}, stride {stride}, horizon {horizon}, future {future}."
            )
        if command_horizon not in ("plan", "reference") or gaps not in ("leave_out", "keep"):
            raise UserError(
                "Expected command_horizon 'plan' or 'reference' and gaps 'leave_out' or 'keep', "
                f"found '{command_horizon}' and '{gaps}'."
            )
        if horizon is not None and drives.poses is None:
            raise UserError(
                f"{drives.label} has no ego poses to make plans from; train on tokens alone "
                "(horizon None)."
            )
        self.drives, self.frames, self.stride, self.horizon = drives, frames, stride, horizon
        self.command_threshold, self.vocab, self.camera = command_threshold, vocab, camera
        self._command_steps = waypoints * (stride if command_horizon == "plan" else 1)
        self.spec = StreamSpec(
            cameras={},
            fps=drives.rate_hz / stride,
            action=None if horizon is None else plan_spec(drives.rate_hz / stride),
        )
        if episodes is None:
            episodes = np.arange(len(drives.lengths))
        span, cut = (frames - 1 + future) * stride, gaps == "leave_out"
        self._find_runs(span, np.asarray(episodes, np.int64), cut=cut)

    def _find_runs(self, span: int, episodes: np.ndarray, *, cut: bool) -> None:
        """Find the runs of raw frames without a gap; each gives max(0, length - span) windows."""
        drives = self.drives
        starts, stops = drives.starts[episodes], drives.starts[episodes] + drives.lengths[episodes]
        uncut = int(np.maximum(stops - starts - span, 0).sum())  # windows if no gap counted
        runs = np.stack([episodes, starts, stops], axis=1)
        if cut and drives.timestamps is not None and len(runs):
            runs = np.concatenate([self._cut(*run) for run in runs.tolist()])
        # Windows are numbered run after run: run r holds those in _ends[r - 1].._ends[r].
        counts = np.maximum(runs[:, 2] - runs[:, 1] - span, 0)
        self._episodes, self._first, self._ends = runs[:, 0], runs[:, 1], np.cumsum(counts)
        if len(self) == 0:
            lengths = (stops - starts).tolist()
            has = "no drive at all"
            if lengths:
                has = f"{len(lengths)} drives of {min(lengths)} to {max(lengths)}"
            raise UserError(
                f"A window spans {span + 1} raw frames; none fits into {drives.label}, "
                f"{has}{' with gaps between them' if uncut else ''}: take fewer frames, a "
                "smaller stride or longer drives."
            )
        if len(self) < uncut:
            warnings.warn(
                f"{uncut - len(self)} of {uncut} windows of {drives.label} cross a gap of more "
                f"than {LARGEST_GAP} frame periods in the timestamps and are left out.",
                stacklevel=3,
            )

    def _cut(self, episode: int, start: int, stop: int) -> np.ndarray:
        """Runs (R, 3) of one drive: episode, first row, end row."""
        assert self.drives.timestamps is not None
        periods = np.diff(self.drives.timestamps[start:stop])  # microseconds
        gap = (periods > LARGEST_GAP * 1e6 / self.drives.rate_hz) | (periods <= 0)
        edges = np.concatenate([[start], start + 1 + np.flatnonzero(gap), [stop]])
        return np.stack([np.full(len(edges) - 1, episode), edges[:-1], edges[1:]], axis=1)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def load(self) -> None:
        self.drives.load()

    def index(self, chosen: np.ndarray) -> np.ndarray:
        """Drive and last raw frame of windows (B,): int64 (B, 2)."""
        run, first = self._starts(chosen)
        episodes = self._episodes[run]
        last = first + (self.frames - 1) * self.stride
        return np.stack([episodes, last - self.drives.starts[episodes]], axis=1)

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Rows of the drives that windows (B,) cover, `stride` apart: int64 (B, T + K)."""
        steps = np.arange(self.frames + (self.horizon or 0)) * self.stride
        return self._starts(chosen)[1][:, None] + steps

    def poses(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Poses of the frames (B, T, 7) of windows (B,), and of their waypoints (B, T, K, 7)."""
        if self.horizon is None or self.drives.poses is None:
            raise UserError(f"These windows of {self.drives.label} have no plans; give a horizon.")
        poses = self.drives.poses[self.rows(chosen)]
        # (T, K) columns of `rows`: the K frames after each of the T frames.
        ahead = np.arange(self.frames)[:, None] + 1 + np.arange(self.horizon)
        return poses[:, : self.frames], poses[:, ahead]

    def yaw_rates(self, chosen: np.ndarray) -> np.ndarray:
        """Greatest yaw rate in the plans of windows (B,): float64 (B,), radians per waypoint."""
        origin, targets = self.poses(chosen)
        if targets.shape[2] < 2:
            raise UserError("One waypoint tells no turn; give a horizon of 2 or more.")
        return ego.yaw_rate(ego.relative_rotations(origin, targets)).max(axis=1)

    def batch(self, chosen: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """Collate windows (B,): tokens, index and, with a horizon, plans (metres) and commands.

        Raises:
            UserError: tokens that are missing, damaged, or outside the vocabulary.
        """
        rows = self.rows(chosen)[:, : self.frames]
        index = torch.from_numpy(self.index(chosen))
        batch = Batch(tokens={self.camera: self._tokens(rows)}, index=index)
        if self.horizon is not None:
            origin, targets = self.poses(chosen)
            assert self.drives.poses is not None
            batch.plans = torch.from_numpy(ego.waypoints(origin, targets).astype(np.float32))
            ahead = self.drives.poses[rows + self._command_steps]
            batch.commands = torch.from_numpy(ego.commands(origin, ahead, self.command_threshold))
        return batch.check(self.spec)

    def _starts(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run and first row of windows (B,)."""
        chosen = np.asarray(chosen, np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise UserError(
                f"There are windows 0..{len(self) - 1}; "
                f"{chosen.min()}..{chosen.max()} were asked for."
            )
        run = np.searchsorted(self._ends, chosen, side="right")
        before = np.concatenate([[0], self._ends])[run]
        return run, self._first[run] + chosen - before

    def _tokens(self, rows: np.ndarray) -> torch.Tensor:
        tokens = self.drives.tokens(rows).astype(np.int64, copy=False)
        if self.vocab is None or not tokens.size:
            return torch.from_numpy(tokens)
        if tokens.min() < 0 or tokens.max() >= self.vocab:
            bad = tuple(np.argwhere((tokens < 0) | (tokens >= self.vocab))[0])  # window, frame, ...
            raise UserError(
                f"Token ids should be in 0..{self.vocab - 1}, found {tokens[bad]} in "
                f"{self.drives.where(int(rows[bad[:2]]))}; use tokens and weights of the same "
                "tokenizer."
            )
        return torch.from_numpy(tokens)


def plan_spec(rate_hz: float) -> ActionSpec:
    """What the numbers of a plan mean: metres forward and left of the frame that it starts from."""
    return ActionSpec(
        names=("forward", "left"), units=("m", "m"), frame="ego", mode="relative", rate_hz=rate_hz
    )
