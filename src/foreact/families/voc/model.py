"""Video Occupancy Models (arXiv 2407.09533): a video's discounted future, drawn in one step.

A state is a stack of T frames, a block z of L = T h w codes. Blocks are drawn from the occupancy

    mu(z | z_t) = (1 - gamma) sum_{k>=1} gamma^(k-1) P(z_{t+k} = z | z_t)

without rolling anything out, so that V(z_t) = E[r(z)] / (1 - gamma). It is trained by its own
Bellman equation: the target block is the next one with probability 1 - gamma, else a sample of a
slowly moving copy from the next one. With n steps:

    z_{t+k}                  with probability (1 - gamma) gamma^(k-1), k = 1..n
    a sample from z_{t+n}    with probability gamma^n

    [ context: L codes | condition | future: L codes ]        one sequence: each predicts the next

The condition, absent in the published models, is a token for gamma where the model knows several,
and one for each of the first actions taken. It stands after the context, whose keys and values are
thus shared by all candidates. The actions of a bootstrap sample are those of the data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.errors import UserError
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.network import OccupancyGPT
from foreact.nn.gpt2 import matrices_decay
from foreact.types import Batch, LossOut

REWARD_DECAY = 0.01
ROWS = 512
"""Sequences sampled at once; their number bounds the memory, and changes no draw."""


class RewardHead(nn.Module):
    """Three linear layers on the code vectors of a stack."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(..., inputs) -> (...)."""
        x = functional.relu(self.first(features))
        return self.last(functional.relu(self.second(x)))[..., 0]


class VOC(nn.Module):
    """Occupancy model over codes, target network, reward head; a `foreact.types.Trainable`.

    Attributes:
        gpt: the model.
        target: its moving average, which draws bootstrap samples; in evaluation mode unless the
            config says otherwise.
        reward: predicts the reward that came with a stack.
        codebook: float32 (V, c), the tokenizer's rows, which the reward head reads; see
            `set_codebook`.
    """

    used_parameters = "all"
    codebook: Tensor

    def __init__(self, config: VOCConfig) -> None:
        super().__init__()
        self.config = config
        self.gpt = OccupancyGPT(config.gpt, gammas=len(config.gammas), actions=config.actions)
        self.target = copy.deepcopy(self.gpt).requires_grad_(False)
        self.reward = RewardHead(config.block * config.code_dim, config.reward_hidden)
        self.register_buffer("codebook", torch.zeros(config.vocab, config.code_dim))

    def train(self, mode: bool = True) -> VOC:
        super().train(mode)
        self.target.train(mode and self.config.target_dropout)
        return self

    @torch.no_grad()
    def set_codebook(self, rows: Tensor) -> None:
        """Take over the rows (V, c) of the tokenizer's codebook.

        Raises:
            UserError: they are of another size than the config says.
        """
        if rows.shape != self.codebook.shape:
            raise UserError(
                f"The model expects a codebook of {self.config.vocab} codes of length "
                f"{self.config.code_dim}, the tokenizer has {rows.shape[0]} of length "
                f"{rows.shape[1]}; use the tokenizer it was made for."
            )
        self.codebook.copy_(rows)

    # --- training ---------------------------------------------------------------------------------

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        """See `learn`.

        Args:
            batch: `tokens[camera]`, `rewards` and, for a model conditioned on actions, `actions`,
                as for `learn`.
            rng: of the gammas, delays and bootstrap samples.
        """
        if batch.rewards is None:
            raise UserError(
                "VOC learns from rewards, and the batch has none; use a store with rewards."
            )
        return self.learn(batch.tokens[self.config.camera], batch.rewards, batch.actions, rng=rng)

    def learn(
        self, tokens: Tensor, rewards: Tensor, actions: Tensor | None, *, rng: torch.Generator
    ) -> LossOut:
        """Cross-entropy to a draw from the Bellman target, and the reward's regression.

        Args:
            tokens: int64 (B, T + n, h, w), the frames of the present stack and the n that follow.
            rewards: float32 (B, n), those that came with the n frames.
            actions: float32 (B, n + m, A) from the present step on, for a model conditioned on
                actions.
            rng: of the gammas, delays and bootstrap samples.
        """
        stacks = self.stacks(tokens)
        gammas = torch.randint(
            len(self.config.gammas), (len(tokens),), generator=rng, device=tokens.device
        )
        delay = self._draw_delay(gammas, rng)
        future = self.targets(stacks, delay, gammas, actions, rng=rng)
        out = self.loss(stacks, future, rewards, gammas=gammas, actions=actions)
        out.logs["bootstrapped"] = (delay == self.config.bootstrap_steps).float().mean()
        return out

    def loss(
        self,
        stacks: Tensor,
        future: Tensor,
        rewards: Tensor,
        *,
        gammas: Tensor,
        actions: Tensor | None,
    ) -> LossOut:
        """The two terms for futures already drawn; arguments as in `targets` and `learn`."""
        config = self.config
        condition = self.gpt.condition(gammas, self._first_actions(actions, 0))
        logits = self.gpt.code_logits(stacks[:, 0], condition, future)
        codes = torch.cat([stacks[:, 0], future], dim=1)[:, 1:]  # (B, 2 L - 1), next codes
        losses = functional.cross_entropy(
            logits.flatten(0, 1).float(), codes.flatten(), reduction="none"
        )
        losses = losses.view_as(codes)
        ahead = losses[:, -config.block :].mean()
        nats = losses.mean() if config.context_loss else ahead
        predicted = self.reward(self.features(stacks[:, 1:]))  # (B, n)
        reward = functional.mse_loss(predicted.float(), rewards)
        logs = {
            "nats_per_code": nats.detach(),
            "nats_per_future_code": ahead.detach(),
            "reward_mse": reward.detach(),
        }
        return LossOut(loss=nats + reward, logs=logs)

    def _draw_delay(self, gammas: Tensor, rng: torch.Generator) -> Tensor:
        """int64 (B,): d < n means the stack d + 1 steps ahead, n a sample drawn from the n-th."""
        gamma = torch.tensor(self.config.gammas, device=gammas.device)[gammas]
        steps = torch.arange(1, self.config.bootstrap_steps + 1, device=gammas.device)
        # P(delay >= k) = gamma^k for k = 1..n, so the delay is how many of them exceed a uniform.
        powers = gamma[:, None] ** steps
        return (torch.rand(len(gammas), 1, generator=rng, device=gammas.device) < powers).sum(1)

    @torch.no_grad()
    def targets(
        self,
        stacks: Tensor,
        delay: Tensor,
        gammas: Tensor,
        actions: Tensor | None,
        *,
        rng: torch.Generator,
    ) -> Tensor:
        """Draws from the Bellman target; samples are made only for the rows that take one.

        Args:
            stacks: int64 (B, n + 1, L), the present one first.
            delay: int64 (B,) in 0..n, see `_draw_delay`.
            gammas: int64 (B,), numbers of the gammas.
            actions: float32 (B, n + m, A) or None.
            rng: of the samples.

        Returns:
            int64 (B, L).
        """
        n = self.config.bootstrap_steps
        every = torch.arange(len(stacks), device=stacks.device)
        future = stacks[every, (delay + 1).clamp(max=n)]  # observed; right where delay < n
        rows = (delay == n).nonzero()[:, 0]  # those that bootstrap
        if len(rows):
            first = self._first_actions(actions, n)
            uniform = torch.rand(
                len(rows), 1, self.config.block, generator=rng, device=stacks.device
            )
            first_rows = None if first is None else first[rows]
            # In float32: draws shall not depend on the precision, and autocast would cast the
            # weights for every code.
            with torch.autocast(stacks.device.type, enabled=False):
                condition = self.target.condition(gammas[rows], first_rows)
                sampled = self.target.sample(
                    stacks[rows, n], condition[:, None], uniform, top_k=self.config.target_top_k
                )
            future[rows] = sampled[:, 0]  # one draw per row
        return future

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the target network towards the model."""
        online = [p.detach() for p in self.gpt.parameters()]
        # torch has no public name for one step over many tensors.
        lerp_ = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
        lerp_(list(self.target.parameters()), online, 1.0 - self.config.target_decay)

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """GPT: matrices decay. Reward head: constant rate and a decay of 0.01, as published."""
        head = {
            "params": list(self.reward.parameters()),
            "lr": lr,
            "weight_decay": REWARD_DECAY,
            "scheduled": False,
        }
        return [*matrices_decay(self.gpt, lr, weight_decay), head]

    # --- stacks, rewards and probabilities --------------------------------------------------------

    def stacks(self, tokens: Tensor) -> Tensor:
        """Frames (B, T + n, h, w) -> its flat stacks of T (B, n + 1, L), oldest frame first."""
        self._require_frames(tokens, "T + n")
        stacks = tokens.unfold(1, self.config.frames, 1)  # (B, n + 1, h, w, T)
        return stacks.movedim(-1, 2).flatten(2)

    def features(self, blocks: Tensor) -> Tensor:
        """Flat blocks (..., L) -> their code vectors in the reward head's order (..., L c)."""
        config = self.config
        rows = self.codebook[blocks].unflatten(-2, (config.frames, -1))  # (..., T, h w, c)
        if config.feature_order == "channels_first":
            rows = rows.transpose(-1, -2)  # (..., T, c, h w)
        return rows.flatten(-3)

    @torch.no_grad()
    def predicted_reward(self, tokens: Tensor) -> Tensor:
        """The reward that came with a stack: int64 (..., T, h, w) -> float32 (...)."""
        return self.reward(self.features(tokens.flatten(-3))).float()

    def future_logits(
        self,
        context: Tensor,
        future: Tensor,
        *,
        gamma: float | None = None,
        actions: Tensor | None = None,
        online: bool = False,
    ) -> Tensor:
        """Logits (B, L, V) of the codes of a given future; arguments as in `log_prob`."""
        self._require_stack(context)
        self._require_stack(future)
        net = self.gpt if online else self.target
        gammas = torch.full((len(context),), self.gamma_number(gamma), device=context.device)
        condition = net.condition(gammas, self._require_actions(actions))
        logits = net.code_logits(context.flatten(1), condition, future.flatten(1))
        return logits[:, -self.config.block :]

    def log_prob(
        self,
        context: Tensor,
        future: Tensor,
        *,
        gamma: float | None = None,
        actions: Tensor | None = None,
        online: bool = False,
    ) -> Tensor:
        """Log-probability of every code of a future.

        Args:
            context, future: int64 (B, T, h, w).
            gamma: one of the config's; may be left out where it has one.
            actions: float (B, m, A), for a model conditioned on actions.
            online: ask the model in training instead of its moving average.

        Returns:
            float32 (B, L), nats.
        """
        logits = self.future_logits(context, future, gamma=gamma, actions=actions, online=online)
        return logits.float().log_softmax(-1).gather(-1, future.flatten(1)[..., None])[..., 0]

    # --- sampling ---------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        context: Tensor,
        *,
        samples: int = 1,
        gamma: float | None = None,
        actions: Tensor | None = None,
        rng: torch.Generator | Sequence[torch.Generator],
        temperature: float = 1.0,
        top_k: int | None = None,
        online: bool = False,
        on_token: Callable[[], object] | None = None,
    ) -> Tensor:
        """Draw states from the discounted future.

        Args:
            context: int64 (B, T, h, w), present stacks; each is read once for up to `ROWS` draws
                from it.
            samples: S, draws per context (and per candidate, see `actions`).
            gamma: one of the config's; may be left out where it has one.
            actions: for a model conditioned on actions, float (B, m, A), or (B, N, m, A) for N
                candidates.
            rng: one generator, or one for each context, so that its draws depend on nobody else's.
            temperature: divides the logits.
            top_k: draw among the k likeliest codes; None: among all.
            online: ask the model in training instead of its moving average.
            on_token: called after every code of every part of the batch, for progress bars.

        Returns:
            int64 (B, S, T, h, w), or (B, N, S, T, h, w) for N candidates.

        Raises:
            UserError: another grid, codes outside the vocabulary, an unknown gamma, or actions
                missing or not wanted.
        """
        self._require_stack(context)
        self.require_codes(context)
        if samples < 1 or not temperature > 0 or (top_k is not None and top_k < 1):
            raise UserError(
                f"Expected samples >= 1, temperature > 0 and top_k >= 1 or None, found {samples}, "
                f"{temperature} and {top_k}."
            )
        net, block = (self.gpt if online else self.target), self.config.block
        actions = self._require_actions(actions)
        several = actions is not None and actions.ndim == 4
        candidates = actions.shape[1] if actions is not None and several else 1
        draws = candidates * samples
        # Candidates share their random numbers, so that they differ by their actions, not by luck.
        uniform = _uniform(rng, (len(context), samples, block)).to(context.device)
        uniform = uniform.repeat(1, candidates, 1)  # (B, N S, L)
        number = self.gamma_number(gamma)
        gammas = torch.full((len(context), candidates), number, device=context.device)
        if actions is not None and not several:
            actions = actions[:, None]
        # (B, N S, condition, width), the S draws of a candidate side by side
        condition = net.condition(gammas, actions).repeat_interleave(samples, dim=1)
        # Both axes in slices of at most `ROWS` sequences, which bounds the memory.
        parts = [
            torch.cat(
                [
                    net.sample(
                        context[i].flatten(1),
                        condition[i, j],
                        uniform[i, j],
                        temperature=temperature,
                        top_k=top_k,
                        on_token=on_token,
                    )
                    for j in _slices(draws, ROWS)
                ],
                dim=1,
            )
            for i in _slices(len(context), max(1, ROWS // draws))
        ]
        codes = torch.cat(parts).unflatten(-1, (self.config.frames, *self.config.grid))
        return codes.unflatten(1, (candidates, samples)) if several else codes

    # --- checks -----------------------------------------------------------------------------------

    def gamma_number(self, gamma: float | None) -> int:
        """Which of the config's gammas this is; it may be left out where there is one.

        Raises:
            UserError: the model was not trained for it.
        """
        trained = self.config.gammas
        if gamma is None and len(trained) == 1:
            return 0
        if gamma not in trained:
            raise UserError(
                f"The model was trained for the gammas {list(trained)}, found {gamma}; "
                "choose one of them."
            )
        return trained.index(gamma)

    def require_codes(self, tokens: Tensor) -> None:
        """Raise a `UserError` for codes outside the vocabulary (costs a wait for the device)."""
        if tokens.numel():
            low, high = (int(x) for x in torch.aminmax(tokens))
            if low < 0 or high >= self.config.vocab:
                raise UserError(
                    f"Codes should lie in 0..{self.config.vocab - 1}, found {low}..{high}; use "
                    "the tokenizer that the model was trained with."
                )

    def _require_frames(self, tokens: Tensor, frames: str) -> None:
        if tokens.ndim != 4 or tuple(tokens.shape[2:]) != tuple(self.config.grid):
            raise UserError(
                f"The model reads codes of shape (B, {frames}, {self.config.grid[0]}, "
                f"{self.config.grid[1]}), found {tuple(tokens.shape)}; use the tokenizer and "
                "picture size that it was trained with."
            )

    def _require_stack(self, tokens: Tensor) -> None:
        self._require_frames(tokens, str(self.config.frames))
        if tokens.shape[1] != self.config.frames:
            raise UserError(
                f"The model reads stacks of {self.config.frames} frames, found {tokens.shape[1]}."
            )

    def _first_actions(self, actions: Tensor | None, step: int) -> Tensor | None:
        """The condition's actions (B, m, A) from a step of the batch's window on."""
        if not self.config.actions:
            return None
        return self._require_actions(
            None if actions is None else actions[:, step : step + self.config.action_steps]
        )

    def _require_actions(self, actions: Tensor | None) -> Tensor | None:
        """The actions, or a `UserError` unless they are what the model is conditioned on."""
        shape = (self.config.action_steps, self.config.actions)
        if not self.config.actions:
            if actions is not None:
                raise UserError(
                    "This model is not conditioned on actions; leave them out, or "
                    "train one that is."
                )
            return None
        if actions is None or tuple(actions.shape[-2:]) != shape:
            found = "none" if actions is None else f"{tuple(actions.shape)}"
            raise UserError(
                f"The model is conditioned on actions of shape (..., {shape[0]}, {shape[1]}), "
                f"found {found}."
            )
        return actions


def _uniform(rng: torch.Generator | Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Numbers in [0, 1) from one generator, or from one for each entry of the first axis."""
    if isinstance(rng, Sequence):
        return torch.stack([torch.rand(shape[1:], generator=g, device=g.device) for g in rng])
    return torch.rand(shape, generator=rng, device=rng.device)


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, total, size)]
