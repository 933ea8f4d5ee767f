"""Golden cases and the adapters that run them; an adapter is driven by its case folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

ADAPTERS: dict[tuple[str, str], Callable[[Case], None]] = {}


def adapter(system: str, *cases: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a function as the test of one or several cases of `system`."""

    def register(f: Callable[[Case], None]) -> Callable[[Case], None]:
        for name in cases:
            assert (system, name) not in ADAPTERS, f"two adapters for {system}/{name}"
            ADAPTERS[system, name] = f
        return f

    return register


@dataclass(frozen=True)
class Case:
    """One golden folder."""

    system: str
    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        return self.meta["config"]

    @cached_property
    def io(self) -> dict[str, Tensor]:
        return load_file(self.folder / "io.safetensors")

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")

    def check(self, name: str, got: Tensor | np.ndarray | float | None) -> None:
        """Compare with the expected tensor `name` under the
        tolerance of case.json; None is never equal to it.
        """
        assert got is not None, f"{name}: there is none"
        self.check_value(got, self.io[name], name)

    def check_value(self, got: Any, expected: Any, label: str) -> None:
        got, expected = (
            torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x)
            for x in (got, expected)
        )
        assert got.shape == expected.shape, (
            f"{label}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        )
        if not (expected.is_floating_point() or got.is_floating_point()):
            assert torch.equal(got, expected.to(got.dtype)), f"{label}: integers differ"
            return
        got, expected = got.detach().double(), expected.double()
        assert torch.isfinite(got).all() or torch.equal(
            torch.isfinite(got), torch.isfinite(expected)
        ), label
        error = (got - expected).abs().max().item() if got.numel() else 0.0
        tolerance = self.meta["tolerance"]
        tolerance = tolerance.get(
            "float", tolerance
        )  # some systems state one for each kind of number
        if "max_over_std" in tolerance:
            if expected.numel() == 1:
                allowed = tolerance["scalar_rtol"] * expected.abs().item()
            else:
                allowed = (
                    tolerance["max_over_std"] * expected.std(correction=0).item()
                    + tolerance["atol"]
                )
            assert error <= allowed, f"{label}: error {error:.3g}, allowed {allowed:.3g}"
        else:
            excess = (
                ((got - expected).abs() - tolerance.get("rtol", 0.0) * expected.abs()).max().item()
                if got.numel()
                else 0.0
            )
            assert excess <= tolerance["atol"], f"{label}: error {error:.3g} beyond {tolerance}"
