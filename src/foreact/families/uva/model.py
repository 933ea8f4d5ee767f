"""UVA, the Unified Video Action model (arXiv 2503.00200): a transformer and its heads.

Deviations from the reference: every size comes from the config; a step trains only the heads of its
mode; actions are drawn once, after the last round of unmasking; guidance works and uses the learned
empty instruction; both cameras are returned; in training the video heads compute the masked tokens
only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from foreact.families.uva import timing
from foreact.families.uva.config import MODES, UVAConfig, uva_config
from foreact.families.uva.context import shown_context
from foreact.families.uva.draws import Draws, HeadDraw, mask_ratio, masked_places, pick_mode
from foreact.families.uva.heads import READOUTS, ActionHead, Denoiser, Objective, VideoHead
from foreact.families.uva.question import TEXT, Question, entry, required
from foreact.families.uva.sampling import GeneratorNoise, Noise, Sample, Sampling, draw_sample
from foreact.families.uva.tokens import first_places, patchify, take, token_mask
from foreact.families.uva.transformer import UVATransformer
from foreact.nn.diffusion import GaussianDiffusion
from foreact.nn.flow import FlowMatching
from foreact.types import Batch, LossOut

__all__ = ["MODES", "UVA", "Draws", "Question", "Sample", "Sampling", "UVAConfig", "uva_config"]


class UVA(nn.Module):
    """Video and actions of the near future, from the near past.

    Args:
        config: sizes and options. Weights are initialised from torch's global generator.
    """

    def __init__(self, config: UVAConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = UVATransformer(config)
        # To type checkers, ModuleDict is no Mapping and its modules have no methods of ours.
        self.heads = cast("Mapping[str, Any]", nn.ModuleDict(self._heads()))

    def _heads(self) -> dict[str, nn.Module]:
        c = self.config

        def make_objective(steps: int) -> Objective:
            if c.head == "diffusion":
                return GaussianDiffusion(steps)
            return FlowMatching(c.flow_time, c.flow_solver)

        def denoiser(channels: int, outputs: int, width: int, depth: int) -> Denoiser:
            return Denoiser(
                channels,
                outputs,
                c.decoder_width,
                width=width,
                depth=depth,
                checkpointing=c.checkpointing,
            )

        def video_head() -> VideoHead:
            objective, channels = make_objective(c.video_diffusion_steps), c.token_channels
            outputs = channels * objective.outputs
            network = denoiser(channels, outputs, c.video_head_width, c.video_head_depth)
            return VideoHead(network, objective)

        def vector_head(channels: int) -> ActionHead:
            objective = make_objective(c.action_diffusion_steps)
            readout = READOUTS[c.readout](c.decoder_width, c.frames, c.token_grid, c.horizon)
            outputs = channels * objective.outputs
            network = denoiser(channels, outputs, c.action_head_width, c.action_head_depth)
            return ActionHead(readout, network, objective)

        heads: dict[str, nn.Module] = {}
        if c.predict_video:
            heads["video"] = video_head()
            if c.predicts_wrist:
                heads["wrist"] = video_head()
        if c.predict_action:
            heads["action"] = vector_head(c.action_dim)
        if c.proprioception_prediction:
            heads["proprioception"] = vector_head(sum(c.proprioception_prediction.values()))
        for name, stream in c.modality_heads.items():
            heads[name] = vector_head(c.modalities[stream])
        return heads

    @property
    def device(self) -> torch.device:
        return self.transformer.join.weight.device

    # --- training ---------------------------------------------------------------------------------

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """Loss of one training step, with everything random drawn from `rng`.

        See `draw` and `loss`.
        """
        return self.loss(batch, self.draw(batch, rng))

    def draw(self, batch: Batch, rng: torch.Generator, *, mode: str | None = None) -> Draws:
        """Draw everything random of one training step.

        Args:
            batch: only its length matters.
            rng: generator on any device.
            mode: the question; None draws it by the config's weights. The other draws are the same
                either way.

        Returns:
            Draws on the model's device.
        """
        c, rows = self.config, len(batch)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=rng, device=rng.device)

        # Drawn even where the mode is given, so that the numbers after it are the same.
        mode_level, ratio_level = uniform(2).tolist()
        mode = pick_mode(mode_level, c.modes) if mode is None else mode
        # One permutation per sample, shared by its frames: the same places are masked in all.
        order = uniform(rows, c.frame_tokens).argsort(dim=1)
        masked = masked_places(mask_ratio(ratio_level, c.mask_ratio_min), c.frame_tokens)
        past_keep, text_keep = None, None
        if c.past_actions:
            past_keep = (uniform(rows, c.horizon) <= c.past_action_keep).to(self.device)
        if c.text_dim is not None:
            text_keep = (uniform(rows) >= c.text_drop).to(self.device)
        draws: dict[str, HeadDraw] = {}
        for name in self.heads_of(mode):
            n = masked * c.frames if name in ("video", "wrist") else c.horizon
            channels = self.heads[name].denoiser.input.in_features
            t = self.heads[name].objective.draw_time((rows, n), rng)
            noise = torch.randn(rows, n, channels, generator=rng, device=rng.device)
            draws[name] = HeadDraw(t=t.to(self.device), noise=noise.to(self.device))
        context_steps = None
        if c.uneven_context:
            choices = timing.context_steps(c.frames, c.horizon)
            chosen = (uniform(rows).cpu() * len(choices)).long().clamp(max=len(choices) - 1)
            context_steps = choices[chosen].to(self.device)
        return Draws(
            mode=mode,
            order=order.to(self.device),
            masked=masked,
            past_keep=past_keep,
            text_keep=text_keep,
            context_steps=context_steps,
            heads=draws,
        )

    def heads_of(self, mode: str) -> list[str]:
        """The heads that a mode trains, in order."""
        trained = {
            "video": MODES[mode].video,
            "wrist": MODES[mode].video,
            "action": MODES[mode].action,
        }
        # Heads of states learn from every question.
        return [name for name in self.heads if trained.get(name, True)]

    def loss(self, batch: Batch, draws: Draws) -> LossOut:
        """Sum of the losses of the mode's heads, each a mean over what it predicts.

        Args:
            batch: `latents[camera]` (B, 2F, c, h, w), context then future, for each camera of the
                config; `actions` (B, K, A); and what else the config asks for: `past_actions` (B,
                K, A), `text` (B, L), `state[stream]` (B, P, S), or (B, P + K, S) with its future
                where that is predicted. With an uneven context the K past steps stand in the place
                of the F frames and of the P states. `valid` of the cameras, of "action" and of
                predicted states leaves padded steps out of the losses, that of "past_action" hides
                them.
            draws: what `draw` gave.

        Raises:
            UserError: the batch lacks something or has another shape.
        """
        c, views = self.config, {}
        if draws.context_steps is not None:
            batch = shown_context(batch, draws.context_steps, c)
        shape = (len(batch), 2 * c.frames, c.latent_channels, *c.grid)
        for view, camera in c.views.items():
            latents = entry(batch.latents, camera, "latents")
            required(latents, shape, f"latents of '{camera}'")
            views[view] = latents.split(c.frames, dim=1)  # context, future
        context, future = views["video"]
        wrist_context, wrist_future = views.get("wrist", (None, None))
        question = Question(
            mode=draws.mode,
            context=context,
            future=future,
            wrist_context=wrist_context,
            wrist_future=wrist_future,
            actions=batch.actions,
            past_actions=batch.past_actions,
            past_valid=batch.valid.get("past_action"),
            proprioception=batch.state,
            text=batch.text,
            action_valid=_known(batch, "action"),
            text_valid=_known(batch, TEXT),
        )
        question.check_shapes(c)
        # (B, n), the masked tokens
        tokens = first_places(draws.order, 0, draws.masked, c.frames, c.frame_tokens)
        targets = {name: self._target(name, batch, tokens) for name in self.heads_of(draws.mode)}
        hidden = token_mask(tokens, c.tokens)
        inputs = question.inputs(
            c, hidden=hidden, past_keep=draws.past_keep, text_keep=draws.text_keep
        )
        features = self.transformer(inputs)  # (B, N, D)
        losses = {}
        for name, (target, valid) in targets.items():
            # Video heads learn the masked tokens only; the others read out all of them.
            rows = take(features, tokens) if name in c.views else features
            t, noise = draws.heads[name].t, draws.heads[name].noise
            losses[name] = _mean(self.heads[name].loss(rows, target, t, noise), valid)
        total = torch.stack(list(losses.values())).sum()
        return LossOut(total, {f"{name}_loss": value.detach() for name, value in losses.items()})

    def _target(self, head: str, batch: Batch, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Target of a head, float (B, n, C), and the rows that count, bool (B, n) or None for all.

        Args:
            head: name.
            batch: as in `loss`.
            tokens: int64 (B, n), the masked tokens.
        """
        c = self.config
        if head == "proprioception":
            return self._future_state(batch, c.proprioception_prediction)
        if (stream := c.modality_heads.get(head)) is not None:
            return self._future_state(batch, {stream: c.modalities[stream]})
        if head == "action":
            actions = required(batch.actions, (len(batch), c.horizon, c.action_dim), "actions")
            return actions, batch.valid.get("action")
        camera = c.views[head]
        target = take(patchify(batch.latents[camera][:, c.frames :], c), tokens)
        if camera not in batch.valid:
            return target, None
        frame = tokens // c.frame_tokens  # of each token
        return target, batch.valid[camera][:, c.frames :].gather(1, frame)

    def _future_state(
        self, batch: Batch, streams: Mapping[str, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Future states (B, K, S of all streams), and the steps valid in all of them (B, K)."""
        c = self.config
        values, valid = [], None
        for stream, dim in streams.items():
            state = entry(batch.state, stream, "state")[..., :dim]
            past = c.proprioception_steps if c.proprioception else 0
            required(state, (len(batch), past + c.horizon, dim), f"state '{stream}'")
            values.append(state[:, -c.horizon :])
            if stream in batch.valid:
                stream_valid = batch.valid[stream][:, -c.horizon :]
                valid = stream_valid if valid is None else valid & stream_valid
        return torch.cat(values, dim=-1), valid

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Weight decay on matrices and kernels, not on biases, norms and embeddings.

        The config's `decay_embeddings` adds the embeddings.
        """
        # Parameters directly in the transformer are learned vectors and position embeddings.
        embeddings = {id(p) for p in self.transformer.parameters(recurse=False)}
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for p in self.parameters():
            decays = p.ndim > 1 and (self.config.decay_embeddings or id(p) not in embeddings)
            groups[decays].append(p)
        return [
            {"params": groups[True], "lr": lr, "weight_decay": weight_decay},
            {"params": groups[False], "lr": lr, "weight_decay": 0.0},
        ]

    # --- inference --------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        question: Question,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        *,
        rng: torch.Generator | Sequence[torch.Generator] | Noise,
    ) -> Sample:
        """Answer one of the five questions.

        Put the module in eval mode first, or dropout stays active.

        Args:
            question: what is asked, and what is known.
            sampling: how the answer is drawn.
            rng: one generator; or one per row, so that no row's draws depend on the others; or
                recorded draws.

        Returns:
            Foreseen latents and actions, as the mode has them.

        Raises:
            UserError: an input is missing, has a wrong shape, or has no meaning in this mode or
                model.
        """
        question.check(self.config)
        sampling.check(question.mode, self.config)
        noise = rng
        if isinstance(noise, torch.Generator | Sequence):
            noise = GeneratorNoise(noise, len(question.context), self.device)
        inputs, mode = question.inputs(self.config), MODES[question.mode]
        return draw_sample(self.transformer, self.heads, inputs, mode, sampling, noise)


def _known(batch: Batch, entry: str) -> Tensor | None:
    """Of which samples anything of that entry is known, bool (B,); None for all."""
    valid = batch.valid.get(entry)
    return None if valid is None else valid.any(dim=1)


def _mean(loss: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the valid rows; 0 where there are none."""
    if valid is None:
        return loss.mean()
    weight = valid.to(loss.dtype)
    return (loss * weight).sum() / weight.sum().clamp(min=1.0)
