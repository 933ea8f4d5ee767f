"""Options that must be known before any folder is collected."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
# A busy machine is no failure, and a gate says the same twice; `--hypothesis-profile explore` looks
# for new examples.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens", default=None, help="folder laid out as DIR/<system>[/golden]/<case>/case.json"
    )
