"""The policy of a model that maps recent frames to actions, such as a family of yours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foreact.checkpoints.format import build, load_checkpoint
from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.policies.memory import History, Memory, generator_for, pictures_of
from foreact.types import ActionChunk, Observation, StreamSpec

Decide = Callable[[Tensor, dict[str, Tensor], torch.Generator], Tensor]
"""Frames uint8 (T, 3, H, W), {stream: normalised states (T, S)}, rng -> normalised (K, A)."""


class PlainPolicy:
    """Frames in, actions out; meets `foreact.types.Policy`.

    Every episode is decided by itself, so that no plan depends on how many run together.

    Args:
        decide: the model's answer for one episode, in inference mode.
        spec: of the task.
        stats: statistics of the actions, and of the states where there are any.
        camera: which one is watched.
        frames: how many of the newest frames are shown, T; before an episode its first frame stands
            in.
        execute: actions played before planning again.
        device: where `decide` computes.
        facts: what `describe` tells.
    """

    def __init__(
        self,
        decide: Decide,
        spec: StreamSpec,
        stats: Normalizer,
        *,
        camera: str,
        frames: int = 1,
        execute: int = 1,
        device: torch.device | str = "cpu",
        facts: dict[str, Any] | None = None,
    ) -> None:
        if spec.action is None:
            raise UserError(
                "The weights' task has no actions, so they cannot act; name weights "
                "of another task."
            )
        if frames < 1 or execute < 1:
            raise UserError(f"frames ({frames}) and execute ({execute}) must be at least 1.")
        self.spec, self.action, self.decide, self.stats = spec, spec.action, decide, stats
        self.camera, self.frames, self.execute = camera, frames, execute
        self.device, self.facts = torch.device(device), facts or {}
        self._memory = Memory(History)

    def reset(self, seeds: Sequence[int]) -> None:
        self._memory.reset(seeds)

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        episodes = self._memory.episodes(ids)
        pictures = pictures_of(obs, self.camera, len(episodes), self.spec.cameras[self.camera])
        for i, (episode, picture) in enumerate(zip(episodes, pictures, strict=True)):
            states = {name: values[i] for name, values in obs.state.items()}
            episode.add({self.camera: picture}, states, reach=self.frames - 1)

    @torch.inference_mode()
    def act(self, ids: Sequence[int] | None = None) -> ActionChunk:
        began = time.perf_counter()
        episodes, step = self._memory.now(ids)
        actions = np.stack([self._plan(episode) for episode in episodes])
        if self.execute > actions.shape[1]:
            raise UserError(
                f"execute is {self.execute}; the model plans {actions.shape[1]} "
                "actions, choose 1 to that."
            )
        return ActionChunk(actions, self.execute, step, (time.perf_counter() - began) * 1e3)

    def describe(self) -> dict[str, Any]:
        return {
            "context": self.frames,
            "execute": self.execute,
            "device": str(self.device),
            **self.facts,
        }

    def _plan(self, episode: History) -> np.ndarray:
        """float32 (K, A) in the units of the spec, within its bounds."""
        steps = episode.steps(range(1 - self.frames, 1))
        pictures = np.stack([episode.frames[s][self.camera] for s in steps])
        frames = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        states = {}
        for name in episode.states[episode.step]:
            values = torch.from_numpy(np.stack([episode.states[s][name] for s in steps]))
            states[name] = self.stats.encode(values, name).to(self.device)
        rng = generator_for(episode.seed, episode.step)
        planned = self.decide(frames.to(self.device), states, rng)
        actions = np.asarray(self.stats.decode(planned.float().cpu(), "action"), np.float32)
        low = -np.inf if self.action.low is None else np.asarray(self.action.low, np.float32)
        high = np.inf if self.action.high is None else np.asarray(self.action.high, np.float32)
        return np.clip(actions, low, high)


def open_plain(
    path: Path,
    decide: Callable[[Any, Tensor, dict[str, Tensor], torch.Generator], Tensor],
    *,
    camera: str,
    frames: int = 1,
    execute: int = 1,
    device: torch.device | str = "cpu",
) -> PlainPolicy:
    """The policy of a checkpoint that `foreact.runs.plain.train_plain` wrote.

    Args:
        path: the checkpoint folder.
        decide: the module, then what `Decide` takes -> normalised actions (K, A).
        camera, frames, execute, device: see `PlainPolicy`.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.spec is None or checkpoint.stats is None:
        raise UserError(
            f"{path} has no spec or no statistics, so it cannot act; export it again with its task."
        )
    model: nn.Module = build(checkpoint, device)

    def of_model(pictures: Tensor, states: dict[str, Tensor], rng: torch.Generator) -> Tensor:
        return decide(model, pictures, states, rng)

    return PlainPolicy(
        of_model,
        checkpoint.spec,
        checkpoint.stats,
        camera=camera,
        frames=frames,
        execute=execute,
        device=device,
        facts={"policy": checkpoint.family, "weights": checkpoint.hash},
    )
