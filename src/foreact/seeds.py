"""Seeds as the command line takes them."""

from __future__ import annotations

from foreact.errors import UserError

LARGEST = 2**32 - 1
"""The largest seed that every simulator and every generator takes."""


def require_seeds(first: int, count: int = 1, option: str = "--first-seed") -> None:
    """See that `count` seeds from `first` on are such that everything takes them.

    Raises:
        UserError: one is below 0 or beyond 2**32 - 1.
    """
    last = first + max(count, 1) - 1
    if first < 0 or last > LARGEST:
        found = f"{first}" if count <= 1 else f"{first}..{last}"
        raise UserError(
            f"Seeds should lie in 0..{LARGEST} (2**32 - 1), found {found}; choose another {option}."
        )
