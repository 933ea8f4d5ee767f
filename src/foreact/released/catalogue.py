"""What was released, by id: what each is, its files, and errors in a release's own table.

No release publishes hashes of its files, and few their sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
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
        note: what is wrong with this entry in the release's own table, or what to know of it.
        release: the project that released it.
        url: address that names of files are appended to.
        folder: below the address, and below the folder that the files are put into.
        addresses: name -> address of its own, where the file lies elsewhere.
        published_size: of the files, as published and rounded; None: unknown.
    """

    id: str
    title: str
    candidates: tuple[tuple[str, ...], ...]
    release: str
    url: str
    folder: str = ""
    addresses: Mapping[str, str] = field(default_factory=dict)
    published_size: str | None = None
    stage: str | None = None
    pretraining_steps: int | None = None
    total_steps: int | None = None
    size: Size | None = None
    licence: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All entries, release after release, each in the order of its table."""

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
            f"The releases have nothing called '{id}'"
            f"{did_you_mean(id, [entry.id for entry in self.entries])}"
        )


@cache
def catalogue() -> Catalogue:
    """What is released of VaViM and VaVAM, of UVA and what it starts from, and of VOC."""
    raw = json.loads((files("foreact.released") / "catalogue.json").read_text(encoding="utf-8"))
    sizes = {name: Size(**facts) for name, facts in raw["sizes"].items()}

    def entry(facts: dict[str, Any], release: dict[str, Any]) -> Entry:
        read = {
            "candidates": tuple(tuple(names) for names in facts["candidates"]),
            "size": sizes.get(facts.get("size", "")),
        }
        return Entry(**facts | read, release=release["release"], url=release["url"])

    return Catalogue(
        entries=tuple(
            entry(facts, release) for release in raw["releases"] for facts in release["entries"]
        )
    )
