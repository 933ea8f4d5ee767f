"""UVA, the Unified Video Action model (arXiv 2503.00200): one transformer, a video head and an action head.

Deviations from the reference: every size comes from the config; a step trains only the heads of its mode; actions are
drawn once, after the last round of unmasking; guidance works and uses the learned empty instruction; both cameras are
returned; in training the video heads compute the masked tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.families.uva.config import MODES, UVAConfig, uva_config
from foreact.families.uva.draws import (
    Draws,
    HeadDraw,
    first_places,
    mask_ratio,
    masked_places,
    pick_mode,
    take,
    token_mask,
)
from foreact.families.uva.heads import READOUTS, ActionHead, Denoiser, Objective, VideoHead
from foreact.families.uva.sampling import GeneratorNoise, Noise, Sample, draw_sample
from foreact.families.uva.transformer import Shown, UVATransformer
from foreact.nn.diffusion import GaussianDiffusion
from foreact.nn.flow import FlowMatching
from foreact.types import Batch, LossOut

__all__ = ["MODES", "UVA", "Draws", "Sample", "UVAConfig", "uva_config"]


class UVA(nn.Module):
    """Video and actions of the near future, from the near past.

    Args:
        config: sizes and options. Weights are initialised from torch's global generator.
    """

    def __init__(self, config: UVAConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = UVATransformer(config)
        self.heads: Mapping[str, Any] = nn.ModuleDict(self._heads())  # pyright: ignore[reportAttributeAccessIssue]

    def _heads(self) -> dict[str, nn.Module]:
        c = self.config

        def objective(steps: int) -> Objective:
            return GaussianDiffusion(steps) if c.head == "diffusion" else FlowMatching(c.flow_time, c.flow_solver)

        def denoiser(channels: int, outputs: int, width: int, depth: int) -> Denoiser:
            return Denoiser(channels, outputs, c.decoder_width, width=width, depth=depth, checkpointing=c.checkpointing)

        def video() -> VideoHead:
            aim = objective(c.video_diffusion_steps)
            channels = c.token_channels
            return VideoHead(denoiser(channels, channels * aim.outputs, c.video_head_width, c.video_head_depth), aim)

        def vectors(channels: int) -> ActionHead:
            aim = objective(c.action_diffusion_steps)
            readout = READOUTS[c.readout](c.decoder_width, c.frames, c.token_grid, c.horizon)
            outputs = channels * aim.outputs
            return ActionHead(readout, denoiser(channels, outputs, c.action_head_width, c.action_head_depth), aim)

        heads: dict[str, nn.Module] = {}
        if c.predict_video:
            heads["video"] = video()
            if c.predicts_wrist:
                heads["wrist"] = video()
        if c.predict_action:
            heads["action"] = vectors(c.action_dim)
        if c.proprioception_prediction:
            heads["proprioception"] = vectors(sum(c.proprioception_prediction.values()))
        return heads

    @property
    def device(self) -> torch.device:
        return self.transformer.join.weight.device

    # --- training ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """One training step's loss, with everything random drawn from `rng`; see `draw` and `loss`."""
        return self.loss(batch, self.draw(batch, rng))

    def draw(self, batch: Batch, rng: torch.Generator, *, mode: str | None = None) -> Draws:
        """Draw everything random of one training step.

        Args:
            batch: only its length matters.
            rng: generator on any device.
            mode: the question; None draws it by the config's weights. The other draws are the same either way.

        Returns:
            Draws on the model's device.
        """
        c, rows = self.config, len(batch)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=rng, device=rng.device)

        which, level = uniform(2).tolist()
        mode = pick_mode(which, c.modes) if mode is None else mode
        order = uniform(rows, c.frame_tokens).argsort(dim=1)
        masked = masked_places(mask_ratio(level, c.mask_ratio_min), c.frame_tokens)
        past = (uniform(rows, c.horizon) <= c.past_action_keep).to(self.device) if c.past_actions else None
        text = (uniform(rows) >= c.text_drop).to(self.device) if c.text_dim is not None else None
        draws: dict[str, HeadDraw] = {}
        for name in self.heads_of(mode):
            n = masked * c.frames if name in ("video", "wrist") else c.horizon
            channels = self.heads[name].denoiser.input.in_features
            t = self.heads[name].objective.draw_time((rows, n), rng)
            noise = torch.randn(rows, n, channels, generator=rng, device=rng.device)
            draws[name] = HeadDraw(t=t.to(self.device), noise=noise.to(self.device))
        return Draws(
            mode=mode, order=order.to(self.device), masked=masked, past_keep=past, text_keep=text, heads=draws
        )  # fmt: skip

    def heads_of(self, mode: str) -> list[str]:
        """The heads that a mode trains, in order."""
        asked = {
            "video": MODES[mode].video,
            "wrist": MODES[mode].video,
            "action": MODES[mode].action,
            "proprioception": True,
        }
        return [name for name in self.heads if asked[name]]

    def loss(self, batch: Batch, draws: Draws) -> LossOut:
        """Sum of the losses of the mode's heads, each a mean over what it predicts.

        Args:
            batch: `latents[camera]` (B, 2F, c, h, w), context then future, for each camera of the config; `actions`
                (B, K, A); and what else the config asks for: `past_actions` (B, K, A), `text` (B, L), `state[stream]`
                (B, P, S), or (B, P + K, S) with its future where that is predicted. `valid` of the cameras, of
                "action" and of predicted states leaves padded steps out of the losses.
            draws: what `draw` gave.

        Raises:
            UserError: the batch lacks something or has another shape.
        """
        c, mode = self.config, MODES[draws.mode]
        views = {"video": c.camera}
        if c.wrist_camera is not None:
            views["wrist"] = c.wrist_camera
        past, future = {}, {}
        for view, camera in views.items():
            latents = _entry(batch.latents, camera, "latents")
            self._require(latents, (len(batch), 2 * c.frames, c.latent_channels, *c.grid), f"latents of '{camera}'")
            past[view], future[view] = (self.patchify(x) for x in latents.split(c.frames, dim=1))
        if mode.actions or mode.action:
            self._require(batch.actions, (len(batch), c.horizon, c.action_dim), "actions")
        targets: dict[str, tuple[Tensor, Tensor | None]] = {}  # (values, whether each row counts)
        tokens = first_places(draws.order, 0, draws.masked, c.frames, c.frame_tokens)
        for name in self.heads_of(draws.mode):
            if name == "action":
                assert batch.actions is not None
                targets[name] = batch.actions, batch.valid.get("action")
            elif name == "proprioception":
                targets[name] = self._future_state(batch)
            else:
                targets[name] = take(future[name], tokens), self._valid_tokens(batch.valid.get(views[name]), tokens)

        shown = self._shown(
            draws.mode,
            context=past["video"],
            future=future["video"],
            actions=batch.actions,
            text=batch.text,
            past_actions=batch.past_actions,
            proprioception=batch.state,
            wrist_context=past.get("wrist"),
            wrist_future=future.get("wrist"),
            hidden=token_mask(tokens, c.tokens),
            past_keep=draws.past_keep,
            text_keep=draws.text_keep,
        )
        features = self.transformer(shown)
        losses = {}
        for name, (target, valid) in targets.items():
            rows = take(features, tokens) if name in ("video", "wrist") else features
            head_draw = draws.heads[name]
            losses[name] = _mean(self.heads[name].loss(rows, target, head_draw.t, head_draw.noise), valid)
        total = torch.stack(list(losses.values())).sum()
        return LossOut(total, {f"{name}_loss": value.detach() for name, value in losses.items()})

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Weight decay on matrices and kernels; none on biases, norms and (unless configured) embeddings."""
        embeddings = {id(p) for p in self.transformer.parameters(recurse=False)}
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for p in self.parameters():
            decays = p.ndim > 1 and (self.config.decay_embeddings or id(p) not in embeddings)
            groups[decays].append(p)
        return [
            {"params": groups[True], "lr": lr, "weight_decay": weight_decay},
            {"params": groups[False], "lr": lr, "weight_decay": 0.0},
        ]

    # --- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        context: Tensor,
        *,
        mode: str,
        rng: torch.Generator | Sequence[torch.Generator] | Noise,
        actions: Tensor | None = None,
        future: Tensor | None = None,
        text: Tensor | None = None,
        past_actions: Tensor | None = None,
        proprioception: Mapping[str, Tensor] | None = None,
        wrist_context: Tensor | None = None,
        wrist_future: Tensor | None = None,
        iterations: int = 1,
        temperature: float = 0.95,
        guidance: float = 1.0,
        steps: int | str | None = None,
    ) -> Sample:
        """Answer one of the five questions. Put the module in eval mode first, or dropout stays active.

        Args:
            context: float (B, F, c, h, w), latents of the past frames ("inverse" hides them).
            mode: a key of `MODES`.
            rng: one generator; or one per row, so that no row's draws depend on the others; or recorded draws.
            actions: (B, K, A), normalised; for "dynamics".
            future: (B, F, c, h, w), latents of the future frames; for "inverse".
            text: (B, L), features of the instruction, if the model takes one.
            past_actions: (B, K, A), normalised, if the model takes them; None before the first action.
            proprioception: stream -> (B, P, S), normalised, if the model takes any.
            wrist_context, wrist_future: as `context` and `future`, for the second camera, if the model has one.
            iterations: rounds of unmasking of a foreseen video, 1..h w; more rounds make its tokens fit each other.
            temperature: scale of the heads' sampling noise, at least 0.
            guidance: 1 for none; above 1, video follows the instruction more strongly (two passes per round).
            steps: sampling steps of the heads; None for the config's.

        Returns:
            Foreseen latents and actions, as the mode has them.

        Raises:
            UserError: an input is missing, has a wrong shape, or has no meaning in this mode or model.
        """
        c = self.config
        if mode not in MODES:
            raise UserError(f"UVA has no mode {mode!r}; the modes are {', '.join(MODES)}.")
        asked = MODES[mode]
        if (asked.video and not c.predict_video) or (asked.action and not c.predict_action):
            raise UserError(f"This UVA was built without the head that mode '{mode}' needs; choose another mode.")
        inverse = asked.future == "visible"
        for name, given, wanted in (
            ("actions", actions, asked.actions),
            ("future", future, inverse),
            ("wrist_future", wrist_future, inverse and c.predicts_wrist),
            ("wrist_context", wrist_context, c.shows_wrist),
            ("text", text, c.text_dim is not None),
            ("proprioception", proprioception or None, bool(c.proprioception)),
        ):
            if wanted != (given is not None):
                takes, do = ("", "give it") if wanted else ("no ", "leave it out")
                raise UserError(f"Mode '{mode}' of this UVA takes {takes}`{name}`; {do}.")
        if past_actions is not None and not c.past_actions:
            raise UserError(f"Mode '{mode}' of this UVA takes no `past_actions`; leave it out.")
        if not asked.video and (iterations != 1 or guidance != 1.0):
            raise UserError(f"Mode '{mode}' foresees no video, so iterations and guidance should be 1.")
        if not 1 <= iterations <= c.frame_tokens:
            raise UserError(f"iterations should lie in 1..{c.frame_tokens}, found {iterations}.")
        if guidance != 1.0 and c.text_dim is None:
            raise UserError("This UVA takes no instruction that guidance could strengthen; set guidance to 1.")
        if not temperature >= 0.0:
            raise UserError(f"temperature should be at least 0, found {temperature}.")
        if steps is not None:
            for head in ("video", "action"):
                if getattr(asked, head):
                    c.check_sampling_steps(head, str(steps))
        rows, images = context.shape[0], (c.frames, c.latent_channels, *c.grid)
        for name, given in (
            ("context", context),
            ("future", future),
            ("wrist_context", wrist_context),
            ("wrist_future", wrist_future),
        ):
            if given is not None:
                self._require(given, (rows, *images), name)
        if actions is not None:
            self._require(actions, (rows, c.horizon, c.action_dim), "actions")

        def tokens(latents: Tensor | None) -> Tensor | None:
            return None if latents is None else self.patchify(latents)

        shown = self._shown(
            mode,
            context=self.patchify(context),
            future=tokens(future),
            actions=actions,
            text=text,
            past_actions=past_actions,
            proprioception=proprioception or {},
            wrist_context=tokens(wrist_context),
            wrist_future=tokens(wrist_future),
        )
        noise: Any = rng
        if isinstance(rng, torch.Generator | list | tuple):
            noise = GeneratorNoise(rng, rows, self.device)
        return draw_sample(
            self,
            shown,
            noise,
            mode=mode,
            actions=asked.action,
            iterations=iterations,
            temperature=temperature,
            guidance=guidance,
            video_steps=c.video_sampling_steps if steps is None else str(steps),
            action_steps=c.action_sampling_steps if steps is None else str(steps),
        )

    # --- tokens --------------------------------------------------------------------------------------------------

    def patchify(self, latents: Tensor) -> Tensor:
        """(B, F, c, h, w) -> (B, N, d): frames, then rows, then columns; channels before places inside a patch."""
        p = self.config.patch
        x = latents.unflatten(4, (-1, p)).unflatten(3, (-1, p))  # B F c h p w q
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Inverse of `patchify`."""
        c, (h, w), p = self.config, self.config.token_grid, self.config.patch
        x = tokens.unflatten(2, (c.latent_channels, p, p)).unflatten(1, (c.frames, h, w))  # B F h w c p q
        return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)

    def _shown(
        self,
        mode: str,
        *,
        context: Tensor,
        future: Tensor | None,
        actions: Tensor | None,
        text: Tensor | None,
        past_actions: Tensor | None,
        proprioception: Mapping[str, Tensor],
        wrist_context: Tensor | None,
        wrist_future: Tensor | None,
        hidden: Tensor | None = None,
        past_keep: Tensor | None = None,
        text_keep: Tensor | None = None,
    ) -> Shown:
        """What the mode lets the transformer see of all that is known."""
        c, asked, rows = self.config, MODES[mode], context.shape[0]
        if c.text_dim is not None:
            self._require(text, (rows, c.text_dim), "text features")
        if past_actions is not None and c.past_actions:
            self._require(past_actions, (rows, c.horizon, c.action_dim), "past actions")
        states = []
        for stream, dim in c.proprioception.items():
            state = _entry(proprioception, stream, "state")[:, : c.proprioception_steps, :dim]
            self._require(state, (rows, c.proprioception_steps, dim), f"state '{stream}'")
            states.append(state)
        visible = asked.future != "hidden"
        return Shown(
            context=context if asked.context else None,
            future=future if visible else None,
            hidden=hidden if asked.future == "masked" else None,
            actions=actions if asked.actions else None,
            past_actions=past_actions if c.past_actions else None,
            past_keep=past_keep,
            text=text if c.text_dim is not None else None,
            text_keep=text_keep,
            wrist_context=wrist_context if c.shows_wrist else None,
            wrist_future=wrist_future if visible and c.predicts_wrist else None,
            proprioception=torch.cat(states, dim=-1) if states else None,
        )

    def _future_state(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        c = self.config
        values, valid = [], None
        for stream, dim in c.proprioception_prediction.items():
            state = _entry(batch.state, stream, "state")[..., :dim]
            past = c.proprioception_steps if c.proprioception else 0
            self._require(state, (len(batch), past + c.horizon, dim), f"state '{stream}'")
            values.append(state[:, -c.horizon :])
            if stream in batch.valid:
                there = batch.valid[stream][:, -c.horizon :]
                valid = there if valid is None else valid & there
        return torch.cat(values, dim=-1), valid

    def _valid_tokens(self, valid: Tensor | None, tokens: Tensor) -> Tensor | None:
        """Whether each of the `tokens` (B, n) lies in a frame inside the episode; valid: bool (B, 2F)."""
        if valid is None:
            return None
        return valid[:, self.config.frames :].gather(1, tokens // self.config.frame_tokens)

    def _require(self, value: Tensor | None, shape: tuple[int, ...], label: str) -> None:
        if value is None:
            raise UserError(
                f"UVA needs {label} of shape {shape}, and there are none; add them to the data or the call."
            )
        if tuple(value.shape) != shape:
            raise UserError(
                f"UVA needs {label} of shape {shape}, found {tuple(value.shape)}; "
                "make the data and the model's config agree."
            )


def _entry(entries: Mapping[str, Tensor], name: str, label: str) -> Tensor:
    if name not in entries:
        raise UserError(
            f"UVA needs the {label} of '{name}', the batch has {sorted(entries)}; add it or change the config."
        )
    return entries[name]


def _mean(loss: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return loss.mean()
    weight = valid.to(loss.dtype)
    return (loss * weight).sum() / weight.sum().clamp(min=1.0)
