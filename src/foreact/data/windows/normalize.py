"""Affine scaling of actions and states by fitted statistics; images and latents are not scaled.

Per stream and dimension: encoded = x * scale + offset. A stream without statistics is an error.
Ways to fit (`Mode`), with UVA's rules for dimensions that hardly move (reference:
LinearNormalizer):
    limits     [min, max] -> [-1, 1]; a constant dimension -> 0
    symmetric  divide by the greatest absolute value, no offset
    gaussian   zero mean, unit deviation; a constant dimension is only centred
    identity   unchanged
    range      as `limits`, with the finer threshold for constant dimensions of robomimic and Libero
    positions  poses of 10 numbers an arm (position 3, rotation 6, gripper 1): positions as `range`,
        the rest unchanged
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from foreact.data.stores.episodes import EpisodeStore
from foreact.errors import UserError

Mode = Literal["limits", "range", "symmetric", "gaussian", "identity", "positions"]
Values = TypeVar("Values", np.ndarray, Tensor)

RANGE_EPSILON = {
    "limits": 1e-4,
    "symmetric": 1e-4,
    "gaussian": 1e-4,
    "range": 1e-7,
    "positions": 1e-7,
}
"""Below this range (gaussian: deviation, symmetric: absolute value) a dimension counts as constant.
"""
ARM = 10
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Scaling of one stream, one entry per dimension; `min` to `std` describe the fitted data."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        values = np.concatenate([np.asarray(getattr(self, f.name), float) for f in fields(self)])
        if len(set(sizes.values())) != 1 or not np.isfinite(values).all() or 0.0 in self.scale:
            raise UserError(
                "Statistics need finite numbers, one per dimension, and no zero scale; found "
                f"sizes {sizes} and scales {self.scale}."
            )

    @property
    def dim(self) -> int:
        return len(self.scale)


class Normalizer:
    """Scales streams to the range that networks like, and back."""

    def __init__(self, streams: Mapping[str, Statistics]) -> None:
        self.streams = dict(streams)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Normalizer) and self.streams == other.streams

    def __repr__(self) -> str:
        return f"Normalizer({', '.join(f'{name}: {s.dim}' for name, s in self.streams.items())})"

    @staticmethod
    def fit(
        arrays: Mapping[str, np.ndarray], modes: Mapping[str, Mode] | Mode = "limits"
    ) -> Normalizer:
        """Fit on arrays.

        Args:
            arrays: {stream: (..., D)}, as the model's side will see them: after every transform of
                the actions.
            modes: one way for all streams, or one each.

        Raises:
            UserError: NaN, too few values, or a stream without a mode.
        """
        if isinstance(modes, Mapping) and (missing := sorted(set(arrays) - set(modes))):
            raise UserError(
                f"The streams {missing} have no normalisation; choose one of "
                f"{get_args(Mode)} for each."
            )
        return Normalizer(
            {
                name: fit_stream(x, modes if isinstance(modes, str) else modes[name], name)
                for name, x in arrays.items()
            }
        )

    @staticmethod
    def fit_store(
        store: EpisodeStore,
        episodes: np.ndarray | None = None,
        modes: Mapping[str, Mode] | Mode = "limits",
    ) -> Normalizer:
        """Fit every state and action stream on the chosen episodes of a store (all by default)."""
        spec = store.spec
        names = [*spec.state, *(["action"] if spec.action is not None else [])]
        chosen = range(len(store)) if episodes is None else episodes
        rows = np.concatenate(
            [store.starts[e] + np.arange(store.lengths[e]) for e in chosen] or [np.arange(0)]
        )
        return Normalizer.fit({name: store.gather(name, rows) for name in names}, modes)

    def encode(self, x: Values, stream: str) -> Values:
        """Data units -> normalised; any shape (..., D), torch or numpy, floating dtypes kept."""
        scale, offset = self._like(x, stream)
        return x * scale + offset

    def decode(self, x: Values, stream: str) -> Values:
        """Inverse of `encode`."""
        scale, offset = self._like(x, stream)
        return (x - offset) / scale

    def out_of_range(self, x: np.ndarray, stream: str) -> np.ndarray:
        """Share (D,), 0..1, of the values (..., D) outside the range of the fitted data."""
        stats = self._stats(stream, x.shape[-1])
        low, high = np.asarray(stats.min), np.asarray(stats.max)
        slack = 1e-3 * (high - low) + 1e-6
        flat = np.asarray(x, np.float64).reshape(-1, stats.dim)
        return ((flat < low - slack) | (flat > high + slack)).mean(axis=0)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "streams": {name: asdict(stats) for name, stats in self.streams.items()},
        }

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Normalizer:
        """Inverse of `to_json`; unknown or missing entries are errors."""
        if set(raw) != {"format", "streams"} or raw["format"] != FORMAT:
            raise UserError(
                f"Statistics should have the entries format ({FORMAT}) and streams, found "
                f"{sorted(raw)} with format {raw.get('format')}."
            )
        expected = {f.name for f in fields(Statistics)}
        streams = {}
        for name, entries in raw["streams"].items():
            if set(entries) != expected:
                raise UserError(
                    f"Statistics of '{name}' should have {sorted(expected)}, found "
                    f"{sorted(entries)}."
                )
            streams[name] = Statistics(
                **{k: tuple(float(x) for x in v) for k, v in entries.items()}
            )
        return Normalizer(streams)

    @staticmethod
    def from_reference(state: Mapping[str, Tensor]) -> Normalizer:
        """Read the `params_dict.<stream>.{scale,offset,input_stats.*}` tensors of a UVA checkpoint.

        Keys may carry any prefix before `params_dict`. The image scaling stored there comes along
        as stream "image"; UVA never uses it.

        Raises:
            UserError: a key that is none of these, or a stream with entries missing.
        """
        found: dict[str, dict[str, tuple[float, ...]]] = {}
        for key, value in state.items():
            match = re.fullmatch(
                r"(?:.*\.)?params_dict\.(.+?)\.(?:input_stats\.)?(scale|offset|min|max|mean|std)",
                key,
            )
            if match is None:
                raise UserError(
                    f"'{key}' is no normaliser entry; expected "
                    "params_dict.<stream>.<scale|offset|...>."
                )
            found.setdefault(match[1], {})[match[2]] = tuple(
                value.detach().double().reshape(-1).tolist()
            )
        expected = {f.name for f in fields(Statistics)}
        for name, entries in found.items():
            if set(entries) != expected:
                raise UserError(
                    f"The normaliser of '{name}' lacks {sorted(expected - set(entries))}."
                )
        return Normalizer({name: Statistics(**entries) for name, entries in found.items()})

    def _stats(self, stream: str, dim: int) -> Statistics:
        if stream not in self.streams:
            raise UserError(
                f"There are no statistics for stream '{stream}', only for {sorted(self.streams)}; "
                "fit them on the training data."
            )
        if self.streams[stream].dim != dim:
            raise UserError(
                f"Statistics of '{stream}' have {self.streams[stream].dim} dimensions, the data "
                f"{dim}; use data and weights of the same task."
            )
        return self.streams[stream]

    def _like(self, x: Any, stream: str) -> tuple[Any, Any]:
        stats = self._stats(stream, x.shape[-1])
        if isinstance(x, Tensor):
            dtype = x.dtype if x.is_floating_point() else torch.float32
            scale, offset = (
                torch.tensor(v, dtype=dtype, device=x.device) for v in (stats.scale, stats.offset)
            )
            return scale, offset
        dtype = x.dtype if np.issubdtype(x.dtype, np.floating) else np.float32
        return np.asarray(stats.scale, dtype), np.asarray(stats.offset, dtype)


def fit_stream(x: np.ndarray, mode: Mode, name: str = "stream") -> Statistics:
    """Fit one stream.

    Args:
        x: (..., D) finite numbers.
        mode: see the head of this module.
        name: for error sentences.
    """
    flat = np.asarray(x, np.float64)
    flat = flat.reshape(-1, flat.shape[-1])
    if len(flat) < 2 or not np.isfinite(flat).all():
        problem = f"{len(flat)} rows" if len(flat) < 2 else "NaN or infinite values"
        raise UserError(
            f"Statistics of '{name}' need at least 2 rows of finite numbers, found {problem}."
        )
    if mode not in get_args(Mode):
        raise UserError(
            f"'{name}' cannot be normalised by '{mode}'; choose one of {get_args(Mode)}."
        )
    low, high = flat.min(0), flat.max(0)
    # The reference describes these tasks' data by the population's deviation, others by the
    # unbiased one.
    mean, std = flat.mean(0), flat.std(0, ddof=0 if mode in ("range", "positions") else 1)
    scale, offset = np.ones_like(low), np.zeros_like(low)
    epsilon = RANGE_EPSILON.get(mode, 0.0)
    if mode in ("limits", "range", "positions"):
        still = high - low < epsilon
        scale = 2.0 / np.where(still, 2.0, high - low)
        offset = np.where(still, -low, -1.0 - scale * low)
    elif mode == "symmetric":
        reach = np.maximum(np.abs(low), np.abs(high))
        scale = 1.0 / np.where(reach < epsilon, 1.0, reach)
    elif mode == "gaussian":
        scale = 1.0 / np.where(std < epsilon, 1.0, std)
        offset = -mean * scale
    if mode == "positions":
        if flat.shape[1] % ARM:
            raise UserError(
                f"'{name}' has {flat.shape[1]} dimensions; the mode 'positions' needs {ARM} an "
                "arm: position 3, rotation 6, gripper 1."
            )
        rest = np.arange(flat.shape[1]) % ARM >= 3
        # What is left as it is counts as filling [-1, 1], as in the reference.
        for values, fixed in (
            (scale, 1.0),
            (offset, 0.0),
            (low, -1.0),
            (high, 1.0),
            (mean, 0.0),
            (std, 1.0),
        ):
            values[rest] = fixed
    # float32 is what the reference stores and what the models compute with.
    parts = {"scale": scale, "offset": offset, "min": low, "max": high, "mean": mean, "std": std}
    return Statistics(
        **{k: tuple(v.astype(np.float32).astype(float).tolist()) for k, v in parts.items()}
    )
