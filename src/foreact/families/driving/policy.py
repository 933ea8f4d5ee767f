"""VaVAM as a policy (arXiv 2502.15672): front-camera frames and a command in, waypoints out.

Deviations from the reference: a frame is tokenized once, when it arrives, not again with every
plan; draws depend on the episode's seed; several plans may be drawn, from one reading of the video,
and one of them chosen.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foreact.checkpoints.format import build, load_checkpoint
from foreact.checkpoints.tokenizers import tokenizer_of
from foreact.errors import UserError
from foreact.families.driving.data.drives import FRAME_SIZE, FRONT
from foreact.families.driving.data.windows import plan_spec
from foreact.families.driving.vavam import VaVAM
from foreact.machine import AnyPrecision, Precision, autocast, choose_precision
from foreact.policies.memory import Episode, Memory, generator_for, pictures_of
from foreact.types import ActionChunk, Encoder, Observation, StreamSpec, to_model_range

COMMAND = "command"
"""State stream of the high-level command: 0 right, 1 left, 2 straight."""
RATE_HZ = 2.0
"""Rate of frames and waypoints of the released models."""
CAMERA_SIZE = (900, 1600)
"""(height, width) of the cameras that the models were trained on."""

Choice = Literal["first", "medoid"]
NoiseSource = Callable[[int, int], Tensor]
"""(seed of the episode, step) -> standard normal (samples, K, A), the noise of its plans."""


def acting_spec(size: tuple[int, int] = FRAME_SIZE) -> StreamSpec:
    """What the released models see and plan: front camera and command, waypoints of the car."""
    return StreamSpec(
        cameras={FRONT: size}, fps=RATE_HZ, action=plan_spec(RATE_HZ), state={COMMAND: (COMMAND,)}
    )


@dataclass
class Drive(Episode):
    """One episode: the tokens of its newest frames and its newest command."""

    tokens: deque[Tensor] = field(default_factory=deque)
    command: int = -1


@dataclass(frozen=True, kw_only=True)
class DrivingOptions:
    """How a VaVAM drives."""

    samples: int = 1
    """Plans to draw."""
    choose: Choice = "first"
    """Which of them to follow: the first, or the medoid, the one closest to all others."""
    steps: int | None = None
    """Euler steps of the flow; None: the model's."""
    clip: float | None = None
    """Limit on each coordinate, m; None: the model's."""
    precision: AnyPrecision = "fp32"
    """Of the model; auto: bf16 where the device is faster in it."""
    tokenizer: str | None = None
    """Checkpoint folder or TorchScript encoder of its tokenizer, where it is not embedded.

    Where the checkpoint names a tokenizer, it must be that one.
    """


class DrivingPolicy:
    """VaVAM with its tokenizer and memory; meets `foreact.types.Policy`.

    Observations carry the camera in any size (see `fit_frames`) and the command as
    `state["command"]`, (B, 1). They come at the rate of the spec, one per step.

    Args:
        model: the video-action model.
        tokenizer: the tokenizer whose ids the model was trained on, on `device` already.
        spec: camera and its size in the tokenizer, rate, and what the waypoints mean.
        options: how to drive; a `clip` of math.inf limits nothing, `precision` is the model's alone
            (the tokenizer always computes in float32), and `tokenizer` is for those who open a
            checkpoint.
        execute: waypoints to follow before planning again, 1..K.
        noise: where plans grow from; by default a generator seeded with the episode's seed and the
            step.
        device: where to compute.
        weights: content hash of the weights, told by `describe`.

    Raises:
        UserError: a setting is impossible, or model, tokenizer and spec do not belong together.
    """

    def __init__(
        self,
        model: VaVAM,
        tokenizer: Encoder,
        spec: StreamSpec,
        options: DrivingOptions = DrivingOptions(),
        *,
        execute: int = 1,
        noise: NoiseSource | None = None,
        device: torch.device | str = "cpu",
        weights: str = "",
    ) -> None:
        video, expert = model.config.vavim, model.config.expert
        steps = model.config.steps if options.steps is None else options.steps
        if options.samples < 1 or steps < 1:
            raise UserError(f"samples ({options.samples}) and steps ({steps}) must be at least 1.")
        if not 1 <= execute <= expert.horizon:
            raise UserError(
                f"execute is {execute}; the model plans {expert.horizon} waypoints, "
                "choose 1 to that many."
            )
        if tokenizer.vocab is None or tokenizer.vocab > video.vocab:
            ids = "continuous latents" if tokenizer.vocab is None else f"{tokenizer.vocab} ids"
            raise UserError(
                f"The model reads {video.vocab} token ids, the tokenizer has {ids}; give its own "
                "tokenizer."
            )
        if video.camera not in spec.cameras:
            raise UserError(
                f"The model watches camera '{video.camera}'; the spec knows {sorted(spec.cameras)}."
            )
        if spec.action is None or spec.action.dim != expert.action_dim:
            actions = "no actions" if spec.action is None else f"{spec.action.dim} action dims"
            raise UserError(
                f"The model plans {expert.action_dim} numbers per waypoint, the spec has {actions}."
            )
        self.spec = spec
        self.model = model.to(device)
        self.camera = video.camera
        self.samples = options.samples
        self.choose = options.choose
        self.steps = steps
        self.clip = model.config.clip if options.clip is None else options.clip
        self.context = model.config.context or video.frames
        self.execute = execute
        self.precision: Precision = choose_precision(options.precision, torch.device(device))
        self.device = torch.device(device)
        self.weights = weights
        self._tokenizer = tokenizer
        self._noise = noise
        self._memory = self._empty_memory()

    def fresh(self) -> DrivingPolicy:
        """A policy with the same settings and the same network, for episodes of its own."""
        policy = copy.copy(self)
        policy._memory = policy._empty_memory()
        return policy

    def _empty_memory(self) -> Memory[Drive]:
        return Memory(lambda seed: Drive(seed, tokens=deque(maxlen=self.context)))

    def reset(self, seeds: Sequence[int]) -> None:
        self._memory.reset(seeds)

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        drives = self._memory.episodes(ids)
        frames = pictures_of(obs, self.camera, len(drives), None)
        commands = self._commands(obs, len(drives))
        # Everything that can fail comes before the first change, so that a refused observation
        # leaves no trace.
        tokens = self._tokenize(frames)
        for drive, command, frame in zip(drives, commands, tokens, strict=True):
            drive.tokens.append(frame)
            drive.command = command
            drive.step += 1

    def act(self, ids: Sequence[int] | None = None) -> ActionChunk:
        start = time.perf_counter()
        plans = self.plans(ids)
        first = torch.zeros(len(plans), dtype=torch.long)
        chosen = first if self.choose == "first" else medoid(plans)
        actions = plans[torch.arange(len(plans)), chosen].numpy()
        _, step = self._memory.now(ids)
        return ActionChunk(actions, self.execute, step, (time.perf_counter() - start) * 1e3)

    def plans(self, ids: Sequence[int] | None = None) -> Tensor:
        """All plans of this step: float32 (B, samples, K, A) on the CPU, metres from the car."""
        drives, _ = self._memory.now(ids)
        # (B, T, h, w): episodes asked for together have seen equally many frames.
        tokens = torch.stack([torch.stack(list(drive.tokens)) for drive in drives])
        commands = torch.tensor([drive.command for drive in drives], device=self.device)
        draw = self._drawn_noise if self._noise is None else self._noise
        noise = torch.stack([draw(drive.seed, drive.step) for drive in drives]).to(self.device)
        with torch.inference_mode(), autocast(self.device, self.precision):
            plans = self.model.act(
                tokens,
                commands,
                samples=self.samples,
                steps=self.steps,
                clip=self.clip,
                noise=noise,
            )
        return plans.float().cpu()

    def describe(self) -> dict[str, Any]:
        return {
            "policy": "vavam",
            "weights": self.weights,
            "camera": self.camera,
            "context": self.context,
            "horizon": self.model.config.expert.horizon,
            "execute": self.execute,
            "samples": self.samples,
            "choose": self.choose,
            "sampling_steps": self.steps,
            "clip": self.clip,
            "precision": self.precision,
            "device": str(self.device),
        }

    def _commands(self, obs: Observation, rows: int) -> list[int]:
        values = np.asarray(obs.state.get(COMMAND, np.zeros(0)))
        commands = self.model.config.expert.commands
        if values.shape != (rows, 1) or not np.isin(values, np.arange(commands)).all():
            raise UserError(
                f"The policy reads state '{COMMAND}' of shape ({rows}, 1) with whole numbers in "
                f"0..{commands - 1}, found shape {values.shape} with "
                f"{np.unique(values)[:4].tolist()}."
            )
        return [int(value) for value in values[:, 0]]

    def _tokenize(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) -> int64 (B, h, w) on the device."""
        pictures = fit_frames(frames, self.spec.cameras[self.camera]).to(self.device)
        video = to_model_range(pictures)[:, None]  # (B, 1, 3, H, W): one frame of each episode
        with torch.inference_mode():
            tokens = self._tokenizer.encode(video)[:, 0]
        grid = self.model.config.vavim.grid
        if tuple(tokens.shape[1:]) != tuple(grid):
            raise UserError(
                f"The model reads {grid[0]} x {grid[1]} tokens per frame, the tokenizer gives "
                f"{' x '.join(map(str, tokens.shape[1:]))}; use the tokenizer it was trained with."
            )
        return tokens

    def _drawn_noise(self, seed: int, step: int) -> Tensor:
        expert = self.model.config.expert
        return torch.randn(
            self.samples, expert.horizon, expert.action_dim, generator=generator_for(seed, step)
        )


def open_policy(
    path: Path,
    options: DrivingOptions | None = None,
    *,
    execute: int | None = None,
    device: torch.device | str = "cpu",
) -> DrivingPolicy:
    """A policy from a checkpoint folder.

    Args:
        path: checkpoint of a VaVAM. One without a spec, such as a converted one, acts as the
            released models do.
        options: how it drives.
        execute: waypoints to follow before planning again; None: 1.
        device: where to compute.

    Raises:
        UserError: a checkpoint is missing, broken, or does not fit.
    """
    options = options or DrivingOptions()
    checkpoint = load_checkpoint(path, of="vavam")
    tokenizer = tokenizer_of(checkpoint, options.tokenizer, device).tokenizer
    model = build(checkpoint, device)
    assert isinstance(model, VaVAM)
    return DrivingPolicy(
        model,
        tokenizer,
        checkpoint.spec or acting_spec(),
        options,
        execute=1 if execute is None else execute,
        device=device,
        weights=checkpoint.hash,
    )


def fit_frames(frames: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Bring pictures to the tokenizer's size the way the training data came to it.

    The models learned from pictures of `CAMERA_SIZE`, shrunk once; others take that size first, so
    that they are blurred alike. Pictures that have the final size already stay as they are.
    Resizing is bilinear with antialiasing and rounds to uint8 after each step.

    Args:
        frames: uint8 (B, H, W, 3).
        size: (height, width) of the result.

    Returns:
        uint8 (B, 3, height, width), on the CPU.
    """
    x = torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(0, 3, 1, 2)
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    for target in (CAMERA_SIZE, size):
        if tuple(x.shape[-2:]) != tuple(target):
            x = interpolate(
                x, size=tuple(target), mode="bilinear", align_corners=False, antialias=True
            )
    return x


def medoid(plans: Tensor) -> Tensor:
    """The plan closest to all others on average: metres (B, k, K, A) -> its number, int64 (B,)."""
    # (B, k, k): every plan to every other, averaged over waypoints.
    distance = (plans[:, :, None] - plans[:, None]).norm(dim=-1).mean(dim=-1)
    return distance.sum(dim=-1).argmin(dim=1)
