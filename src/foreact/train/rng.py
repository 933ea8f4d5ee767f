"""Random states: seeds by micro-batch number, and saving the process's global generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seeded(generator: torch.Generator, seed: int, micro: int) -> torch.Generator:
    """Seed `generator` and torch's global ones (dropout) for the run's micro-batch `micro`."""
    own, everywhere = np.random.SeedSequence((seed, micro)).generate_state(
        2, np.uint64
    ) >> np.uint64(1)
    # Not torch.manual_seed, which also queues calls for every kind of accelerator in each step.
    torch.default_generator.manual_seed(int(everywhere))
    if generator.device.type == "cuda":
        torch.cuda.manual_seed(int(everywhere))
    return generator.manual_seed(int(own))


def rng_state() -> dict[str, Any]:
    """State of the global generators (python, numpy, torch, GPU) as plain values."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    keys = torch.from_numpy(np.asarray(keys).astype(np.int64))
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, keys, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Inverse of `rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
