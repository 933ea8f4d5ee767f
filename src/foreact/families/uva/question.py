"""A question to UVA: its mode and inputs, which it checks and hands to the transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.families.uva.config import MODES, UVAConfig
from foreact.families.uva.tokens import patchify
from foreact.families.uva.transformer import TransformerInputs

TEXT = "text"
"""Entry of `Batch.valid`, (B, 1): whether the sample has an instruction."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, and what is known; all rows are asked the same.

    Attributes:
        mode: a key of `MODES`.
        context: float (B, F, c, h, w), latents of the past frames ("inverse" hides them).
        future: float (B, F, c, h, w), latents of the future frames; for "inverse".
        wrist_context, wrist_future: as `context` and `future`, for the second camera, if the model
            has one.
        actions: float (B, K, A), normalised; for "dynamics".
        action_valid: bool (B,), whose actions are known; None for all.
        past_actions: float (B, K, A), normalised, if the model takes them; None before the first
            action.
        past_valid: bool (B, K), which of them there were; None for all.
        proprioception: stream -> float (B, P, S), normalised, if the model takes any; it reads the
            first steps and dimensions, as many as its config names.
        text: float (B, L), features of the instruction, if the model takes one.
        text_valid: bool (B,), who is told what to do; None for all.
    """

    mode: str
    context: Tensor
    future: Tensor | None = None
    wrist_context: Tensor | None = None
    wrist_future: Tensor | None = None
    actions: Tensor | None = None
    action_valid: Tensor | None = None
    past_actions: Tensor | None = None
    past_valid: Tensor | None = None
    proprioception: Mapping[str, Tensor] = field(default_factory=dict)
    text: Tensor | None = None
    text_valid: Tensor | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> Question:
        """The same question with `f` applied to every tensor."""
        values = {attribute.name: getattr(self, attribute.name) for attribute in fields(self)}
        tensors = {name: f(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(
            self, **tensors, proprioception={k: f(v) for k, v in self.proprioception.items()}
        )

    def check(self, config: UVAConfig) -> None:
        """Raise a `UserError` unless the model can answer and gets exactly the inputs it takes."""
        mode = self.mode
        if mode not in MODES:
            raise UserError(f"UVA has no mode {mode!r}; the modes are {', '.join(MODES)}.")
        asked = MODES[mode]
        if asked.video > config.predict_video or asked.action > config.predict_action:
            raise UserError(
                f"This UVA was built without the head that mode '{mode}' needs; "
                "choose another mode."
            )
        inverse = asked.future == "visible"
        taken = {
            "actions": asked.actions,
            "future": inverse,
            "wrist_future": inverse and config.predicts_wrist,
            "wrist_context": config.shows_wrist,
            "text": config.text_dim is not None,
            "proprioception": bool(config.proprioception),
            "past_actions": config.past_actions and self.past_actions is not None,  # optional
        }
        for name, expected in taken.items():
            value = getattr(self, name)
            if expected != (isinstance(value, Tensor) or bool(value)):
                takes, do = ("", "give it") if expected else ("no ", "leave it out")
                raise UserError(f"Mode '{mode}' of this UVA takes {takes}`{name}`; {do}.")
        self.check_shapes(config)

    def check_shapes(self, config: UVAConfig) -> None:
        """Raise a `UserError` unless all inputs that the model reads are there, in its shapes."""
        c, rows = config, len(self.context)
        for name in ("context", "future", "wrist_context", "wrist_future"):
            if (latents := getattr(self, name)) is not None:
                required(latents, (rows, c.frames, c.latent_channels, *c.grid), name)
        if MODES[self.mode].actions:
            required(self.actions, (rows, c.horizon, c.action_dim), "actions")
        if c.past_actions and self.past_actions is not None:
            required(self.past_actions, (rows, c.horizon, c.action_dim), "past actions")
        if c.text_dim is not None:
            required(self.text, (rows, c.text_dim), "text features")
        for stream, state in self._states(c).items():
            required(
                state, (rows, c.proprioception_steps, c.proprioception[stream]), f"state '{stream}'"
            )

    def inputs(
        self,
        config: UVAConfig,
        *,
        hidden: Tensor | None = None,
        past_keep: Tensor | None = None,
        text_keep: Tensor | None = None,
    ) -> TransformerInputs:
        """Inputs of the transformer: what the mode shows of all that is known.

        Args:
            config: of the model; the question has passed its checks.
            hidden: bool (B, N), which future tokens are masked, in modes that mask some.
            past_keep, text_keep: as in `TransformerInputs`.
        """
        c, mode = config, MODES[self.mode]
        shows_future = mode.future != "hidden"

        def tokens(latents: Tensor | None, shown: bool) -> Tensor | None:
            return patchify(latents, c) if shown and latents is not None else None

        states = list(self._states(c).values())
        return TransformerInputs(
            context=tokens(self.context, mode.context),
            future=tokens(self.future, shows_future),
            hidden=hidden if mode.future == "masked" else None,
            actions=self.actions if mode.actions else None,
            action_keep=self.action_valid,
            past_actions=self.past_actions if c.past_actions else None,
            past_keep=_both(past_keep, self.past_valid),
            text=self.text if c.text_dim is not None else None,
            text_keep=_both(text_keep, self.text_valid),
            wrist_context=tokens(self.wrist_context, c.shows_wrist),
            wrist_future=tokens(self.wrist_future, shows_future and c.predicts_wrist),
            # (B, P, S of all streams)
            proprioception=torch.cat(states, dim=-1) if states else None,
        )

    def _states(self, config: UVAConfig) -> dict[str, Tensor]:
        """stream -> (B, P, dims shown)."""
        steps = config.proprioception_steps
        return {
            stream: entry(self.proprioception, stream, "state")[:, :steps, :dim]
            for stream, dim in config.proprioception.items()
        }


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Where both masks are True; None is True everywhere."""
    return (b if a is None else a) if a is None or b is None else a & b


def required(value: Tensor | None, shape: tuple[int, ...], label: str) -> Tensor:
    """`value`, or a `UserError` unless it is there and has the shape."""
    if value is None:
        raise UserError(
            f"UVA needs {label} of shape {shape}, and there are none; add them to the "
            "data or the call."
        )
    if tuple(value.shape) != shape:
        raise UserError(
            f"UVA needs {label} of shape {shape}, found {tuple(value.shape)}; make the data and "
            "the model's config agree."
        )
    return value


def entry(entries: Mapping[str, Tensor], name: str, label: str) -> Tensor:
    """The entry of that name, or a `UserError`."""
    if name not in entries:
        raise UserError(
            f"UVA needs the {label} of '{name}', the batch has {sorted(entries)}; add it or "
            "change the config."
        )
    return entries[name]
