"""`foreact weights convert`: its options are those of all layouts that some family reads."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tyro.conf import Positional

from foreact.checkpoints.shipped import resolve
from foreact.errors import UserError
from foreact.released import convert as converting
from foreact.runs.stores import policy_spec
from foreact.tasks import find_task


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turn a released checkpoint into our folder, or our folder back into its authors' layout.

    Files are read by a restricted unpickler that refuses every global outside an allow-list; every
    tensor is used or named.
    """

    src: Positional[Path]
    """The foreign file or directory; with --to reference our folder or a shipped name."""
    out: Path
    """The folder to write; with --to reference the file."""
    task: str | None = None
    """What the numbers mean; without it a UVA can be trained on but cannot act."""
    half: bool = False
    """Store as float16."""
    to: Literal["foreact", "reference", "training"] = "foreact"
    """Whose layout to write. "training" writes a run folder with weights and optimiser moments of a
    VaViM or VaVAM in training, from which `foreact train vavim --stage finetune --train.start-from`
    goes on.
    """


def command(args: Sequence[str]) -> None:
    """`foreact weights convert`."""
    cls = _with_options()
    kinds = "".join(f"\n- {layout.title} ({layout.files})" for layout in converting.layouts())
    about = f"{inspect.getdoc(Convert)}\n\nRead are:{kinds}"
    run = tyro.cli(cls, prog="foreact weights convert", args=args, description=about)
    names = {f.name for f in dataclasses.fields(cls)} - {
        f.name for f in dataclasses.fields(Convert)
    }
    convert(run, **{name: getattr(run, name) for name in sorted(names)})


def convert(asked: Convert, **options: Any) -> None:
    """Convert and tell.

    Args:
        asked: what to write from what.
        options: what the file does not tell; see `foreact.released.convert.convert`.
    """
    said = {name: value for name, value in options.items() if value not in (None, False)}
    if asked.to == "training":
        if asked.task is not None or asked.half or said.keys() - {"grid"}:
            raise UserError(
                "Training goes on as it was: --to training takes the checkpoint, "
                "--out and --grid alone."
            )
        print(f"Training can start from {converting.start_training(asked.src, asked.out, **said)}")
        return
    if asked.to == "reference":
        if asked.task is not None or asked.half or said:
            raise UserError(
                "A folder is written back as it is: --to reference takes the folder "
                "and --out alone."
            )
        print(converting.write_back(resolve(str(asked.src)), asked.out))
        return
    spec = None if asked.task is None else policy_spec(find_task(asked.task))
    print(
        converting.convert(
            asked.src, asked.out, spec=spec, dtype=torch.float16 if asked.half else None, **said
        )
    )


def _unsaid(kind: Any) -> Any:
    """The default of an option that nobody has given: a flag that is not raised, or None."""
    return dataclasses.field(default=False if kind is bool else None)


def _with_options() -> type[Convert]:
    """`Convert` with the options of every layout; shared options list each layout's meaning."""
    helps: dict[str, list[str]] = {}
    types: dict[str, Any] = {}
    for layout in converting.layouts():
        hints = typing.get_type_hints(layout.options)
        for field in dataclasses.fields(layout.options):
            types[field.name] = bool if hints[field.name] == bool | None else hints[field.name]
            helps.setdefault(field.name, []).append(f"of {layout.title}, {field.metadata['help']}")
    fields: list[Any] = [
        (name, Annotated[types[name], tyro.conf.arg(help="; ".join(texts))], _unsaid(types[name]))
        for name, texts in helps.items()
    ]
    return dataclasses.make_dataclass(
        "Convert", fields, bases=(Convert,), frozen=True, kw_only=True
    )
