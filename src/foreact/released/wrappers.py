"""Names of tensors without what training engines and outer modules put around them.

torch.compile, DistributedDataParallel, FSDP, activation checkpointing, DeepSpeed and Lightning hold
the module that they wrap under a name of their own, which then stands in the names of all tensors
below: at the head (`module.encoder...`), or in the middle (`encoder.0._orig_mod.attn...`). Whoever
trains a network as an attribute of something puts `network.`, `model.` and the like before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreact.errors import UserError

ENGINES = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}
"""What engines call the module that they wrap; no network that is read here has such a part."""
OWNERS = {"model", "network", "net", "policy"}
"""What trainers call the network that they own."""
ENTRIES = ("state_dict", "model", "module")
"""Under which a file may hold its tensors."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The tensors of one network in a file.

    Attributes:
        entry: under which they lie; None: the file holds nothing else.
        tensors: name without wrappers -> tensor.
        stored: how many the file has, twins of the same name counted each.
    """

    entry: str | None
    tensors: dict[str, Tensor]
    stored: int

    def unread(self, payload: Mapping[str, Any]) -> list[str]:
        """Names of the entries of the file beside the tensors."""
        return [] if self.entry is None else [str(k) for k in payload if k != self.entry]

    @property
    def notes(self) -> list[str]:
        """Lines for a report: how many tensors are counted once though stored twice."""
        twins = self.stored - len(self.tensors)
        return [f"{twins} tensors stored under two names, equal"] if twins else []


def plain_names(
    names: Iterable[str], anchors: Sequence[str], *, owners: Collection[str] = OWNERS
) -> dict[str, str]:
    """Name in a file -> name without wrappers.

    Args:
        names: of tensors.
        anchors: names that the network gives to some of its tensors itself. What stands before one,
            if it is made of `owners`, is taken off all names.
        owners: what may stand before.
    """
    bare = {name: ".".join(p for p in name.split(".") if p not in ENGINES) for name in names}
    heads = _heads(bare.values(), anchors, owners)
    return {
        name: plain.removeprefix(next((head for head in heads if plain.startswith(head)), ""))
        for name, plain in bare.items()
    }


def find_entry(
    payload: Any,
    anchors: Sequence[str],
    *,
    entries: Sequence[str] = ENTRIES,
    owners: Collection[str] = OWNERS,
) -> tuple[str | None, Mapping[str, Tensor]] | None:
    """The entry of a file's content, or else all of it, that holds a network; None: there is none.

    Args:
        payload: the content.
        anchors: names of tensors that the network has, all of them.
        entries: where to look, in order.
        owners: see `plain_names`.
    """
    if not isinstance(payload, Mapping):
        return None
    for entry in (*entries, None):
        state = payload if entry is None else payload.get(entry)
        if not isinstance(state, Mapping) or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
        ):
            continue
        if set(anchors) <= set(plain_names(state, anchors, owners=owners).values()):
            return entry, state
    return None


def find_state(
    payload: Any,
    anchors: Sequence[str],
    path: Path,
    *,
    entries: Sequence[str] = ENTRIES,
    owners: Collection[str] = OWNERS,
) -> State | None:
    """The tensors of a network in a file's content; None: there are none.

    Args:
        payload, anchors, entries, owners: see `find_entry`.
        path: the file, for the error.

    Raises:
        UserError: two tensors of one name differ.
    """
    found = find_entry(payload, anchors, entries=entries, owners=owners)
    if found is None:
        return None
    entry, state = found
    names = plain_names(state, anchors, owners=owners)
    tensors = without_twins(((names[name], tensor) for name, tensor in state.items()), path)
    return State(entry=entry, tensors=tensors, stored=len(state))


def without_twins(pairs: Iterable[tuple[str, Tensor]], path: Path) -> dict[str, Tensor]:
    """Name -> tensor, where one of several equal ones counts.

    Raises:
        UserError: two of one name differ.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if not same_tensor(tensors.setdefault(name, tensor), tensor):
            raise UserError(f"{path} contradicts itself: its two copies of {name} differ.")
    return tensors


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of a file are one, or equal."""
    if a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride():
        return True  # one tensor in the file, needless to read it
    return a.dtype == b.dtype and torch.equal(a, b)


def _heads(names: Iterable[str], anchors: Sequence[str], owners: Collection[str]) -> list[str]:
    """What stands before anchors, longest first, with its own beginnings: "a.b." and "a."."""
    heads: set[str] = set()
    for name in names:
        for anchor in anchors:
            head = name.removesuffix(anchor)
            parts = head.split(".")[:-1]
            if head != name and head.endswith(".") and set(parts) <= set(owners):
                heads |= {".".join(parts[: i + 1]) + "." for i in range(len(parts))}
    return sorted(heads, key=len, reverse=True)
