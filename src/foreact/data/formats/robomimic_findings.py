"""What a check says of demonstrations of robosuite's arms, beside what it says of every store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from foreact.data.formats.robomimic_actions import ARM, mode_of
from foreact.data.formats.robomimic_file import DemoFile
from foreact.data.rotations import QUATERNION_NORM, Form, angle_between, convert
from foreact.data.stores.findings import Finding

if TYPE_CHECKING:
    from foreact.data.formats.robomimic_store import RobomimicStore

HANDS: tuple[tuple[str, str, Form], ...] = (
    ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "quat_xyzw"),
    ("obs/ee_pos", "obs/ee_ori", "axis_angle"),
)
"""Arrays of where the first arm's hand is and how it is turned, and the form of the latter."""
SITE = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""From the hand's body, whose rotation is observed, to the grip site, whose goal is the action."""
AGREES = np.deg2rad(30.0)
"""Goals lead the hand by less than this, in the median; another frame is off by 90 degrees."""


FEW = 8
"""Pictures that may well be decoded for one."""


def findings_of(store: RobomimicStore) -> list[Finding]:
    """All findings, from every number of actions and of the hand's pose."""
    findings = [*_files(store)]
    if store.spec.action is None:
        return findings
    actions = store.stored_actions()
    hand = next((h for h in HANDS if all(h[0] in e.demo.arrays for e in store.episodes)), None)
    if hand is None:
        findings.append(_note("nothing tells where the hand is: actions are not compared with it"))
        positions = None
    else:
        positions = store.stored(hand[0])
    findings += _modes(store, actions, positions)
    findings += _gripper(store, actions)
    if hand is not None and all(hand[1] in e.demo.arrays for e in store.episodes):
        rotations = np.concatenate(store.stored(hand[1]))
        findings += _rotations(store, np.concatenate(actions), rotations, hand[1], hand[2])
    return findings


def _files(store: RobomimicStore) -> list[Finding]:
    findings = []
    for file in store.files:
        numbers = [demo.number for demo in file.demos]
        if missing := sorted(set(range(numbers[-1] + 1)) - set(numbers)):
            first = f"demo_{missing[0]}"
            findings.append(
                _note(f"{file.path.name} has no {first}, {len(missing)} numbers are left out")
            )
        if file.masks:
            masks = ", ".join(f"{key} ({len(names)})" for key, names in file.masks.items())
            findings.append(_note(f"{file.path.name} has the masks {masks}"))
        findings += _absent(file)
    ways = {
        "none": "shown as they are stored",
        "vertical": "stored upside down, and shown upright",
        "turn": "turned by half a turn",
    }
    flips = sorted(set(store.flips))
    findings.append(_note(f"pictures are {' or '.join(ways[flip] for flip in flips)}"))
    for camera in store.spec.cameras:
        if (count := store.episodes[0].chunk_rows(f"obs/{camera}")) > FEW:
            findings.append(
                _note(
                    f"pictures of '{camera}' are compressed {count} at a time: to learn from "
                    "them in random order, copy them first (`foreact data import`)"
                )
            )
    return findings


def _absent(file: DemoFile) -> list[Finding]:
    """Masks that name demonstrations which are not there; no mask is in use here."""
    findings = []
    for key, names in file.masks.items():
        if absent := file.absent(key):
            text = (
                f"the mask '{key}' of {file.path.name} names {len(absent)} demonstrations that the "
                f"file does not hold, such as '{absent[0]}'"
            )
            findings.append(Finding("error", text))
        elif not names:
            findings.append(
                Finding("warning", f"the mask '{key}' of {file.path.name} names no demonstration")
            )
    return findings


def _modes(
    store: RobomimicStore, actions: Sequence[np.ndarray], positions: Sequence[np.ndarray] | None
) -> list[Finding]:
    action = store.spec.action
    assert action is not None
    findings = []
    others = [
        store.name_of(episode)
        for episode, values, position in zip(
            store.episodes, actions, positions or [None] * len(actions), strict=True
        )
        if mode_of(values, position) != action.mode
    ]
    if others:
        findings.append(
            Finding(
                "error",
                f"actions of {len(others)} episodes are not {action.mode} as those of the others, "
                f"first '{others[0]}'",
            )
        )
    is_delta = action.mode == "delta"
    saying = [_says_delta(file.attrs.get("env_args")) for file in store.files]
    if wrong := [f for f, says in zip(store.files, saying, strict=True) if says == (not is_delta)]:
        findings.append(
            _note(
                f"env_args of {len(wrong)} files, first {wrong[0].path.name}, say control_delta "
                f"{not is_delta}, but by their values the actions are {action.mode}: simulators "
                f"need {is_delta}"
            )
        )
    return findings


def _says_delta(env_args: object) -> bool | None:
    """What the settings of the controller say, if anything."""
    settings = env_args
    for key in ("env_kwargs", "controller_configs"):
        settings = settings.get(key) if isinstance(settings, dict) else None
    delta = settings.get("control_delta") if isinstance(settings, dict) else None
    return delta if isinstance(delta, bool) else None


def _gripper(store: RobomimicStore, actions: Sequence[np.ndarray]) -> list[Finding]:
    if actions[0].shape[1] % ARM:
        return []
    commands = np.concatenate(actions).reshape(-1, ARM)[:, -1]
    if not np.isfinite(commands).all():
        return []
    low, high = commands.min(), commands.max()
    if low < -1.001 or high > 1.001 or (low >= 0.0 and high > 0.0):
        return [
            Finding(
                "warning",
                f"commands of the gripper lie in {low:g} .. {high:g}; robosuite's are -1 to open "
                "and 1 to close, those of RLDS copies 0 to close and 1 to open",
            )
        ]
    return []


def _rotations(
    store: RobomimicStore, actions: np.ndarray, rotations: np.ndarray, key: str, form: Form
) -> list[Finding]:
    name = key.removeprefix("obs/")
    finite = np.isfinite(rotations).all(axis=1)
    rotations, actions = rotations[finite], actions[finite]
    findings = []
    if form == "quat_xyzw" and len(rotations):
        norms = np.linalg.norm(rotations, axis=1)
        wrong = (norms < QUATERNION_NORM[0]) | (norms > QUATERNION_NORM[1])
        if wrong.any():
            worst = norms[np.abs(norms - 1.0).argmax()]
            return [
                Finding(
                    "error",
                    f"{int(wrong.sum())} quaternions of '{name}' have another norm than 1, such as "
                    f"{worst:.3g}",
                )
            ]
        findings += _sign_jumps(store, name, key)
    action = store.spec.action
    assert action is not None
    finite = np.isfinite(actions).all(axis=1)
    if action.mode != "absolute" or actions.shape[1] % ARM or not finite.any():
        return findings
    goals = convert(actions[finite, 3:6], "axis_angle", "matrix")
    off = _median_angle(goals, convert(rotations[finite], form, "matrix") @ SITE)
    if off <= AGREES:
        return findings
    findings.append(_disagreement(goals, rotations[finite], name, form, off))
    return findings


def _disagreement(
    goals: np.ndarray, rotations: np.ndarray, name: str, form: Form, off: float
) -> Finding:
    """Why goals of actions are far from how the hand is turned, as far as values tell."""
    if form == "quat_xyzw":
        swapped = convert(rotations, "quat_wxyz", "matrix") @ SITE
        if _median_angle(goals, swapped) <= AGREES:
            return Finding(
                "error",
                f"'{name}' is in the order w x y z, robosuite's is x y z w: change the order of "
                "its columns",
            )
    if _median_angle(goals, convert(rotations, form, "matrix")) <= AGREES:
        return Finding(
            "error",
            f"rotations of the actions are those of the hand's body, as '{name}'; robosuite's "
            "controller wants those of the grip site, 90 degrees about z apart",
        )
    return Finding(
        "warning",
        f"rotations of the actions are {np.rad2deg(off):.0f} degrees from '{name}' in the median: "
        "one of the two is in another frame or form",
    )


def _sign_jumps(store: RobomimicStore, name: str, key: str) -> list[Finding]:
    jumps = sum(
        int(((q[1:] * q[:-1]).sum(axis=1) < 0.0).sum()) for q in store.stored(key) if len(q) > 1
    )
    if not jumps:
        return []
    return [
        _note(
            f"quaternions of '{name}' change sign {jumps} times from one step to the next, which "
            "is the same rotation"
        )
    ]


def _median_angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.median(angle_between(a, b)))


def _note(text: str) -> Finding:
    return Finding("note", text)
