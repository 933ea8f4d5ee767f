"""Work of other processes that behaves as if Ctrl-C were pressed."""

from __future__ import annotations

import os
import signal


def interrupt_itself(number: int) -> int:
    """Ctrl-C of a terminal reaches every process of its group."""
    os.kill(os.getpid(), signal.SIGINT)
    return number
