"""Facts on V-D4RL's recordings that their files lack: rates by domain, grades by name."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec

CAMERA = "pixels"
RATE_HZ = {"cheetah": 50.0, "walker": 20.0, "humanoid": 20.0}
"""Steps per second of the tasks: DeepMind Control Suite's rates at an action repeat of 2."""
OTHER_DOMAINS = {"acrobot", "cartpole", "hopper", "pendulum", "quadruped", "reacher", "swimmer"}
"""Of the suite's other tasks; none of the rates above is theirs."""
GRADES = ("random", "medium_replay", "medium_expert", "medium", "expert")
"""Of the policies that acted; where one name begins with another, the longer comes first."""


def resolve_spec(
    file: Path, size: tuple[int, int], dims: int, *, given: StreamSpec | None, fps: float | None
) -> StreamSpec:
    """Spec of recordings.

    Args:
        file: one of them; its path may name the domain.
        size: height and width of the frames.
        dims: of the actions.
        given: what a task says they are, or None.
        fps: steps per second where no task says so; by default those of the domain. A task's must
            be the same.

    Raises:
        UserError: the recordings or `fps` contradict the given spec, or nothing tells their rate.
    """
    if fps is not None and not 0.0 < fps < math.inf:
        raise UserError(
            f"The rate of {file} should be a number of steps per second above 0, found {fps}."
        )
    own = StreamSpec(cameras={CAMERA: size}, fps=fps or 0.0, has_reward=True)
    if given is not None:
        replace(own, fps=fps or given.fps, action=given.action).require_equal(
            given, str(file), "the task"
        )
        if given.action is None or given.action.dim != dims:
            found = "none" if given.action is None else f"{given.action.dim} dims"
            raise UserError(
                f"{file} has actions of {dims} dims, the task has {found}; use the "
                "task it was made for."
            )
        return given
    rate = fps or _domain_rate(file)
    if rate is None:
        raise UserError(
            f"Nothing tells how many steps a second {file} has; name the task "
            "(--task), or give --fps."
        )
    action = ActionSpec(
        names=tuple(f"a{i}" for i in range(dims)),
        units=("unitless",) * dims,
        frame="actuators",
        mode="absolute",
        rate_hz=rate,
        low=(-1.0,) * dims,
        high=(1.0,) * dims,
    )
    return replace(own, fps=rate, action=action)


def grade_of(file: Path) -> str | None:
    """Grade of the policy, in the file's name or else as a folder above it."""
    if match := re.search(rf"(?<![a-z])({'|'.join(GRADES)})(?![a-z])", file.name):
        return match[1]
    return next((name for name in reversed(file.absolute().parts[:-1]) if name in GRADES), None)


def _domain_rate(file: Path) -> float | None:
    """Rate of the domain that the file, or the nearest folder above it, is named after.

    A name counts where the domain is a word of it, as in walker_walk and 0-walker.hdf5; skywalker
    names none.
    """
    for name in reversed(file.absolute().parts):
        for word in re.findall(r"[a-z]+", name.lower()):
            if word in RATE_HZ or word in OTHER_DOMAINS:
                return RATE_HZ.get(word)
    return None
