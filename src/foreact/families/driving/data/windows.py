"""Windows of drives: token frames at a lower rate, each with a plan (waypoints) and a command.

raw frames      .   .   .   .   .   .   .   .   .   .   .         stride 2, 3 frames, horizon 2
frames          t0      t1      t2                                anchor t2
plan of t0              k0      k1
plan of t2                              k0      k1
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.windows.anchors import Gaps
from foreact.data.windows.loader import WindowDataset
from foreact.data.windows.window import Entry, Window
from foreact.errors import UserError
from foreact.families.driving.data import ego
from foreact.families.driving.data.drives import EGO_POSE, FRONT
from foreact.types import ActionSpec, StreamSpec


class DrivingWindows(WindowDataset):
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
        camera: whose tokens.
        episodes: numbers of the drives to take; by default all.

    Attributes:
        spec: what the plans mean.

    Raises:
        UserError: no window fits, plans are asked for and the drives have no poses, or a size that
            makes no sense.
    """

    def __init__(
        self,
        drives: EpisodeStore,
        *,
        frames: int = 8,
        stride: int = 5,
        horizon: int | None = 6,
        future: int | None = None,
        command_horizon: Literal["plan", "reference"] = "plan",
        command_threshold: float = 2.0,
        gaps: Gaps = "leave_out",
        vocab: int | None = None,
        camera: str = FRONT,
        episodes: np.ndarray | Sequence[int] | None = None,
    ) -> None:
        waypoints = horizon or 0
        future = waypoints if future is None else future
        if frames < 1 or stride < 1 or (horizon is not None and horizon < 1) or future < waypoints:
            raise UserError(
                "Expected frames, stride and horizon >= 1 and future >= horizon, found "
                f"frames {frames}, stride {stride}, horizon {horizon}, future {future}."
            )
        if command_horizon not in ("plan", "reference"):
            raise UserError(
                f"Expected command_horizon 'plan' or 'reference', found '{command_horizon}'."
            )
        self.frames, self.stride, self.horizon = frames, stride, horizon
        steps = tuple(stride * t for t in range(1 - frames, 1))
        computed: tuple[Entry, ...] = ()
        if horizon is not None:
            if not drives.has(EGO_POSE):
                raise UserError(
                    f"{drives.label} has no ego poses to make plans from; train on tokens alone "
                    "(horizon None)."
                )
            ego.check_poses(drives.all_rows(EGO_POSE), drives.label)
            ahead = horizon * (stride if command_horizon == "plan" else 1)
            computed = (
                _plans(frames, stride, horizon),
                _commands(frames, stride, ahead, command_threshold),
            )
        rate_hz = drives.spec.fps / stride
        super().__init__(
            drives,
            Window(tokens={camera: steps}, computed=computed, span=(steps[0], stride * future)),
            np.arange(len(drives)) if episodes is None else episodes,
            gaps=gaps,
            vocab=vocab,
            spec=StreamSpec(
                cameras={}, fps=rate_hz, action=None if horizon is None else plan_spec(rate_hz)
            ),
        )

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Rows of the drives that windows (B,) cover, `stride` apart: int64 (B, T + K)."""
        episodes, anchors = self.anchors.at(chosen).T
        steps = self.stride * np.arange(1 - self.frames, 1 + (self.horizon or 0))
        return (self.store.starts[episodes] + anchors)[:, None] + steps

    def poses(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Poses of the frames (B, T, 7) of windows (B,), and of their waypoints (B, T, K, 7)."""
        if self.horizon is None:
            raise UserError(f"These windows of {self.store.label} have no plans; give a horizon.")
        poses = self.store.gather(EGO_POSE, self.rows(chosen))
        return _frames_and_waypoints(poses, self.frames, self.horizon)

    def yaw_rates(self, chosen: np.ndarray) -> np.ndarray:
        """Greatest yaw rate in the plans of windows (B,): float64 (B,), radians per waypoint."""
        origin, targets = self.poses(chosen)
        if targets.shape[2] < 2:
            raise UserError("One waypoint tells no turn; give a horizon of 2 or more.")
        return ego.yaw_rate(ego.relative_rotations(origin, targets)).max(axis=1)


# Functions of the module with their numbers bound, since windows go to worker processes.


def _plans(frames: int, stride: int, horizon: int) -> Entry:
    """float32 (B, T, K, 2), metres."""
    steps = tuple(stride * t for t in range(1 - frames, 1 + horizon))
    compute = partial(_plans_of, frames=frames, horizon=horizon)
    return Entry(kind="plans", name="plans", stream=EGO_POSE, offsets=steps, compute=compute)


def _plans_of(poses: np.ndarray, *, frames: int, horizon: int) -> np.ndarray:
    return ego.waypoints(*_frames_and_waypoints(poses, frames, horizon)).astype(np.float32)


def _frames_and_waypoints(
    poses: np.ndarray, frames: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Poses (B, T + K, 7) -> those of the frames (B, T, 7) and of their waypoints (B, T, K, 7)."""
    # (T, K) columns: the K frames after each of the T frames.
    ahead = np.arange(frames)[:, None] + 1 + np.arange(horizon)
    return poses[:, :frames], poses[:, ahead]


def _commands(frames: int, stride: int, ahead: int, threshold: float) -> Entry:
    """int64 (B, T): the turn from each frame to `ahead` raw frames later."""
    steps = tuple(stride * t for t in range(1 - frames, 1))
    both = (*steps, *(step + ahead for step in steps))
    compute = partial(_commands_of, frames=frames, threshold=threshold)
    return Entry(kind="commands", name="commands", stream=EGO_POSE, offsets=both, compute=compute)


def _commands_of(poses: np.ndarray, *, frames: int, threshold: float) -> np.ndarray:
    return ego.commands(poses[:, :frames], poses[:, frames:], threshold)


def plan_spec(rate_hz: float) -> ActionSpec:
    """What the numbers of a plan mean: metres forward and left of the frame that it starts from."""
    return ActionSpec(
        names=("forward", "left"), units=("m", "m"), frame="ego", mode="relative", rate_hz=rate_hz
    )
