"""Starting a model from weights that fit only in part, with an account of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreact.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PartialLoad:
    """Where every tensor of a source and of a model went.

    Attributes:
        loaded: names taken over.
        untouched: names of the model that the source does not have; they keep their initial values.
        skipped: names of the source with the reason why they were not taken.
    """

    loaded: tuple[str, ...]
    untouched: tuple[str, ...]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        lines = [
            f"loaded {len(self.loaded)} tensors, left {len(self.untouched)} as initialised, "
            f"skipped {len(self.skipped)} of the source"
        ]
        lines += [f"  as initialised: {name}" for name in self.untouched]
        lines += [f"  skipped: {name} ({why})" for name, why in self.skipped.items()]
        return "\n".join(lines)


def load_partial(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> PartialLoad:
    """Copy the tensors of `state` that the module has in the same shape.

    Args:
        module: changed in place.
        state: name -> tensor, in the module's own names.
        source: what `state` came from, for errors.

    Raises:
        UserError: nothing at all fits, which is never what was meant.
    """
    own = module.state_dict()
    skipped: dict[str, str] = {}
    fitting: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in own:
            skipped[name] = "the model has no such tensor"
        elif own[name].shape != tensor.shape:
            skipped[name] = f"shape {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}"
        else:
            fitting[name] = tensor
    if not fitting:
        raise UserError(
            f"No tensor of {source} fits the model; choose the model size that the "
            "file was made for."
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    return PartialLoad(
        loaded=tuple(fitting), untouched=tuple(n for n in own if n not in fitting), skipped=skipped
    )
