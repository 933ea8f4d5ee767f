"""What the streams of a set mean: as far as the set says, or as a task says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foreact.data.formats.lerobot.info import ACTION, REWARD, Feature, Info
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec

OWN_ENTRY = "foreact"
"""Entry of meta/info.json in which our writer keeps what LeRobot has no place for."""


def resolve_spec(
    info: Info, sizes: Mapping[str, tuple[int, int]], has_text: bool, *, given: StreamSpec | None
) -> StreamSpec:
    """The spec of a set.

    A set does not say whether its actions are absolute, in which frame or in which units; unless
    our writer noted it, they are taken to be absolute, in an unknown frame and without units.

    Args:
        info: of the set.
        sizes: height and width of each camera, by our names.
        has_text: whether it has instructions.
        given: what a task says the streams are; names fewer streams, or the same.

    Raises:
        UserError: the set lacks a stream of the given spec, or says otherwise.
    """
    states = {name: f for name, f in info.streams().items() if f.kind == "numbers"}
    action = info.features.get(ACTION)
    has_action = action is not None and action.kind == "numbers"
    own = StreamSpec(
        cameras=dict(sizes),
        fps=info.fps,
        action=_action(info, action) if action is not None and has_action else None,
        state={name: _names(feature, name) for name, feature in states.items()},
        has_text=has_text,
        has_reward=REWARD in info.features,
    )
    if given is None:
        return own
    where = f"The set {info.root}"
    cameras = [name for name, f in info.streams().items() if f.kind in ("video", "image")]
    for kind, wanted, has in (
        ("camera", given.cameras, cameras),
        ("state", given.state, own.state),
    ):
        if lacking := [name for name in wanted if name not in has]:
            raise UserError(
                f"{where} has no {kind} '{lacking[0]}', which the task has; it has {sorted(has)}."
            )
    if given.action is not None:
        if own.action is None or action is None:
            raise UserError(f"{where} has no actions, and the task has; name another set.")
        _require_names(f"{where}, 'action',", action, given.action.names)
    for name, names in given.state.items():
        _require_names(f"{where}, '{name}',", states[name], names)
    for entry, words in (("has_text", "instructions"), ("has_reward", "rewards")):
        if getattr(given, entry) and not getattr(own, entry):
            raise UserError(f"{where} has no {words}, and the task has; name another set.")
    same = replace(given, cameras={n: own.cameras[n] for n in given.cameras}, fps=own.fps)
    same.require_equal(given, where, "the task")
    return replace(given, has_text=own.has_text)


def _require_names(where: str, feature: Feature, wanted: Sequence[str]) -> None:
    if feature.dims != len(wanted):
        raise UserError(
            f"{where} has {feature.dims} dims and the task {len(wanted)}; use data of the task."
        )
    if feature.names is not None and feature.names != tuple(wanted):
        first = next(i for i, name in enumerate(wanted) if feature.names[i] != name)
        raise UserError(
            f"{where} calls dim {first} '{feature.names[first]}' and the task '{wanted[first]}'; "
            "give the task the names of the set, in its order."
        )


def _names(feature: Feature, name: str) -> tuple[str, ...]:
    if feature.names is not None:
        return feature.names
    return (name,) if feature.dims == 1 else tuple(f"{name}_{i}" for i in range(feature.dims))


def _action(info: Info, feature: Feature) -> ActionSpec:
    names = _names(feature, ACTION)
    noted: Any = info.raw.get(OWN_ENTRY)
    if isinstance(noted, Mapping) and isinstance(noted.get("action"), Mapping):
        raw = {"cameras": {}, "fps": info.fps, "action": noted["action"]}
        action = StreamSpec.from_json(raw).action
        if action is not None and action.names == names:
            return action
    return ActionSpec(
        names=names,
        units=("unitless",) * len(names),
        frame="unknown",
        mode="absolute",
        rate_hz=info.fps,
    )
