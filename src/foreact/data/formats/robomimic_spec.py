"""What the streams of a file of demonstrations mean: as it says, or as a task does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from foreact.data.formats.robomimic_actions import ARM, POSE, ActionMode, stored_action
from foreact.data.formats.robomimic_file import Demo, DemoFile
from foreact.errors import UserError, did_you_mean
from foreact.types import StreamSpec

Flip = Literal["auto", "none", "vertical", "turn"]
"""What is done to stored pictures: what makes them upright, nothing, their rows in reverse order,
or half a turn, which mirrors the upright picture: what models that learned from OpenVLA's copies
have seen.
"""


def resolve_flip(flip: str, file: DemoFile, *, is_libero: bool) -> Flip:
    """What to do to the pictures of a file.

    Raises:
        UserError: no such way.
    """
    if flip not in get_args(Flip):
        raise UserError(
            f"Pictures are flipped in one of the ways {', '.join(get_args(Flip))}, not '{flip}'."
        )
    if flip != "auto":
        return cast(Flip, flip)
    convention = str(file.attrs.get("macros_image_convention", "")).lower()
    if convention in ("opengl", "opencv"):
        return "vertical" if convention == "opengl" else "none"
    return "vertical" if is_libero else "none"


def control_rate(file: DemoFile) -> float | None:
    """Steps per second by the settings of the environment that the file was recorded in."""
    arguments = file.attrs.get("env_args")
    settings = arguments.get("env_kwargs") if isinstance(arguments, dict) else None
    rate = settings.get("control_freq") if isinstance(settings, dict) else None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def own_spec(file: DemoFile, mode: ActionMode, *, has_text: bool) -> StreamSpec:
    """What a file says: every picture and every array of numbers that is observed, all as stored.

    Raises:
        UserError: nothing tells its rate.
    """
    if (rate := control_rate(file)) is None:
        raise UserError(
            f"Nothing tells how many steps a second {file.path} has (env_args lack control_freq); "
            "name the task (--task)."
        )
    observed = {
        key.removeprefix("obs/"): array
        for key, array in file.demos[0].arrays.items()
        if key.startswith("obs/")
    }
    width = row_width(file.demos[0].arrays["actions"].shape)
    return StreamSpec(
        cameras={k: (a.shape[0], a.shape[1]) for k, a in observed.items() if a.is_picture},
        fps=rate,
        action=stored_action(mode, width, rate),
        state={
            k: tuple(f"{k}_{i}" for i in range(row_width(a.shape)))
            for k, a in observed.items()
            if a.is_numbers
        },
        has_text=has_text,
    )


def row_width(shape: tuple[int, ...]) -> int:
    """Numbers of a row of shape () or (D,)."""
    return shape[0] if shape else 1


@dataclass(frozen=True)
class Wanted:
    """What all demonstrations shall hold.

    Attributes:
        spec: as streams.
        by: who says so, for errors: "the task", or the first demonstration.
        remedy: what to do about others.
    """

    spec: StreamSpec
    by: str = "the task"
    remedy: str = "use the task it was made for"


def wanted_by_first(file: DemoFile, mode: ActionMode, *, has_text: bool) -> Wanted:
    """What all demonstrations shall hold where no task says so: what the first one holds."""
    return Wanted(
        own_spec(file, mode, has_text=has_text),
        f"'{file.demos[0].name}' of {file.path.name}",
        "keep recordings of one kind together",
    )


def require_streams(files: Sequence[DemoFile], wanted: Wanted, *, has_text: bool) -> None:
    """Check that all demonstrations hold what is wanted.

    Raises:
        UserError: a stream is missing or of another kind, the rate is another, or the spec asks for
            what such files do not have.
    """
    spec = wanted.spec
    if spec.has_reward or (spec.has_text and not has_text):
        asked = "rewards" if spec.has_reward else "instructions"
        raise UserError(
            f"{files[0].path} offers no {asked} with its episodes, which {wanted.by} asks for; "
            f"{wanted.remedy}."
        )
    for file in files:
        rate = control_rate(file)
        if rate is not None and rate != spec.fps:
            raise UserError(
                f"{file.path} was recorded at {rate:g} Hz, {wanted.by} has {spec.fps:g} Hz; "
                f"{wanted.remedy}."
            )
        for demo in file.demos:
            _require_demo(file, demo, wanted)


def _require_demo(file: DemoFile, demo: Demo, wanted: Wanted) -> None:
    where, spec = f"'{demo.name}' of {file.path}", wanted.spec
    for name in (*spec.cameras, *spec.state):
        array = demo.arrays.get(f"obs/{name}")
        if array is None:
            known = [key.removeprefix("obs/") for key in demo.arrays if key.startswith("obs/")]
            raise UserError(f"{where} has no observation '{name}'{did_you_mean(name, known)}")
        if name in spec.cameras:
            fits = array.is_picture and array.shape[:2] == tuple(spec.cameras[name])
            expected = f"uint8 (T, {', '.join(map(str, (*spec.cameras[name], 3)))})"
        else:
            fits = array.is_numbers and row_width(array.shape) == len(spec.state[name])
            expected = f"numbers (T, {len(spec.state[name])})"
        if not fits:
            raise UserError(
                f"The observation '{name}' of {where} should be {expected}, as {wanted.by} has it, "
                f"found {array}; {wanted.remedy}."
            )


def choose_actions(file: DemoFile, wanted: Wanted, stored: dict[str, ActionMode]) -> str:
    """The array of a file that holds what the spec calls its action.

    Args:
        file: the file.
        wanted: its spec has an action.
        stored: array of the file -> what its values are.

    Raises:
        UserError: none does.
    """
    action = wanted.spec.action
    assert action is not None
    key = next((key for key, mode in stored.items() if mode == action.mode), None)
    if key is None:
        raise UserError(
            f"The actions of {file.path} are {stored['actions']} by their values, those of "
            f"{wanted.by} are {action.mode}; use the copy of the file with {action.mode} actions, "
            "or another task."
        )
    for demo in file.demos:
        width = row_width(demo.arrays[key].shape)
        is_arms = width % ARM == 0 and action.mode == "absolute"
        poses = width // ARM * POSE if is_arms else width
        if action.dim not in (width, poses):
            also = f" (as poses {poses})" if is_arms else ""
            raise UserError(
                f"'{key}' of '{demo.name}' in {file.path} has {width} numbers a step{also}, the "
                f"actions of {wanted.by} have {action.dim}; {wanted.remedy}."
            )
    return key
