"""Folders of results: which measurement lies in one, so that no other replaces it unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreact.checkpoints.configs import read_json
from foreact.errors import UserError
from foreact.files import write_json
from foreact.runs.command_line import Options, command_line

RECORD = "measurement.json"
REPORT = "report.html"
WITHOUT_EFFECT = ("out", "device", "workers", "videos", "examples")
"""Options that change neither what is measured nor on what."""


@dataclass(frozen=True)
class Results:
    """A folder for the results of one measurement.

    Attributes:
        folder: where they go.
        command: the whole command line that measures them again.
        record: what tells this measurement from others.
    """

    folder: Path
    command: str
    record: Mapping[str, Any]

    def finish(self) -> None:
        """Note in the folder what it holds, once all of it is there."""
        write_json(self.folder / RECORD, dict(self.record))


def open_results(folder: Path, verb: str, *parts: Options, **hashes: str) -> Results:
    """Take a folder for the results of a measurement, before it begins.

    The same measurement may be repeated into its folder; any other needs one of its own.

    Args:
        folder: --out; it need not exist.
        verb: of the command line, such as "eval values".
        parts: its options, see `foreact.runs.command_line`.
        hashes: of what paths among the options name, such as weights=...: other content at the
            same path makes another measurement.

    Raises:
        UserError: the folder holds the results of another measurement.
    """
    measured = [{k: v for k, v in part.items() if k not in WITHOUT_EFFECT} for part in parts]
    record = {"measured": command_line(verb, *measured), **hashes}
    _require_free(folder, record)
    return Results(folder, command_line(verb, *parts), record)


def _require_free(folder: Path, record: Mapping[str, Any]) -> None:
    path = folder / RECORD
    before = read_json(path) if path.is_file() else None
    if before == record:
        return
    if isinstance(before, dict) and "measured" in before:
        differing = [name for name in {**before, **record} if before.get(name) != record.get(name)]
        other = "" if "measured" in differing else f" with other {' and '.join(differing)}"
        raise UserError(
            f"{folder} holds the results of `{before['measured']}`{other}; name another --out."
        )
    if path.exists() or (folder / REPORT).exists():
        raise UserError(
            f"{folder} holds a report that does not say what was measured; name another --out."
        )
