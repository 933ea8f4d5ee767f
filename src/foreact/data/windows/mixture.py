"""Several data sets of hands in one training: which, how often, and what their people were told.

A mixture is a JSON file. Paths count from its folder, and only they are needed::

    {"members": [
        {"path": "cup.zarr.zip", "weight": 2.0, "instruction": "place the cup on the saucer",
         "mirror_mask": true, "episodes": [0, 1, 5]},
        {"path": "towel.zarr.zip", "weight": 1.0, "instruction": "fold the towel"}
    ]}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foreact.data.stores.opening import open_episodes
from foreact.data.windows.augment import Augment
from foreact.data.windows.choosing import check_episodes, listed_episodes, share_of_episodes
from foreact.data.windows.hand_poses import HandPoses
from foreact.data.windows.hand_windows import HandWindows
from foreact.data.windows.loader import Windows
from foreact.data.windows.members import MemberStore
from foreact.data.windows.mixing import Concat, weighted
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError, decoding, did_you_mean
from foreact.files import parse_json, read_text
from foreact.types import StreamSpec

RATE_TOLERANCE = 0.02
"""By what share the rates of two members may differ: 59.94 / 3 and 20 Hz go together."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One data set of a mixture.

    Attributes:
        path: its folder or file.
        weight: how often it is drawn, beside the weights of the others; None for all members: as
            often as it has windows.
        instruction: what its people did, in words; None: what the store says, if anything.
        mirror_mask: whether to blacken its pictures' mirrors, see `mirror`.
        episodes: numbers of the episodes to use; None for all.
        stride: its recorded steps from one step of the policy to the next.
        fps: its recorded steps per second; None: as the task says.
    """

    path: Path
    weight: float | None = None
    instruction: str | None = None
    mirror_mask: bool = False
    episodes: tuple[int, ...] | None = None
    stride: int = 3
    fps: float | None = None

    @property
    def name(self) -> str:
        """Its file's name without endings, by which lists of episodes call it."""
        name = self.path.name
        for ending in (".zip", ".zarr"):
            name = name.removesuffix(ending)
        return name


class Mixture:
    """The opened data sets of a mixture.

    Args:
        members: at least one.
        spec: of the task, what a store of another project holds.
        lists: episodes by a member's name, see `choosing`; None: as the members say.

    Attributes:
        members: as given.
        stores: of each member, with its instruction and mirrors.
        episodes: of each member, int64 (E,).

    Raises:
        UserError: a store that cannot be opened, weights for some members only, two members of one
            name, texts for some members only, or episodes that are not there.
    """

    def __init__(
        self,
        members: Sequence[Member],
        spec: StreamSpec,
        lists: Mapping[str, Any] | None = None,
    ) -> None:
        self.members = tuple(members)
        _check_members(self.members)
        self.stores = tuple(_open(member, spec) for member in self.members)
        silent = [
            m.name for m, s in zip(self.members, self.stores, strict=True) if not s.spec.has_text
        ]
        if 0 < len(silent) < len(self.members):
            raise UserError(
                f"The members {', '.join(silent)} have no instruction, and others have one; give "
                "one to each of them or to none."
            )
        self.episodes = tuple(
            _episodes(member, len(store), lists)
            for member, store in zip(self.members, self.stores, strict=True)
        )

    def spec(self, hands: HandPoses) -> StreamSpec:
        """What its windows hold.

        Raises:
            UserError: the members disagree, such as on the rate that their strides make.
        """
        specs = [
            dataclasses.replace(hands, stride=member.stride).spec(store.spec)
            for member, store in zip(self.members, self.stores, strict=True)
        ]
        first = specs[0]
        for member, spec in zip(self.members[1:], specs[1:], strict=True):
            if abs(spec.fps / first.fps - 1.0) > RATE_TOLERANCE:
                raise UserError(
                    f"The policy's steps come at {spec.fps:.4g} Hz in '{member.name}' and at "
                    f"{first.fps:.4g} Hz in '{self.members[0].name}'; choose strides that agree."
                )
            same_rate = dataclasses.replace(spec, fps=first.fps, action=first.action)
            first.require_equal(same_rate, f"'{self.members[0].name}'", f"'{member.name}'")
        return first

    def windows(
        self,
        side: Literal["training", "validation"],
        hands: HandPoses,
        window: Window,
        *,
        used: float = 0.95,
        seed: int = 42,
        normalizer: Normalizer | None = None,
        augment: Augment | None = None,
    ) -> Windows:
        """Windows of all members, in the shares of their weights.

        Args:
            side: "training", or "validation" for the windows of the other episodes, each once.
            hands: whose poses; every member has its own stride.
            window: what one sample is, in steps of the policy.
            used: share of each member's episodes that is trained on.
            seed: decides which these are.
            normalizer: see `HandWindows`.
            augment: changes the pixels of training samples.

        Raises:
            UserError: no episode is left for validation, or the members disagree.
        """
        self.spec(hands)
        parts: list[Windows] = []
        weights: list[float | None] = []
        for member, store, episodes in zip(self.members, self.stores, self.episodes, strict=True):
            training, rest = share_of_episodes(episodes, used, seed)
            chosen = training if side == "training" else rest
            if len(chosen):
                own = dataclasses.replace(hands, stride=member.stride)
                parts.append(HandWindows(store, own, window, chosen, normalizer, augment))
                weights.append(member.weight)
        if not parts:
            raise UserError(
                f"With a share of {used:g} for training no episode is left for validation; lower "
                "it or take more episodes."
            )
        if side == "validation" or weights[0] is None:
            return Concat(parts)
        return weighted(parts, [weight or 0.0 for weight in weights], seed=seed)


def open_mixture(path: Path, spec: StreamSpec, lists: Mapping[str, Any] | None = None) -> Mixture:
    """Open the mixture that a JSON file describes; see `Mixture`."""
    return Mixture(read_mixture(path), spec, lists)


def read_mixture(path: Path) -> tuple[Member, ...]:
    """Members that a JSON file lists; see the head of this module.

    Raises:
        UserError: it is no such file.
    """
    with decoding(f"{path} should describe a mixture as JSON"):
        raw = parse_json(read_text(path))
    entries = raw.get("members") if isinstance(raw, dict) else None
    if not isinstance(entries, list) or not entries or set(raw) != {"members"}:
        raise UserError(
            f'{path} should hold {{"members": [{{"path": ...}}, ...]}} with at least one member.'
        )
    return tuple(
        _member(entry, path.parent, f"Member {number} of {path}")
        for number, entry in enumerate(entries)
    )


def _member(raw: Any, folder: Path, label: str) -> Member:
    kinds: Mapping[str, tuple[type, ...]] = {
        "path": (str,),
        "weight": (int, float),
        "instruction": (str,),
        "mirror_mask": (bool,),
        "episodes": (list,),
        "stride": (int,),
        "fps": (int, float),
    }
    if not isinstance(raw, dict) or "path" not in raw:
        raise UserError(f'{label} should be an object with at least a "path".')
    for name, value in raw.items():
        if name not in kinds:
            raise UserError(f"{label} has an entry '{name}'{did_you_mean(name, kinds)}")
        if not isinstance(value, kinds[name]) or (
            isinstance(value, bool) and bool not in kinds[name]
        ):
            expected = " or ".join(kind.__name__ for kind in kinds[name])
            raise UserError(f"'{name}' of {label} should be {expected}, found {value!r:.60}.")
    fields = {**raw, "path": folder / raw["path"]}
    if "episodes" in raw:
        fields["episodes"] = tuple(raw["episodes"])
    return Member(**fields)


def _check_members(members: Sequence[Member]) -> None:
    if not members:
        raise UserError("A mixture needs at least one data set.")
    names = [member.name for member in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"Two members of the mixture are called '{twice[0]}'; list it once, with twice the "
            "weight, or rename one."
        )
    weightless = [member.name for member in members if member.weight is None]
    if 0 < len(weightless) < len(members):
        raise UserError(
            f"The members {', '.join(weightless)} have no weight, and others have one; give a "
            "weight to each or to none."
        )
    for member in members:
        if member.weight is not None and not 0.0 < member.weight < math.inf:
            raise UserError(
                f"The weight of '{member.name}' should be above 0, found {member.weight:g}; leave "
                "a member out that is not to be used."
            )
        if member.instruction is not None and not member.instruction.strip():
            raise UserError(
                f"The instruction of '{member.name}' is empty; write it, or leave it out."
            )
        if member.stride < 1:
            raise UserError(
                f"The stride of '{member.name}' should be 1 or more, found {member.stride}."
            )
        if member.fps is not None and not 0.0 < member.fps < math.inf:
            raise UserError(f"The rate of '{member.name}' should be above 0, found {member.fps:g}.")


def _open(member: Member, spec: StreamSpec) -> MemberStore:
    if member.fps is not None:
        spec = dataclasses.replace(spec, fps=member.fps)
    store = open_episodes(member.path, spec)
    return MemberStore(store, instruction=member.instruction, mirror_mask=member.mirror_mask)


def _episodes(member: Member, episodes: int, lists: Mapping[str, Any] | None) -> np.ndarray:
    if lists is not None:
        return listed_episodes(lists, member.name, episodes)
    if member.episodes is None:
        return np.arange(episodes)
    return check_episodes(member.episodes, episodes, f"The list of '{member.name}'")
