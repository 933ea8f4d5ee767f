"""What a check of data has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One observation: an error spoils training, a warning may be meant, a note is a plain fact."""

    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.severity:<8}{self.text}"
