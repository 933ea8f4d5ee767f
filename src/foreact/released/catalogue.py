"""The released models by id: what each is, its files, and errors in the release's own table.

Sizes and hashes of the files are not part of it: the release publishes none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from foreact.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Size:
    """One published size of VaViM (the video model) and VaVAM (video model and action expert).

    Attributes:
        width, action_width: of the video model and of the action expert.
        layers: of both.
        head_dim: channels of one attention head.
        parameters, action_parameters: exact counts, the tied output layer counted once.
        label, action_label: the counts as published, which are rounded and for size S differ from
            the exact one.
    """

    width: int
    action_width: int
    layers: int
    head_dim: int
    parameters: int
    action_parameters: int
    label: str
    action_label: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing to download.

    Attributes:
        id: what the user types.
        title: name of the model, or what the files hold.
        candidates: sets of file names in the order to try them; a set is taken whole. Empty where
            none is known.
        stage: "pretrained", "finetuned" or "action"; None for what is no model.
        pretraining_steps: optimiser steps of the pre-training.
        total_steps: the same including the fine-tuning, where there was one.
        size: the published size, for a model.
        licence: of the files, as the release states it; None where it states none.
        note: what is wrong with this entry in the release's own table, or None.
    """

    id: str
    title: str
    candidates: tuple[tuple[str, ...], ...]
    stage: str | None = None
    pretraining_steps: int | None = None
    total_steps: int | None = None
    size: Size | None = None
    licence: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A release: its name, base URL, and entries in the order of its table."""

    release: str
    url: str
    entries: tuple[Entry, ...]

    def entry(self, id: str) -> Entry:
        """The entry called `id`.

        Raises:
            UserError: there is none.
        """
        for entry in self.entries:
            if entry.id == id:
                return entry
        raise UserError(
            f"The release has nothing called '{id}'{did_you_mean(id, [e.id for e in self.entries])}"
        )


@cache
def catalogue() -> Catalogue:
    """The catalogue of valeoai/VideoActionModel v1.0.0."""
    raw = json.loads((files("foreact.released") / "catalogue.json").read_text(encoding="utf-8"))
    sizes = {name: Size(**facts) for name, facts in raw["sizes"].items()}

    def entry(facts: dict[str, Any]) -> Entry:
        candidates = tuple(tuple(names) for names in facts["candidates"])
        return Entry(
            **{**facts, "candidates": candidates, "size": sizes.get(facts.get("size", ""))}
        )

    return Catalogue(
        release=raw["release"], url=raw["url"], entries=tuple(map(entry, raw["entries"]))
    )
