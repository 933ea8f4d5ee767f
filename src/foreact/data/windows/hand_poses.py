"""Hands by their poses: what a policy is shown of them, and the actions it answers with (UMI).

A recording knows the absolute pose of every hand; absolute poses of two recordings share no frame.
So a policy sees poses relative to that of "now", and its actions are future poses relative to it::

    pose(t)       T_t                    position and rotation, as recorded
    states        T_now^-1 T_t           position 3, rotation 6 (two rows of the matrix), gripper 1
                  T_start^-1 T_t         of this the rotation alone, 6
                  T_other^-1 T_t         of two hands: to where the other hand is now
    action        T_now^-1 T_t           position 3, rotation 6, gripper 1, for each hand

The names of streams of rotations keep the "axis_angle" of the recording, as in UMI's own files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foreact.data.poses import Reference, from_vector, inverse, pose_matrix, pose_vector
from foreact.data.poses import refer as refer_poses
from foreact.data.poses import restore as restore_poses
from foreact.data.rotations import SHAPES, Form
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec

Streams = Mapping[str, np.ndarray]
WIDTH = 10
"""Numbers of a hand's action."""
POSE_NAMES = ("x", "y", "z", *(f"r{row}{column}" for row in "12" for column in "123"))
MODES: Mapping[str, Literal["absolute", "delta", "relative"]] = {
    "absolute": "absolute",
    "relative": "relative",
    "legacy": "relative",
    "delta": "delta",
}


@dataclass(frozen=True, kw_only=True)
class Hand:
    """Streams of one hand.

    Attributes:
        name: as in "robot0".
        position: metres, 3.
        rotation: in the form of `HandPoses.form`.
        gripper: opening in metres, 1.
        start: pose at which the demonstration began, position and rotation; None where unknown.
    """

    name: str
    position: str
    rotation: str
    gripper: str
    start: str | None = None

    @property
    def rotation_since_start(self) -> str:
        return f"{self.rotation}_wrt_start"


@dataclass(frozen=True, kw_only=True)
class HandPoses:
    """How poses of hands become states and actions.

    Attributes:
        hands: in the order of the action's numbers.
        form: how recorded rotations are written.
        stride: recorded steps from one step of a policy to the next. UMI's files at 59.94 Hz are
            read at every third step, and the robot is to be driven at that rate.
        noise: deviation, in metres and radians, of what training adds to the start pose.
        state_reference, action_reference: what poses are written relative to.
    """

    hands: tuple[Hand, ...]
    form: Form = "axis_angle"
    stride: int = 3
    noise: float = 0.05
    state_reference: Reference = "relative"
    action_reference: Reference = "relative"

    def __post_init__(self) -> None:
        if not self.hands or self.stride < 1 or not self.noise >= 0.0:
            raise UserError(
                "Poses of hands need at least one hand, a stride >= 1 and noise >= 0, found "
                f"{len(self.hands)}, {self.stride} and {self.noise}."
            )

    @property
    def recorded(self) -> list[str]:
        """Streams that a store must have."""
        names = [n for hand in self.hands for n in (hand.position, hand.rotation, hand.gripper)]
        return names + [hand.start for hand in self.hands if hand.start is not None]

    @property
    def state(self) -> dict[str, tuple[str, ...]]:
        """States of a policy: stream -> one name per number."""
        state = {}
        for hand in self.hands:
            state[hand.position] = POSE_NAMES[:3]
            state[hand.rotation] = POSE_NAMES[3:]
            state[hand.gripper] = ("width",)
            if hand.start is not None:
                state[hand.rotation_since_start] = POSE_NAMES[3:]
            for other in self._others(hand):
                state[f"{hand.position}_wrt_{other.name}"] = POSE_NAMES[:3]
                state[f"{hand.rotation}_wrt_{other.name}"] = POSE_NAMES[3:]
        return state

    def spec(self, recorded: StreamSpec) -> StreamSpec:
        """What windows of a store hold, and what a policy trained on them expects and answers.

        Args:
            recorded: spec of the store.

        Raises:
            UserError: the store has no such streams, or of other widths.
        """
        sizes = {}
        for hand in self.hands:
            turn = int(np.prod(SHAPES[self.form]))
            sizes |= {hand.position: 3, hand.rotation: turn, hand.gripper: 1}
            if hand.start is not None:
                sizes[hand.start] = 3 + turn
        for name, size in sizes.items():
            found = len(recorded.state.get(name, ()))
            if found != size:
                has = f"{found} numbers" if found else f"no such stream, only {[*recorded.state]}"
                raise UserError(
                    f"Poses of hands need the state '{name}' with {size} numbers, and the data "
                    f"have {has}; name the streams of these data."
                )
        rate = recorded.fps / self.stride
        return StreamSpec(
            cameras=recorded.cameras,
            fps=rate,
            action=self._action_spec(rate),
            state=self.state,
            has_text=recorded.has_text,
            has_reward=recorded.has_reward,
        )

    def states(
        self,
        poses: Streams,
        now: int = -1,
        *,
        starts: Streams | None = None,
        between: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """What a policy is shown.

        Args:
            poses: absolute poses, position, rotation and gripper of every hand: (..., T, D).
            now: which of the T steps is "now"; the last one when acting.
            starts: start pose of every hand that has one, (..., 3 + size of the form), by the name
                of its stream; None leaves out what is told from it.
            between: pose (4, 4) of the first hand's frame of the world in the second's, where two
                robots have one each; by default they share one.

        Returns:
            The streams of `state`, float64 (..., T, D).
        """
        absolute = self._matrices(poses)
        result = {}
        for hand, own in absolute.items():
            seen = refer_poses(own, own[..., now, :, :], self.state_reference)
            result[hand.position], result[hand.rotation] = _parts(seen)
            result[hand.gripper] = np.asarray(poses[hand.gripper], np.float64)
            if starts is not None and hand.start is not None:
                start = from_vector(np.asarray(starts[hand.start], np.float64), self.form)
                since = refer_poses(own, start, "relative")
                result[hand.rotation_since_start] = _parts(since)[1]
            for other in self._others(hand):
                there = absolute[other][..., now, :, :]
                if between is not None:
                    there = (inverse(between) if hand is self.hands[0] else between) @ there
                position, rotation = _parts(refer_poses(own, there, "relative"))
                result[f"{hand.position}_wrt_{other.name}"] = position
                result[f"{hand.rotation}_wrt_{other.name}"] = rotation
        return result

    def actions(self, poses: Streams, now: Streams) -> np.ndarray:
        """Absolute poses (..., K, D) as seen from those of now (..., D): (..., K, 10 per hand)."""
        parts = []
        base = self._matrices(now)
        for hand, ahead in self._matrices(poses).items():
            seen = refer_poses(ahead, base[hand], self.action_reference)
            gripper = np.asarray(poses[hand.gripper], np.float64)
            parts += [pose_vector(seen, "rows_6d"), gripper]
        return np.concatenate(parts, axis=-1)

    def absolute(self, actions: np.ndarray, now: Streams) -> np.ndarray:
        """Inverse of `actions`: what the robots are sent.

        Args:
            actions: (..., K, 10 per hand), from a policy: rotations need not be orthonormal.
            now: absolute poses of the last observation, (..., D) by the names of their streams.

        Returns:
            float64 (..., K, size): for each hand the position, the rotation in `form` and the
            gripper.

        Raises:
            UserError: another number of numbers.
        """
        if actions.shape[-1] != WIDTH * len(self.hands):
            raise UserError(
                f"Actions of {len(self.hands)} hands have {WIDTH * len(self.hands)} numbers, found "
                f"{actions.shape[-1]}; use the policy for as many hands as there are."
            )
        parts = []
        base = self._matrices(now)
        for number, hand in enumerate(self.hands):
            own = actions[..., WIDTH * number : WIDTH * (number + 1)]
            relative = from_vector(own[..., : WIDTH - 1], "rows_6d")
            poses = restore_poses(relative, base[hand], self.action_reference)
            parts += [pose_vector(poses, self.form), own[..., WIDTH - 1 :]]
        return np.concatenate(parts, axis=-1)

    def noisy(self, starts: Streams, rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        """Start poses (B, D) with noise, of each sample from its own generator, float64."""
        noisy = {name: np.array(poses, np.float64) for name, poses in starts.items()}
        for sample, rng in enumerate(rngs):
            for poses in noisy.values():
                poses[sample] += rng.normal(scale=self.noise, size=poses.shape[1:])
        return noisy

    def _matrices(self, poses: Streams) -> dict[Hand, np.ndarray]:
        return {
            hand: pose_matrix(poses[hand.position], poses[hand.rotation], self.form)
            for hand in self.hands
        }

    def _others(self, hand: Hand) -> list[Hand]:
        return [other for other in self.hands if other is not hand]

    def _action_spec(self, rate: float) -> ActionSpec:
        names = [
            f"{hand.name}.{name}" for hand in self.hands for name in (*POSE_NAMES, "gripper_width")
        ]
        in_tool = self.action_reference == "relative"
        return ActionSpec(
            names=tuple(names),
            units=("m", "m", "m", *["unitless"] * 6, "m") * len(self.hands),
            frame="tool" if in_tool else "world",
            mode=MODES[self.action_reference],
            rate_hz=rate,
        )


def umi_hands(robots: int = 1, *, stride: int = 3, noise: float = 0.05) -> HandPoses:
    """Hands of UMI's files: `robots` of them, called robot0, robot1, ..."""
    hands = [
        Hand(
            name=f"robot{number}",
            position=f"robot{number}_eef_pos",
            rotation=f"robot{number}_eef_rot_axis_angle",
            gripper=f"robot{number}_gripper_width",
            start=f"robot{number}_demo_start_pose",
        )
        for number in range(robots)
    ]
    return HandPoses(hands=tuple(hands), stride=stride, noise=noise)


def _parts(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (..., 3) and rotations (..., 6) of poses (..., 4, 4)."""
    vectors = pose_vector(poses, "rows_6d")
    return vectors[..., :3], vectors[..., 3:]
