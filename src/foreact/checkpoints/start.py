"""Training that starts from the weights of an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from foreact.checkpoints.format import Checkpoint, difference, load_checkpoint
from foreact.checkpoints.shipped import resolve
from foreact.errors import UserError


def weights_of(name: str, of: str | Sequence[str], option: str = "--init") -> Checkpoint:
    """The checkpoint that an option names, which is of that family, or one of those."""
    return load_checkpoint(resolve(name), of=of, who=option)


def start_from(module: nn.Module, checkpoint: Checkpoint, *, tokenizer: str | None = None) -> None:
    """Copy all tensors of a checkpoint into a module of the same shapes.

    Args:
        module: what shall be trained.
        checkpoint: of the same family.
        tokenizer: hash of the one that makes what the module reads; compared if both know theirs.

    Raises:
        UserError: it reads what another tokenizer makes, or has other sizes.
    """
    named = checkpoint.tokenizer
    if tokenizer is not None and named is not None and named.hash != tokenizer:
        raise UserError(
            f"{checkpoint.path} reads what the tokenizer {named.hash} makes, the one of this run "
            f"is {tokenizer}; give that of the weights."
        )
    shapes = (
        {k: tuple(t.shape) for k, t in state.items()}
        for state in (module.state_dict(), checkpoint.state)
    )
    if problem := difference(*shapes):
        raise UserError(
            f"{checkpoint.path} has other sizes than this run: {problem}; give its --size, or the "
            "same --model options."
        )
    module.load_state_dict(checkpoint.state)
