"""`foreact generate` and `foreact eval video`: dispatch on the family of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from foreact.checkpoints.format import family_of
from foreact.checkpoints.shipped import resolve
from foreact.errors import UserError
from foreact.plugs import FAMILIES, families_with
from foreact.runs.acting import BASELINES
from foreact.runs.words import option_value


def generate_command(args: Sequence[str]) -> None:
    """`foreact generate`."""
    _call("generate", args, "foreact generate")


def video_command(args: Sequence[str]) -> None:
    """`foreact eval video`."""
    _call("video", args, "foreact eval video")


def _call(entry: str, args: Sequence[str], prog: str) -> None:
    weights = option_value(args, "--weights")
    if weights in BASELINES:
        raise UserError(
            f"'{weights}' imagines nothing; name weights of {', '.join(families_with(entry))}."
        )
    if weights is not None:
        family = FAMILIES.find(family_of(resolve(weights)))
    else:  # a tokenizer by itself is measured on drives; UVA always brings its own
        family = FAMILIES.find("uva" if option_value(args, "--tokenizer") is None else "vavim")
    function = family.get(entry)
    if weights is None and {"-h", "--help"} & set(args):
        others = ", ".join(other for other in families_with(entry) if other != family.name)
        print(
            f"These are the options for {family.name}; for {others}: {prog} --weights WEIGHTS "
            "--help\n"
        )
    tyro.cli(function, prog=prog, args=args)
