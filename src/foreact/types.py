"""The nouns of Foreact: read this page first.

Axis letters, used everywhere: B batch, T frames, C H W pixels, h w token grid, V vocabulary,
K action horizon, A action dim, S state dim, L text length.

Three words for time, used everywhere::

    steps      ... t-3  t-2  t-1   t | t+1  t+2  ...            t = the anchor, "now"
    context    [------ seen -------] |                           frames the model is given
    horizon K                     [a_0  a_1  ...  a_{K-1}]       actions the model predicts
    execute                       [a_0 .. a_{e-1}]               played before planning again

Images are uint8 (0..255) on disk and on the wire, and float in [-1, 1] inside models;
`to_model_range` and `to_uint8` are the only two places that convert. Padding is always a mask
(`Batch.valid`), never a convention. Randomness is always an argument (`torch.Generator`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from foreact.errors import UserError, decoding


def to_model_range(images: Tensor) -> Tensor:
    """uint8 images in 0..255, any shape -> float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Float images, nominally [-1, 1], any shape -> uint8 in 0..255, clamped and rounded."""
    return ((images.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


# --- what the numbers mean ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """What an action vector means.

    Attributes:
        names: one name per dimension, (A,).
        units: one unit per dimension, such as "px", "m", "rad" or "unitless".
        frame: reference frame, such as "world", "ego" or "tool".
        mode: absolute targets, per-step deltas, or poses relative to the last observation.
        rate_hz: control rate.
        low, high: bounds per dimension in the given units, or None where unbounded.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    frame: str
    mode: Literal["absolute", "delta", "relative"]
    rate_hz: float
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for label, values in (("units", self.units), ("low", self.low), ("high", self.high)):
            if values is not None and len(values) != len(self.names):
                raise UserError(
                    f"ActionSpec.{label} has {len(values)} entries for {len(self.names)} action "
                    "names; give one each."
                )

    @property
    def dim(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """What a store or a checkpoint holds, and what a policy expects to see.

    Attributes:
        cameras: stream name -> (height, width) in pixels.
        fps: frames per second of every camera and state stream.
        action: meaning of the action stream, or None for action-free video.
        state: low-dimensional stream name -> one name per dimension.
        has_text: whether each episode carries an instruction.
        has_reward: whether each step carries a reward: of the transition that led to it, 0 at the
            first step.
    """

    cameras: Mapping[str, tuple[int, int]]
    fps: float
    action: ActionSpec | None = None
    state: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_text: bool = False
    has_reward: bool = False

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(raw: Any) -> StreamSpec:
        """The inverse of `to_json`.

        Raises:
            UserError: it is no spec.
        """
        with decoding("The spec of the streams is damaged", "restore it from its source"):
            field_names = {f.name for f in dataclasses.fields(StreamSpec)}
            if unknown := sorted(set(raw) - field_names):
                raise UserError(
                    f"The spec has unknown entries {unknown}; known ones are {sorted(field_names)}."
                )
            action = raw.get("action")
            return StreamSpec(
                cameras={name: _size(size) for name, size in raw["cameras"].items()},
                fps=_rate(raw["fps"]),
                action=None if action is None else _action_from_json(action),
                state={name: _texts(names) for name, names in raw.get("state", {}).items()},
                has_text=bool(raw.get("has_text", False)),
                has_reward=bool(raw.get("has_reward", False)),
            )

    def require_equal(self, other: StreamSpec, label: str, other_label: str) -> None:
        """Raise a `UserError` that names the first differing entry and both sides.

        Instructions may be there or not: who needs them asks for them.
        """
        for name in (f.name for f in dataclasses.fields(self) if f.name != "has_text"):
            a, b = getattr(self, name), getattr(other, name)
            # Mappings of different types are equal by content.
            plain_a = dict(a) if isinstance(a, Mapping) else a
            plain_b = dict(b) if isinstance(b, Mapping) else b
            if plain_a != plain_b:
                raise UserError(
                    f"{label} and {other_label} disagree on '{name}': {label} has {a}, "
                    f"{other_label} has {b}; use data and weights of the same task."
                )


def _action_from_json(raw: Mapping[str, Any]) -> ActionSpec:
    # JSON has lists where the dataclass has tuples.
    fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in raw.items()}
    for name in ("names", "units"):
        fields[name] = _texts(raw[name])
    bounds = [fields.get(name) or () for name in ("low", "high")]
    if not all(isinstance(bound, int | float) for values in bounds for bound in values):
        raise ValueError("bounds of actions should be numbers")
    return ActionSpec(**{**fields, "rate_hz": _rate(raw["rate_hz"])})


def _size(raw: Any) -> tuple[int, int]:
    if len(raw) != 2 or not all(type(n) is int and 1 <= n <= 2**16 for n in raw):
        raise ValueError(f"{raw} is no height and width")
    return raw[0], raw[1]


def _rate(raw: Any) -> float:
    if isinstance(raw, bool) or not 0 < float(raw) < math.inf:
        raise ValueError(f"{raw} is no rate")
    return float(raw)


def _texts(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple) or not raw or not all(isinstance(t, str) for t in raw):
        raise ValueError("names should be a list of texts")
    return tuple(raw)


# --- data -----------------------------------------------------------------------------------------


@dataclass
class Batch:
    """What crosses from data to model.

    Attributes:
        video: camera -> uint8 (B, T, 3, H, W).
        latents: camera -> float (B, T, c, h, w), tokenizer latents in the tokenizer's scaled units.
        tokens: camera -> int64 (B, T, h, w).
        actions: float32 (B, K, A), normalised.
        past_actions: float32 (B, K, A), normalised.
        plans: float32 (B, T, K, A), one chunk of future actions per context frame, in the units of
            the action spec.
        rewards: float32 (B, K), rewards in their own units, of the steps that the window names.
        commands: int64 (B, T), the high-level command (index into a model's vocabulary of commands)
            at each frame.
        state: stream -> float32 (B, T, S), normalised.
        text: float32 (B, L), text features.
        valid: stream -> bool (B, T or K); True where the step lies inside its episode. A stream
            without an entry is valid everywhere.
        index: int64 (B, 2), episode and anchor step, for reports.
    """

    video: dict[str, Tensor] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)
    actions: Tensor | None = None
    past_actions: Tensor | None = None
    plans: Tensor | None = None
    rewards: Tensor | None = None
    commands: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    text: Tensor | None = None
    valid: dict[str, Tensor] = field(default_factory=dict)
    index: Tensor | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """A new batch with `f` applied to every tensor."""

        def apply(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: f(v) for k, v in value.items()}
            return None if value is None else f(value)

        return Batch(**{f_.name: apply(getattr(self, f_.name)) for f_ in dataclasses.fields(self)})

    def to(self, device: torch.device | str) -> Batch:
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self.map(lambda t: t.pin_memory())

    def __len__(self) -> int:
        for f_ in dataclasses.fields(self):
            value = getattr(self, f_.name)
            for t in value.values() if isinstance(value, dict) else [value]:
                if t is not None:
                    return t.shape[0]
        return 0

    def check(self, spec: StreamSpec) -> Batch:
        """Validate shapes, dtypes and finiteness against `spec`; run once, in the collate."""
        for name, video in self.video.items():
            if name not in spec.cameras:
                raise UserError(
                    f"The batch has camera '{name}'; the spec knows {sorted(spec.cameras)}."
                )
            if video.dtype != torch.uint8 or tuple(video.shape[2:]) != (3, *spec.cameras[name]):
                raise UserError(
                    f"Camera '{name}' should be uint8 (B, T, 3, {spec.cameras[name][0]}, "
                    f"{spec.cameras[name][1]}), found {video.dtype} {tuple(video.shape)}."
                )
        for label, actions in (
            ("actions", self.actions),
            ("past_actions", self.past_actions),
            ("plans", self.plans),
        ):
            if actions is None:
                continue
            if spec.action is None or actions.shape[-1] != spec.action.dim:
                expected = "no actions" if spec.action is None else f"{spec.action.dim} action dims"
                raise UserError(
                    f"The spec has {expected}, the batch's {label} have shape "
                    f"{tuple(actions.shape)}."
                )
            if not torch.isfinite(actions).all():
                first = None if self.index is None else self.index[0].tolist()
                where = "" if first is None else f" (episode, step: {first} and on)"
                raise UserError(
                    f"The {label} hold NaN or infinite values{where}; run `foreact data "
                    "check` to find them."
                )
        if self.rewards is not None and not torch.isfinite(self.rewards).all():
            bad = int((~torch.isfinite(self.rewards)).any(dim=1).nonzero()[0])
            where = "" if self.index is None else f" (episode, step: {self.index[bad].tolist()})"
            raise UserError(
                f"The rewards hold NaN or infinite values{where}; run `foreact data "
                "check` to find them."
            )
        return self


@dataclass
class LossOut:
    """Result of one training forward.

    Attributes:
        loss: () float32, mean over valid elements.
        logs: name -> () detached.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Encoder(Protocol):
    """Pixels -> codes or latents; it need not know the way back."""

    @property
    def vocab(self) -> int | None:
        """Number of codes; None for continuous latents."""
        ...

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """(B, T, 3, H, W) float in [-1, 1] -> int64 (B, T, h, w) or float (B, T, c, h, w)."""
        ...


@runtime_checkable
class Tokenizer(Encoder, Protocol):
    """Pixels <-> codes or latents."""

    def decode(self, z: Tensor) -> Tensor:
        """Inverse of `encode`; float (B, T, 3, H, W) in [-1, 1]."""
        ...


@runtime_checkable
class Codes(Encoder, Protocol):
    """An encoder to rows of a codebook, the same number of codes for every frame."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the codes of a frame."""
        ...

    @property
    def codebook(self) -> Tensor:
        """float32 (V, c)."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Instructions -> features; frozen.

    Attributes:
        name: short, of the kind of encoder, such as "clip".
        hash: "sha256:..." of its weights and vocabulary: equal hashes, equal features.
        dim: numbers per instruction, L.
    """

    name: str
    hash: str
    dim: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, L), one row per text, whatever texts are encoded beside it.

        Raises:
            UserError: a text is empty or too long for it.
        """
        ...


@runtime_checkable
class Trainable(Protocol):
    """Every family's module: one training entry, one list of parameter groups.

    A model may say which of its parameters a training forward uses, `used_parameters`: "all"
    trainable ones, the "same" ones every time, or "varying" ones (a task drawn per micro-batch),
    which is assumed without it. DDP then need not look for unused ones, and FSDP2 needs "all" or
    "same".

    A model that has a method `after_step()` gets it called after every optimiser step, such as for
    a target network. Where that needs sums over all that the step saw, as a codebook that follows
    its latents does, the training forwards add to tensors that the model lists in `step_sums`; like
    gradients, they are summed over processes before `after_step()`, and zeroed where a step is
    skipped.
    """

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut: ...

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]: ...


@dataclass
class Observation:
    """What B environments show at one instant.

    Attributes:
        cameras: name -> uint8 (B, H, W, 3).
        state: name -> float32 (B, S).
        text: one instruction per environment, or None.
    """

    cameras: dict[str, np.ndarray]
    state: dict[str, np.ndarray] = field(default_factory=dict)
    text: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known at B moments, in the units of the data; what a model is asked about.

    Attributes:
        frames: camera -> uint8 (B, F, H, W, 3), the context; the last frame is now.
        state: stream -> float32 (B, P, S), at the steps at which the model reads them; empty: for
            who has frames alone.
        past_actions: float32 (B, K, A), NaN where none had been taken yet; None: nobody knows.
        text: one instruction per moment, or None.
    """

    frames: Mapping[str, np.ndarray]
    state: Mapping[str, np.ndarray] = field(default_factory=dict)
    past_actions: np.ndarray | None = None
    text: Sequence[str] | None = None

    def __len__(self) -> int:
        return min((len(frames) for frames in self.frames.values()), default=0)


@dataclass(frozen=True)
class ActionChunk:
    """Actions to play, float32 (B, K, A), denormalised, in the environment's `ActionSpec`.

    `t0` is the step at which `actions[:, 0]` is due, counted from the episode's start; `execute` of
    the K actions are meant to be played before the next `act`; `infer_ms` is the latency of the
    call.
    """

    actions: np.ndarray
    execute: int
    t0: int
    infer_ms: float


class Policy(Protocol):
    """Model, tokenizer, normaliser and history; the environment keeps no history for it.

    Episodes carry the numbers 0, 1, ... in the order of the seeds given to `reset`. `ids` picks
    those that still run; left out, it means all of them.
    """

    spec: StreamSpec

    def reset(self, seeds: Sequence[int]) -> None:
        """Start one episode per seed; draws for episode i depend on `seeds[i]` alone."""
        ...

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        """Take in one step of episodes `ids`, once per environment step, before any `act`."""
        ...

    def act(self, ids: Sequence[int] | None = None) -> ActionChunk:
        """Plan for episodes `ids`, all at the same step, from observations so far."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able facts to keep with a score: weights, context, horizon, execute, ..."""
        ...


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured mean with its 95 % confidence interval.

    Attributes:
        low, high: interval of the mean; all that the mean can be where `has_interval` is False.
    """

    mean: float
    n: int
    low: float
    high: float
    unit: str
    higher_is_better: bool

    @property
    def has_interval(self) -> bool:
        """Whether the values tell how far off the mean may be; one value never does."""
        return self.n > 1 and math.isfinite(self.low) and math.isfinite(self.high)

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        ends = f"[{self.low:.3f}, {self.high:.3f}]" if self.has_interval else "[no interval]"
        return f"{self.mean:.3f}{unit} {ends} (n={self.n})"
