"""Layouts: how to recognise, read and write checkpoints of other projects, a value for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from foreact.checkpoints.format import difference, save_checkpoint
from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.types import StreamSpec

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One written checkpoint folder and the account of its source."""

    path: Path
    hash: str
    report: str

    def __str__(self) -> str:
        return f"{self.report}\nwrote {self.path}  {self.hash}"


@dataclass(frozen=True, kw_only=True)
class Read(Generic[C]):
    """A foreign model, read.

    Attributes:
        config: sizes, from the shapes of the tensors.
        state: name -> tensor, in our names.
        report: what was used and what was left, in lines.
    """

    config: C
    state: dict[str, Tensor]
    report: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a conversion is asked for.

    Attributes:
        src: the foreign file or directory.
        dst: the folder to write.
        payload: what the file holds.
        spec: what the numbers mean; None: as the file says, or unknown.
        dtype: type to store floating-point tensors in; None keeps theirs.
    """

    src: Path
    dst: Path
    payload: Any
    spec: StreamSpec | None
    dtype: torch.dtype | None


@dataclass(frozen=True)
class NoOptions:
    """Of a layout whose files tell all."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One kind of foreign checkpoint.

    Attributes:
        name: short, for code.
        title: for sentences, such as "a UVA checkpoint".
        files: how such files are called, for people.
        mark: by what it is known, for people.
        recognise: whether the content of a file is one.
        convert: `(request, options) -> Converted`; raises a `UserError` before anything is written.
        options: frozen dataclass of what the file does not tell; see `option`.
        has_spec: whether its numbers have a meaning that a task can tell.
        start_training: `(request, options) -> Path`, which writes weights and moments of the
            optimiser as a run to train on from; None where the files hold none.
    """

    name: str
    title: str
    files: str
    mark: str
    recognise: Callable[[Any], bool]
    convert: Callable[[Request, Any], Converted]
    options: type = NoOptions
    has_spec: bool = False
    start_training: Callable[[Request, Any], Path] | None = None


def option(help: str) -> Any:
    """A field of a layout's options: nothing is said unless someone says it."""
    return field(default=None, metadata={"help": help})


def write_converted(
    request: Request,
    *,
    family: str,
    config: Any,
    state: Mapping[str, Tensor],
    report: str,
    facts: Mapping[str, Any] | None = None,
    spec: StreamSpec | None = None,
    stats: Normalizer | None = None,
    tokenizer: Path | None = None,
) -> Converted:
    """Write what was read as our checkpoint folder, with the account of its source in the card."""
    told = {} if facts is None else {"facts": facts}
    card = {"source": request.src.name, **told, "account": report.splitlines()}
    digest = save_checkpoint(
        request.dst,
        family=family,
        config=config,
        state=state,
        spec=spec,
        stats=stats,
        tokenizer=tokenizer,
        card=card,
        dtype=request.dtype,
    )
    return Converted(path=request.dst, hash=digest, report=report)


def require_whole(
    module: type[nn.Module], config: Any, state: Mapping[str, Tensor], where: str
) -> None:
    """See that a state has all tensors of a module, in their shapes, and no more.

    Args:
        module, config: what it should be the state of.
        state: in our names.
        where: "FILE holds no whole MODEL", for the error.
    """
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in module(config).state_dict().items()}
    if problem := difference(expected, {name: tuple(t.shape) for name, t in state.items()}):
        raise UserError(f"{where}: {problem}; restore it from its source.")
