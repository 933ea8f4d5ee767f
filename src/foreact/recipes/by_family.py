"""One verb for several families: which function answers depends on the weights that the command line names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import tyro

from foreact.recipes.evaluate import BASELINES
from foreact.types import UserError
from foreact.weights.format import family_of
from foreact.weights.shipped import resolve

GENERATE = {
    "uva": "foreact.recipes.generate:generate",
    "vavim": "foreact.recipes.generate_driving:generate",
    "vavam": "foreact.recipes.generate_driving:generate",
    "voc": "foreact.recipes.generate_occupancy:generate",
}
VIDEO = {
    "uva": "foreact.recipes.evaluate:video",
    "vavim": "foreact.recipes.evaluate_driving:driving_video",
    "vavam": "foreact.recipes.evaluate_driving:driving_video",
}


def generate_command(args: Sequence[str]) -> None:
    """`foreact generate`."""
    _call(GENERATE, args, "foreact generate")


def video_command(args: Sequence[str]) -> None:
    """`foreact eval video`."""
    _call(VIDEO, args, "foreact eval video")


def _call(functions: Mapping[str, str], args: Sequence[str], prog: str) -> None:
    weights = _value(args, "--weights")
    if weights in BASELINES:
        raise UserError(f"'{weights}' imagines nothing; name weights of {', '.join(functions)}.")
    if weights is not None:
        family = family_of(resolve(weights))
    else:  # a tokenizer by itself is measured on drives; UVA always brings its own
        family = "uva" if _value(args, "--tokenizer") is None else "vavim"
    if family not in functions:
        raise UserError(f"`{prog}` knows weights of {', '.join(functions)}; {weights} holds a {family}.")
    module, _, name = functions[family].partition(":")
    if weights is None and {"-h", "--help"} & set(args):
        others = ", ".join(other for other in functions if other != family)
        print(f"These are the options for {family}; for {others}: {prog} --weights WEIGHTS --help\n")
    tyro.cli(getattr(importlib.import_module(module), name), prog=prog, args=args)


def _value(args: Sequence[str], option: str) -> str | None:
    for word, following in zip(args, [*args[1:], ""], strict=True):
        if word == option:
            return following or None
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
