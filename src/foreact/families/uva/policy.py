"""UVA as a policy and as a world model: actions or frames out (arXiv 2503.00200, sec. IV).

Deviations from the reference: latents are the posterior's mean unless the tokenizer says otherwise,
so that acting is reproducible; inputs are never changed in place; video, dynamics and inverse
inference are public calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.families.uva.config import UVAConfig, state_offsets
from foreact.families.uva.model import UVA
from foreact.families.uva.question import Question
from foreact.families.uva.sampling import Sample, Sampling
from foreact.families.uva.timing import context_offsets, frame_stride
from foreact.policies.memory import History, Memory, generator_for, pictures_of
from foreact.tokenizers.images import prepare, resize_video
from foreact.tokenizers.kl_vae import KLVAE
from foreact.types import ActionChunk, ActionSpec, Observation, StreamSpec, to_uint8

ACTION = "action"
States = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class UVAOptions:
    """How a UVA acts."""

    temperature: float = 0.95
    """Of sampling; 0 takes the likeliest course."""
    steps: int | str | None = None
    """Sampling steps, such as 20 or ddim20; None: the model's own."""
    context_stride: int | None = None
    """Steps from one frame of the context to the next; None: as in training."""
    batch_size: int = 16
    """Episodes planned for at once."""
    tokenizer: Path | None = None
    """Checkpoint of its tokenizer where it is not embedded; its hash must be the one trained on."""


class UVAPolicy:
    """UVA with its tokenizer, normaliser and memory; meets `foreact.types.Policy`.

    Every call of the network has exactly `batch_size` rows (short batches are filled up), and every
    row draws from a generator of its own, seeded by the episode's seed and the step. So what is
    planned for an episode does not depend on how many others run beside it.

    Args:
        model: the transformer with its heads.
        tokenizer: the autoencoder whose latents the model was trained on.
        normalizer: statistics of the action stream.
        spec: what the model was trained on; observations must look like it.
        options: how to act; its `tokenizer` is for those who open a checkpoint.
        execute: actions played before planning again, 1..K.
        device: where to compute.
        weights: content hash of the weights, told by `describe`.

    Raises:
        UserError: a setting is impossible, or the model needs inputs that this policy does not
            gather.
    """

    def __init__(
        self,
        model: UVA,
        tokenizer: KLVAE,
        normalizer: Normalizer,
        spec: StreamSpec,
        options: UVAOptions = UVAOptions(),
        *,
        execute: int = 8,
        device: torch.device | str = "cpu",
        weights: str = "",
    ) -> None:
        config = model.config
        self.action = _require_fit(config, tokenizer, spec)
        if not 1 <= execute <= config.horizon:
            raise UserError(
                f"--execute is {execute}; the model plans {config.horizon} actions, "
                "choose 1 to that many."
            )
        stride, batch_size, steps = options.context_stride, options.batch_size, options.steps
        if stride is None:  # as in the paper: the horizon spread evenly over the frames
            stride = frame_stride(config.horizon, config.frames)
        if stride < 1 or batch_size < 1:
            raise UserError(
                f"--context-stride ({stride}) and --batch-size ({batch_size}) must be at least 1."
            )
        if steps is not None and config.predict_video:
            config.check_sampling_steps("video", str(steps))
        if steps is not None and config.predict_action:
            config.check_sampling_steps("action", str(steps))
        self.spec = spec
        self.camera: str = config.camera
        self.frames: int = config.frames
        self.horizon: int = config.horizon
        self.context_stride = stride
        self.execute = execute
        self.sampling = Sampling(temperature=options.temperature, steps=steps)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.weights = weights
        self.offsets = context_offsets(self.frames, stride)
        self.state_offsets = state_offsets(config) if config.proprioception else []
        self.model = model.to(self.device)
        self._tokenizer = tokenizer.to(self.device)
        self._normalizer = normalizer
        self._memory = Memory(History)

    # --- acting -----------------------------------------------------------------------------------

    def reset(self, seeds: Sequence[int]) -> None:
        self._memory.reset(seeds)

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        episodes = self._memory.episodes(ids)
        frames = pictures_of(obs, self.camera, len(episodes), self.spec.cameras[self.camera])
        streams = self.model.config.proprioception
        if missing := sorted(set(streams) - set(obs.state)):
            raise UserError(
                f"The policy reads the state '{missing[0]}'; the observation has "
                f"{sorted(obs.state)}."
            )
        reach = -min([*self.offsets, *self.state_offsets])
        for i, (episode, frame) in enumerate(zip(episodes, frames, strict=True)):
            episode.add(frame, {name: obs.state[name][i] for name in streams}, reach=reach)

    def act(self, ids: Sequence[int] | None = None) -> ActionChunk:
        began = time.perf_counter()
        episodes, step = self._memory.now(ids)
        self._encode_missing(episodes)
        latents = [torch.stack([e.latents[s] for s in e.steps(self.offsets)]) for e in episodes]
        context = torch.stack(latents)  # (B, F, c, h, w)
        rngs = [generator_for(e.seed, step) for e in episodes]
        state = {
            name: np.stack(
                [[e.states[s][name] for s in e.steps(self.state_offsets)] for e in episodes]
            )
            for name in self.model.config.proprioception
        }
        question = Question(
            mode="policy", context=context, proprioception=self._normalised(state, len(rngs))
        )
        actions = self._actions(question, rngs)
        return ActionChunk(actions, self.execute, step, (time.perf_counter() - began) * 1e3)

    def describe(self) -> dict[str, Any]:
        return {
            "policy": "uva",
            "weights": self.weights,
            "camera": self.camera,
            "context": self.frames,
            "context_stride": self.context_stride,
            "horizon": self.horizon,
            "execute": self.execute,
            "temperature": self.sampling.temperature,
            "sampling_steps": self.sampling.steps,
            "batch_size": self.batch_size,
            "device": str(self.device),
        }

    def _encode_missing(self, episodes: Sequence[History]) -> None:
        """Encode the frames that the context needs and that no earlier plan has encoded."""
        missing = [
            (e, s)
            for e in episodes
            for s in sorted(set(e.steps(self.offsets)))
            if s not in e.latents
        ]
        if not missing:
            return
        frames = torch.from_numpy(np.stack([e.frames[s] for e, s in missing]))[:, None]
        latents = self._encode(frames, [generator_for(e.seed, s, 1) for e, s in missing])
        for (episode, step), latent in zip(missing, latents[:, 0], strict=True):
            episode.latents[step] = latent

    # --- the three other questions: video, dynamics, inverse --------------------------------------

    def predict_video(
        self,
        frames: np.ndarray,
        *,
        rng: torch.Generator,
        state: States | None = None,
        iterations: int = 1,
    ) -> np.ndarray:
        """Imagine what comes next.

        Args:
            frames: uint8 (B, F, H, W, 3), the context, `context_stride` steps apart, the last one
                being now.
            rng: row i's draws depend on it and on i, not on the number of rows.
            state: stream -> (B, P, S) at `state_offsets`, in the environment's units, for a model
                that reads any. None: the middle of what training saw, for who has frames alone;
                the answer is the better, the truer the state.
            iterations: rounds of unmasking; 1 predicts every token at once.

        Returns:
            uint8 (B, F, H, W, 3): the frames 1, 2, ... F strides after now.
        """
        return self._imagine("video", frames, None, state, rng, iterations)

    def predict_dynamics(
        self,
        frames: np.ndarray,
        actions: np.ndarray,
        *,
        rng: torch.Generator,
        state: States | None = None,
        iterations: int = 1,
    ) -> np.ndarray:
        """Imagine what follows from given actions; else as `predict_video`.

        Args:
            actions: float (B, K, A) in the environment's units.
        """
        actions = np.asarray(actions, dtype=np.float32)
        expected = (len(frames), self.horizon, self.action.dim)
        if actions.shape != expected or not np.isfinite(actions).all():
            raise UserError(
                f"Actions should be finite numbers of shape {expected}, found shape "
                f"{actions.shape}."
            )
        normalised = self._normalizer.encode(torch.from_numpy(actions), ACTION).float()
        return self._imagine("dynamics", frames, normalised, state, rng, iterations)

    def predict_inverse(
        self,
        frames: np.ndarray,
        future: np.ndarray,
        *,
        rng: torch.Generator,
        state: States | None = None,
    ) -> np.ndarray:
        """The actions that lead through `future`.

        Args:
            frames: uint8 (B, F, H, W, 3), the context. The released models hide it from this
                question.
            future: uint8 (B, F, H, W, 3), the frames 1, 2, ... F strides after now.
            rng, state: as in `predict_video`.

        Returns:
            float32 (B, K, A) in the environment's units.
        """
        self._check_frames("frames", frames)
        self._check_frames("future", future)
        if len(future) != len(frames):
            raise UserError(
                f"There are {len(frames)} contexts and {len(future)} futures; give "
                "one future per context."
            )
        rngs = _rows_of(rng, len(frames))
        context, ahead = (
            self._encode(torch.from_numpy(np.ascontiguousarray(x)), rngs) for x in (frames, future)
        )
        states = self._normalised(state, len(frames))
        question = Question(mode="inverse", context=context, future=ahead, proprioception=states)
        return self._actions(question, rngs)

    def _imagine(
        self,
        mode: str,
        frames: np.ndarray,
        actions: Tensor | None,
        state: States | None,
        rng: torch.Generator,
        iterations: int,
    ) -> np.ndarray:
        self._check_frames("frames", frames)
        states = self._normalised(state, len(frames))
        rngs = _rows_of(rng, len(frames))
        context = self._encode(torch.from_numpy(np.ascontiguousarray(frames)), rngs)
        question = Question(mode=mode, context=context, actions=actions, proprioception=states)

        def pictures(sample: Sample) -> Tensor:
            assert sample.latents is not None
            video = self._tokenizer.decode(sample.latents[self.camera])
            return to_uint8(resize_video(video, (frames.shape[2], frames.shape[3])))

        sampling = replace(self.sampling, iterations=iterations)
        video = self._answers(question, sampling, rngs, pictures)  # uint8 (B, F, 3, H, W)
        return video.permute(0, 1, 3, 4, 2).cpu().numpy()

    def _normalised(self, state: States | None, rows: int) -> dict[str, Tensor]:
        """stream -> (B, P, dims shown), normalised; of no state, the middle of each range."""
        normalised = {}
        for name, dim in self.model.config.proprioception.items():
            expected = (rows, len(self.state_offsets), len(self.spec.state[name]))
            if state is None:
                normalised[name] = torch.zeros(*expected[:2], dim)
                continue
            values = np.asarray(state.get(name, np.zeros(0)), np.float32)
            if values.shape != expected:
                raise UserError(
                    f"The model reads state '{name}' of shape {expected}, found {values.shape}."
                )
            normalised[name] = self._normalizer.encode(torch.from_numpy(values), name)[..., :dim]
        return normalised

    def _check_frames(self, label: str, frames: np.ndarray) -> None:
        if (
            frames.dtype != np.uint8
            or frames.ndim != 5
            or frames.shape[1] != self.frames
            or frames.shape[4] != 3
        ):
            raise UserError(
                f"'{label}' should be uint8 (B, {self.frames}, H, W, 3), found {frames.dtype} "
                f"{frames.shape}; give {self.frames} RGB frames, {self.context_stride} steps "
                "apart."
            )
        if len(frames) == 0:
            raise UserError(f"'{label}' holds no row; give at least one window.")

    # --- network calls of one size ----------------------------------------------------------------

    def _by_batch(self, rows: int, compute: Callable[[slice], Tensor]) -> Tensor:
        """Concatenate `compute` over slices of `batch_size` rows, without those that fill up."""
        parts = []
        with torch.inference_mode(), _evaluating(self.model, self._tokenizer):
            for start in range(0, rows, self.batch_size):
                stop = min(start + self.batch_size, rows)
                parts.append(compute(slice(start, stop))[: stop - start])
        return torch.cat(parts)

    def _encode(self, frames: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """uint8 (B, T, H, W, 3) -> latents (B, T, c, h, w) on the device."""
        size = self._tokenizer.config.image_size

        def encode(rows: slice) -> Tensor:
            pictures = _filled(frames[rows], self.batch_size).to(self.device)
            video = prepare(pictures.movedim(-1, -3), size)
            if self._tokenizer.config.posterior == "mean":
                return self._tokenizer.encode(video)
            # A sampled posterior draws row by row, each from its own generator; rows that fill up
            # have none and are left out.
            pairs = zip(video, rngs[rows], strict=False)
            return torch.cat([self._tokenizer.encode(row[None], rng=rng) for row, rng in pairs])

        return self._by_batch(len(frames), encode)

    def _answers(
        self,
        question: Question,
        sampling: Sampling,
        rngs: Sequence[torch.Generator],
        result: Callable[[Sample], Tensor],
    ) -> Tensor:
        """`result` of the answer to every row, each drawn from its own generator."""

        def answer(rows: slice) -> Tensor:
            part = question.map(lambda x: _filled(x[rows], self.batch_size).to(self.device))
            filling = self.batch_size - len(rngs[rows])
            idle = [torch.Generator().manual_seed(0) for _ in range(filling)]
            return result(self.model.sample(part, sampling, rng=[*rngs[rows], *idle]))

        return self._by_batch(len(question.context), answer)

    def _actions(self, question: Question, rngs: Sequence[torch.Generator]) -> np.ndarray:
        """Actions of the answer, float32 (B, K, A), in the environment's units and bounds."""

        def normalised(sample: Sample) -> Tensor:
            assert sample.actions is not None
            return sample.actions

        actions = self._answers(question, self.sampling, rngs, normalised)
        decoded = self._normalizer.decode(actions.float().cpu(), ACTION)
        low, high = self.action.low, self.action.high
        return np.clip(
            np.asarray(decoded, dtype=np.float32),
            -np.inf if low is None else np.asarray(low, dtype=np.float32),
            np.inf if high is None else np.asarray(high, dtype=np.float32),
        )


def _require_fit(config: UVAConfig, tokenizer: KLVAE, spec: StreamSpec) -> ActionSpec:
    """The action spec, once model, tokenizer and spec are known to be of one piece."""
    if spec.action is None or spec.action.dim != config.action_dim:
        found = "no actions" if spec.action is None else f"{spec.action.dim} action dims"
        raise UserError(
            f"The model plans {config.action_dim} action dims, the spec has {found}; they must be "
            "of one task."
        )
    if config.camera not in spec.cameras:
        raise UserError(
            f"The model watches camera '{config.camera}'; the spec knows {sorted(spec.cameras)}."
        )
    inputs = {
        "a wrist camera": config.wrist_camera is not None,
        "instructions": config.text_dim is not None,
        "past actions": config.past_actions,
    }
    if extra := [name for name, is_read in inputs.items() if is_read]:
        raise UserError(
            f"The model was trained with {' and '.join(extra)}; this policy shows it one camera, "
            "so use a model that needs no more."
        )
    expected = (config.latent_channels, *config.grid)
    found = (tokenizer.config.latent_channels, *tokenizer.grid)
    if found != expected:
        raise UserError(
            f"The model reads latents of shape {expected}, the tokenizer gives {found}; use the "
            "tokenizer it was trained with."
        )
    return spec.action


def _filled(rows: Tensor, size: int) -> Tensor:
    """Repeat the first row until there are `size` of them."""
    missing = size - len(rows)
    if missing == 0:
        return rows
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])])


def _rows_of(rng: torch.Generator, rows: int) -> list[torch.Generator]:
    """A generator for every row, seeded from `rng` in order."""
    seeds = [int(torch.randint(2**62, (), generator=rng, device=rng.device)) for _ in range(rows)]
    return [generator_for(seed) for seed in seeds]


@contextmanager
def _evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in the mode that it was in."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)
