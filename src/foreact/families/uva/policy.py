"""UVA as a policy and as a world model: actions or frames out (arXiv 2503.00200, sec. IV).

Deviations from the reference: latents are the posterior's mean unless the tokenizer says otherwise,
so that acting is reproducible; inputs are never changed in place; video, dynamics and inverse
inference are public calls; the views of both cameras are returned, by name.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.families.uva.asking import ACTION, Asker, TextFeatures, generators_of
from foreact.families.uva.config import UVAConfig, state_offsets
from foreact.families.uva.model import UVA
from foreact.families.uva.sampling import Sample, Sampling
from foreact.families.uva.timing import (
    action_offsets,
    context_offsets,
    frame_stride,
    past_action_offsets,
)
from foreact.policies.memory import History, Memory, generator_for, pictures_of
from foreact.policies.smoothing import Smoothing, smooth
from foreact.tokenizers.images import resize_video
from foreact.tokenizers.kl_vae import KLVAE
from foreact.types import ActionChunk, ActionSpec, Observation, Seen, StreamSpec, to_uint8


@dataclass(frozen=True, kw_only=True)
class UVAOptions:
    """How a UVA acts."""

    temperature: float = 0.95
    """Of sampling; 0 takes the likeliest course."""
    steps: int | str | None = None
    """Sampling steps, such as 20 or ddim20; None: the model's own."""
    guidance: float = 1.0
    """Above 1, imagined video follows the instruction more strongly (two passes per round)."""
    context_stride: int | None = None
    """Steps from one frame of the context to the next; None: as in training."""
    instruction: str | None = None
    """What to do, where the world does not say; needs a model trained with instructions."""
    text_encoder: str | None = None
    """What turns instructions into numbers that training did not have: as it was trained with."""
    smoothing: Smoothing | None = None
    """Smooth planned actions over time: "pose" averages rotations as rotations and leaves grippers
    sharp, "mean" averages every number, as UVA does on its robot."""
    batch_size: int = 16
    """Episodes planned for at once."""
    tokenizer: Path | None = None
    """Checkpoint of its tokenizer where it is not embedded; its hash must be the one trained on."""


class UVAPolicy:
    """UVA with its tokenizer, normaliser and memory; meets `foreact.types.Policy`.

    What is planned for an episode depends on its seed and the step alone, not on how many others
    run beside it; see `asking`.

    Args:
        model: the transformer with its heads.
        tokenizer: the autoencoder whose latents the model was trained on.
        normalizer: statistics of actions and states.
        spec: what the model was trained on; observations must look like it.
        options: how to act; its `tokenizer` is for those who open a checkpoint.
        execute: actions played before planning again, 1..K.
        device: where to compute.
        weights: content hash of the weights, told by `describe`.
        text_features: of instructions, for a model that is told what to do.

    Raises:
        UserError: a setting is impossible, or model, tokenizer and spec are not of one piece.
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
        text_features: TextFeatures | None = None,
    ) -> None:
        config = model.config
        self.action = _require_fit(config, tokenizer, spec)
        _require_options(config, options, execute)
        if config.text_dim is not None and text_features is None:
            raise UserError(
                "The model is told what to do; give the features of its instructions, or an "
                "encoder."
            )
        stride = options.context_stride
        if stride is None:  # as in the paper: the horizon spread evenly over the frames
            stride = frame_stride(config.horizon, config.frames)
        self.spec = spec
        self.cameras = (config.camera, *_second(config.wrist_camera, config.shows_wrist))
        self.foreseen = (config.camera, *_second(config.wrist_camera, config.predicts_wrist))
        self.frames: int = config.frames
        self.horizon: int = config.horizon
        self.context_stride = stride
        self.execute = execute
        self.sampling = Sampling(temperature=options.temperature, steps=options.steps)
        self.guidance, self.instruction = options.guidance, options.instruction
        self.smoothing: Smoothing | None = options.smoothing
        self.device = torch.device(device)
        self.weights = weights
        self.offsets = context_offsets(self.frames, stride)
        self.state_offsets = _state_offsets(config, stride)
        self.action_offsets = action_offsets(config.horizon, first_now=config.first_now)
        self.past_offsets = (
            past_action_offsets(config.horizon, first_now=config.first_now)
            if config.past_actions
            else []
        )
        self.reads_text = config.text_dim is not None
        self.model = model
        self._ask = Asker(
            model,
            tokenizer,
            normalizer,
            spec,
            batch_size=options.batch_size,
            device=self.device,
            text_features=text_features,
        )
        self._memory = Memory(History)

    # --- acting -----------------------------------------------------------------------------------

    def reset(self, seeds: Sequence[int]) -> None:
        self._memory.reset(seeds)

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        episodes = self._memory.episodes(ids)
        sizes = self.spec.cameras
        frames = {c: pictures_of(obs, c, len(episodes), sizes[c]) for c in self.cameras}
        streams = self.model.config.proprioception
        if missing := sorted(set(streams) - set(obs.state)):
            raise UserError(
                f"The policy reads the state '{missing[0]}'; the observation has "
                f"{sorted(obs.state)}."
            )
        if isinstance(obs.text, str):
            raise UserError(
                f"Observation.text is a list, one text per episode, found '{obs.text}'; put it "
                "into a list."
            )
        reach = -min([*self.offsets, *self.state_offsets, *self.past_offsets])
        for i, episode in enumerate(episodes):
            episode.text = self.instruction or (None if obs.text is None else obs.text[i])
            episode.add(
                {camera: pictures[i] for camera, pictures in frames.items()},
                {name: obs.state[name][i] for name in streams},
                reach=reach,
            )

    def act(self, ids: Sequence[int] | None = None) -> ActionChunk:
        began = time.perf_counter()
        episodes, step = self._memory.now(ids)
        self._encode_missing(episodes)
        latents = {
            camera: torch.stack(
                [
                    torch.stack([e.latents[s][camera] for s in e.steps(self.offsets)])
                    for e in episodes
                ]
            )  # (B, F, c, h, w)
            for camera in self.cameras
        }
        rngs = [generator_for(e.seed, step) for e in episodes]
        question = self._ask.question("policy", self._seen(episodes), latents)
        actions = self._ask.actions(question, self.sampling, rngs)
        if self.smoothing is not None:
            actions = smooth(actions, self.smoothing)
        first = step + self.action_offsets[0]
        for episode, planned in zip(episodes, actions, strict=True):
            episode.actions |= {first + i: planned[i] for i in range(self.execute)}
        return ActionChunk(actions, self.execute, first, (time.perf_counter() - began) * 1e3)

    def describe(self) -> dict[str, Any]:
        return {
            "policy": "uva",
            "weights": self.weights,
            "cameras": list(self.cameras),
            "context": self.frames,
            "context_stride": self.context_stride,
            "horizon": self.horizon,
            "execute": self.execute,
            "temperature": self.sampling.temperature,
            "sampling_steps": self.sampling.steps,
            "instruction": self.instruction,
            "smoothing": self.smoothing,
            "batch_size": self._ask.batch_size,
            "device": str(self.device),
        }

    def _seen(self, episodes: Sequence[History]) -> Seen:
        """What the episodes know now, frames apart."""
        nothing = np.full(self.action.dim, np.nan, np.float32)
        past = [
            [e.actions.get(e.step + offset, nothing) for offset in self.past_offsets]
            for e in episodes
        ]
        texts = [e.text for e in episodes if e.text is not None]
        return Seen(
            frames={},
            state={
                name: np.stack(
                    [[e.states[s][name] for s in e.steps(self.state_offsets)] for e in episodes]
                )
                for name in self.model.config.proprioception
            },
            past_actions=np.array(past, np.float32) if self.past_offsets else None,
            text=texts if len(texts) == len(episodes) else None,
        )

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
        for number, camera in enumerate(self.cameras):
            frames = np.stack([e.frames[s][camera] for e, s in missing])[:, None]
            rngs = [generator_for(e.seed, s, 1 + number) for e, s in missing]
            latents = self._ask.encode(frames, rngs)
            for (episode, step), latent in zip(missing, latents[:, 0], strict=True):
                episode.latents.setdefault(step, {})[camera] = latent

    # --- the three other questions: video, dynamics, inverse --------------------------------------

    def predict_video(
        self, seen: Seen, *, rng: torch.Generator, iterations: int = 1
    ) -> dict[str, np.ndarray]:
        """Imagine what comes next.

        Args:
            seen: frames of `cameras` at `offsets`, and what else the model reads: states at
                `state_offsets` (none at all: the middle of what training saw; the answer is the
                better, the truer they are), past actions at `past_offsets`, instructions.
            rng: row i's draws depend on it and on i, not on the number of rows.
            iterations: rounds of unmasking; 1 predicts every token at once.

        Returns:
            camera -> uint8 (B, F, H, W, 3), for `foreseen`, in the size of the frames seen: the
            frames 1, 2, ... F strides after now.
        """
        return self._imagine("video", seen, None, rng, iterations)

    def predict_dynamics(
        self, seen: Seen, actions: np.ndarray, *, rng: torch.Generator, iterations: int = 1
    ) -> dict[str, np.ndarray]:
        """Imagine what follows from given actions; else as `predict_video`.

        Args:
            actions: float (B, K, A) in the units of the spec, at `action_offsets`.
        """
        actions = np.asarray(actions, dtype=np.float32)
        expected = (len(seen), self.horizon, self.action.dim)
        if actions.shape != expected or not np.isfinite(actions).all():
            raise UserError(
                f"Actions should be finite numbers of shape {expected}, found shape "
                f"{actions.shape}."
            )
        normalised = self._ask.normalizer.encode(torch.from_numpy(actions), ACTION).float()
        return self._imagine("dynamics", seen, normalised, rng, iterations)

    def predict_inverse(
        self, seen: Seen, future: Mapping[str, np.ndarray], *, rng: torch.Generator
    ) -> np.ndarray:
        """The actions that lead through `future`.

        Args:
            seen: as in `predict_video`. The released models hide its frames from this question.
            future: camera -> uint8 (B, F, H, W, 3), for `foreseen`: the frames 1, 2, ... F strides
                after now.
            rng: as in `predict_video`.

        Returns:
            float32 (B, K, A) in the units of the spec.
        """
        self._check_frames("frames", seen.frames, self.cameras)
        self._check_frames("future", future, self.foreseen)
        if len({len(seen), *map(len, future.values())}) != 1:
            raise UserError(
                f"There are {len(seen)} contexts and {len(future[self.cameras[0]])} futures; give "
                "one future per context."
            )
        rngs = generators_of(rng, len(seen))
        latents = {camera: self._ask.encode(seen.frames[camera], rngs) for camera in self.cameras}
        ahead = {camera: self._ask.encode(future[camera], rngs) for camera in self.foreseen}
        question = replace(
            self._ask.question("inverse", seen, latents),
            future=ahead[self.foreseen[0]],
            wrist_future=ahead[self.foreseen[1]] if len(self.foreseen) > 1 else None,
        )
        return self._ask.actions(question, self.sampling, rngs)

    def predict_modalities(self, seen: Seen, *, rng: torch.Generator) -> dict[str, np.ndarray]:
        """What the model's further senses, its `modalities`, will tell if it acts as it would.

        Args:
            seen, rng: as in `predict_video`.

        Returns:
            stream -> float32 (B, K, S), the steps 1..K after now, in the units of the data.
        """
        dims = self.model.config.modalities
        if not dims:
            raise UserError(
                "The model foresees no modality; train one with --model.modalities STREAM N."
            )
        self._check_frames("frames", seen.frames, self.cameras)
        rngs = generators_of(rng, len(seen))
        latents = {camera: self._ask.encode(seen.frames[camera], rngs) for camera in self.cameras}
        question = self._ask.question("policy", seen, latents)

        def values(sample: Sample) -> Tensor:
            return torch.cat(list(sample.modalities.values()), dim=-1)

        sampling = replace(self.sampling, modalities=True)
        parts = (
            self._ask.answers(question, sampling, rngs, values).cpu().split([*dims.values()], -1)
        )
        return {
            stream: self._ask.in_units(part, stream)
            for stream, part in zip(dims, parts, strict=True)
        }

    def _imagine(
        self, mode: str, seen: Seen, actions: Tensor | None, rng: torch.Generator, iterations: int
    ) -> dict[str, np.ndarray]:
        self._check_frames("frames", seen.frames, self.cameras)
        rngs = generators_of(rng, len(seen))
        latents = {camera: self._ask.encode(seen.frames[camera], rngs) for camera in self.cameras}
        question = self._ask.question(mode, seen, latents, actions)
        sizes = {camera: seen.frames[camera].shape[2:4] for camera in self.cameras}
        # A camera that is foreseen and not watched has the size of the data.
        sizes = {camera: sizes.get(camera, self.spec.cameras[camera]) for camera in self.foreseen}

        def pictures(sample: Sample) -> Tensor:
            assert sample.latents is not None
            videos = []
            for camera in self.foreseen:
                video = self._ask.tokenizer.decode(sample.latents[camera])
                videos.append(to_uint8(resize_video(video, sizes[camera])).flatten(1))
            return torch.cat(videos, dim=1)  # sizes differ between cameras

        sampling = replace(self.sampling, iterations=iterations, guidance=self.guidance)
        flat = self._ask.answers(question, sampling, rngs, pictures).cpu()
        shapes = {camera: (self.frames, 3, *size) for camera, size in sizes.items()}
        parts = flat.split([int(np.prod(shape)) for shape in shapes.values()], dim=1)
        return {
            camera: part.unflatten(1, shape).permute(0, 1, 3, 4, 2).numpy()
            for (camera, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def _check_frames(
        self, label: str, frames: Mapping[str, np.ndarray], cameras: Sequence[str]
    ) -> None:
        for camera in cameras:
            if camera not in frames:
                raise UserError(
                    f"'{label}' should have the cameras {list(cameras)}, found {sorted(frames)}."
                )
            pictures = frames[camera]
            fits = pictures.dtype == np.uint8 and pictures.ndim == 5
            if not fits or pictures.shape[1::3] != (self.frames, 3):
                raise UserError(
                    f"'{label}' of '{camera}' should be uint8 (B, {self.frames}, H, W, 3), found "
                    f"{pictures.dtype} {pictures.shape}; give {self.frames} RGB frames, "
                    f"{self.context_stride} steps apart."
                )
            if len(pictures) == 0:
                raise UserError(f"'{label}' holds no row; give at least one window.")


def _second(camera: str | None, is_used: bool) -> tuple[str, ...]:
    return (camera,) if camera is not None and is_used else ()


def _state_offsets(config: UVAConfig, stride: int) -> list[int]:
    if not config.proprioception:
        return []
    # Trained at the times of the frames, states are read at those times.
    return (
        context_offsets(config.frames, stride) if config.uneven_context else state_offsets(config)
    )


def _require_options(config: UVAConfig, options: UVAOptions, execute: int) -> None:
    if not 1 <= execute <= config.horizon:
        raise UserError(
            f"--execute is {execute}; the model plans {config.horizon} actions, "
            "choose 1 to that many."
        )
    stride, batch_size, steps = options.context_stride, options.batch_size, options.steps
    if (stride is not None and stride < 1) or batch_size < 1:
        raise UserError(
            f"--context-stride ({stride}) and --batch-size ({batch_size}) must be at least 1."
        )
    if steps is not None and config.predict_video:
        config.check_sampling_steps("video", str(steps))
    if steps is not None and config.predict_action:
        config.check_sampling_steps("action", str(steps))
    if options.instruction is not None and config.text_dim is None:
        raise UserError(
            "The model was trained without instructions, so --instruction has no effect; leave it "
            "out."
        )
    mode = "video" if config.predict_video else "policy"
    Sampling(temperature=options.temperature, guidance=options.guidance).check(mode, config)


def _require_fit(config: UVAConfig, tokenizer: KLVAE, spec: StreamSpec) -> ActionSpec:
    """The action spec, once model, tokenizer and spec are known to be of one piece."""
    if spec.action is None or spec.action.dim != config.action_dim:
        found = "no actions" if spec.action is None else f"{spec.action.dim} action dims"
        raise UserError(
            f"The model plans {config.action_dim} action dims, the spec has {found}; they must be "
            "of one task."
        )
    for camera in config.views.values():
        if camera not in spec.cameras:
            raise UserError(
                f"The model watches camera '{camera}'; the spec knows {sorted(spec.cameras)}."
            )
    expected = (config.latent_channels, *config.grid)
    found = (tokenizer.config.latent_channels, *tokenizer.grid)
    if found != expected:
        raise UserError(
            f"The model reads latents of shape {expected}, the tokenizer gives {found}; use the "
            "tokenizer it was trained with."
        )
    return spec.action
