"""Questions to UVA in the units of the data, answered in calls of one size.

Every call of a network has exactly `batch_size` rows (short batches are filled up), and every row
draws from a generator of its own. So an answer does not depend on what is asked beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.families.uva.config import state_offsets
from foreact.families.uva.model import UVA
from foreact.families.uva.question import Question
from foreact.families.uva.sampling import Sample, Sampling
from foreact.policies.memory import generator_for
from foreact.tokenizers.images import prepare
from foreact.tokenizers.kl_vae import KLVAE
from foreact.types import ActionSpec, Seen, StreamSpec

ACTION = "action"
TextFeatures = Callable[[Sequence[str]], np.ndarray]
"""Instructions -> their features, float32 (B, L)."""


class Asker:
    """A model with all that stands between it and the units of the data.

    Args:
        model: answers.
        tokenizer: pixels to the latents that the model was trained on.
        normalizer: scales actions and states.
        spec: what the model was trained on.
        batch_size: rows of every call.
        text_features: of instructions, for a model that takes them.
    """

    def __init__(
        self,
        model: UVA,
        tokenizer: KLVAE,
        normalizer: Normalizer,
        spec: StreamSpec,
        *,
        batch_size: int,
        device: torch.device,
        text_features: TextFeatures | None,
    ) -> None:
        self.model, self.config = model.to(device), model.config
        self.tokenizer, self.normalizer = tokenizer.to(device), normalizer
        self.spec, self.batch_size, self.device = spec, batch_size, device
        self.text_features = text_features

    def question(
        self, mode: str, seen: Seen, latents: Mapping[str, Tensor], actions: Tensor | None = None
    ) -> Question:
        """The question about what was seen.

        Args:
            mode: a key of `MODES`.
            seen: B moments; its frames are not looked at.
            latents: camera -> (B, F, c, h, w), of the frames.
            actions: (B, K, A), normalised; for "dynamics".
        """
        c = self.config
        past, valid = self._past(seen)
        return Question(
            mode=mode,
            context=latents[c.camera],
            wrist_context=latents[c.wrist_camera] if c.wrist_camera and c.shows_wrist else None,
            actions=actions,
            past_actions=past,
            past_valid=valid,
            proprioception=self._states(seen, len(latents[c.camera])),
            text=self._text(seen),
        )

    def encode(self, frames: np.ndarray, rngs: Sequence[torch.Generator]) -> Tensor:
        """uint8 (B, T, H, W, 3) -> latents (B, T, c, h, w) on the device."""
        pixels, size = torch.from_numpy(np.ascontiguousarray(frames)), self.tokenizer.config

        def part(rows: slice) -> Tensor:
            pictures = _filled(pixels[rows], self.batch_size).to(self.device)
            video = prepare(pictures.movedim(-1, -3), size.image_size)
            if size.posterior == "mean":
                return self.tokenizer.encode(video)
            # A sampled posterior draws row by row, each from its own generator; rows that fill up
            # have none and are left out.
            pairs = zip(video, rngs[rows], strict=False)
            return torch.cat([self.tokenizer.encode(row[None], rng=rng) for row, rng in pairs])

        return self._by_batch(len(frames), part)

    def actions(
        self, question: Question, sampling: Sampling, rngs: Sequence[torch.Generator]
    ) -> np.ndarray:
        """Actions of the answer, float32 (B, K, A), in the units and bounds of the spec."""

        def normalised(sample: Sample) -> Tensor:
            assert sample.actions is not None
            return sample.actions

        drawn = self.answers(question, sampling, rngs, normalised)
        decoded = self.normalizer.decode(drawn.float().cpu(), ACTION)
        return within_bounds(np.asarray(decoded, dtype=np.float32), self.spec.action)

    def answers(
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

    def in_units(self, values: Tensor, stream: str) -> np.ndarray:
        """The first dimensions of a state (..., S), normalised, in the units of the data."""
        whole = values.new_zeros(*values.shape[:-1], len(self.spec.state[stream]))
        whole[..., : values.shape[-1]] = values
        decoded = self.normalizer.decode(whole.float(), stream)[..., : values.shape[-1]]
        return np.asarray(decoded, np.float32)

    def _by_batch(self, rows: int, compute: Callable[[slice], Tensor]) -> Tensor:
        """Concatenate `compute` over slices of `batch_size` rows, without those that fill up."""
        parts = []
        with torch.inference_mode(), _evaluating(self.model, self.tokenizer):
            for start in range(0, rows, self.batch_size):
                stop = min(start + self.batch_size, rows)
                parts.append(compute(slice(start, stop))[: stop - start])
        return torch.cat(parts)

    def _states(self, seen: Seen, rows: int) -> dict[str, Tensor]:
        """stream -> (B, P, dims shown), normalised; of no state, the middle of each range."""
        shown, normalised = self.config.proprioception, {}
        steps = len(state_offsets(self.config)) if shown else 0
        for name, dim in shown.items():
            expected = (rows, steps, len(self.spec.state[name]))
            if not seen.state:
                normalised[name] = torch.zeros(*expected[:2], dim)
                continue
            values = np.asarray(seen.state.get(name, np.zeros(0)), np.float32)
            if values.shape != expected:
                raise UserError(
                    f"The model reads state '{name}' of shape {expected}, found {values.shape}."
                )
            normalised[name] = self.normalizer.encode(torch.from_numpy(values), name)[..., :dim]
        return normalised

    def _past(self, seen: Seen) -> tuple[Tensor | None, Tensor | None]:
        """Past actions (B, K, A), normalised, and which of them there were (B, K)."""
        if not self.config.past_actions or seen.past_actions is None:
            return None, None
        taken = torch.from_numpy(np.asarray(seen.past_actions, np.float32))
        valid = taken.isfinite().all(dim=-1)
        normalised = self.normalizer.encode(taken.nan_to_num(0.0), ACTION)
        return normalised.float(), valid

    def _text(self, seen: Seen) -> Tensor | None:
        if self.config.text_dim is None:
            return None
        if seen.text is None:
            raise UserError(
                "The model is told what to do, and there is no instruction; give one, as with "
                "--instruction."
            )
        if isinstance(seen.text, str):
            raise UserError(
                f"Instructions are a list, one for each row, found the text '{seen.text}'; put it "
                "into a list."
            )
        assert self.text_features is not None
        return torch.from_numpy(self.text_features(seen.text))


def within_bounds(actions: np.ndarray, spec: ActionSpec | None) -> np.ndarray:
    """Actions (..., A), cut to the spec's bounds where it has any."""
    low = None if spec is None else spec.low
    high = None if spec is None else spec.high
    return np.clip(
        actions,
        -np.inf if low is None else np.asarray(low, dtype=np.float32),
        np.inf if high is None else np.asarray(high, dtype=np.float32),
    )


def generators_of(rng: torch.Generator, rows: int) -> list[torch.Generator]:
    """A generator for every row, seeded from `rng` in order."""
    seeds = [int(torch.randint(2**62, (), generator=rng, device=rng.device)) for _ in range(rows)]
    return [generator_for(seed) for seed in seeds]


def _filled(rows: Tensor, size: int) -> Tensor:
    """Repeat the first row until there are `size` of them."""
    missing = size - len(rows)
    if missing == 0:
        return rows
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])])


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
