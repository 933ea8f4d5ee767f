"""Action values Q(s, a) from sampled futures, by an occupancy model or by rollouts.

Both estimate the discounted rewards to come if the actions `a` are taken now and the behaviour in
the data goes on afterwards; an occupancy model draws the discounted future in one go, a one-step
model walks there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.families.voc.cloning.model import Cloning
from foreact.families.voc.model import VOC

ONE_STEP = 0.0
"""The gamma at which an occupancy model is a plain one-step model."""


class ActionValue(Protocol):
    """Judges candidates; `steps` actions each, m."""

    @property
    def steps(self) -> int: ...

    def __call__(self, stacks: Tensor, actions: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """Values of N candidates for each of B states.

        Args:
            stacks: int64 (B, T, h, w).
            actions: float32 (B, N, m, A), in the units of the action spec.
            rngs: a generator on the CPU per state.

        Returns:
            float32 (B, N), discounted sums of rewards.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able settings, for protocols."""
        ...


class OccupancyValue:
    """Q(s, a): mean reward of the occupancy after (s, a), over 1 - gamma (arXiv 2407.09533).

    Args:
        voc: conditioned on actions.
        gamma: one of the model's; may be left out where it has one.
        samples: states drawn per candidate, S.

    Raises:
        UserError: the model is not conditioned on actions, knows no such gamma, or samples < 1.
    """

    def __init__(self, voc: VOC, *, gamma: float | None = None, samples: int = 4) -> None:
        _require_actions(voc)
        if samples < 1:
            raise UserError(f"samples should be at least 1, found {samples}.")
        self.voc, self.samples = voc.eval(), samples
        self.gamma = voc.config.gammas[voc.gamma_number(gamma)]

    @property
    def steps(self) -> int:
        return self.voc.config.action_steps

    def __call__(self, stacks: Tensor, actions: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        # (B, N, S, T, h, w)
        futures = self.voc.sample(
            stacks, samples=self.samples, gamma=self.gamma, actions=actions, rng=rngs
        )
        return self.voc.predicted_reward(futures).mean(-1) / (1.0 - self.gamma)

    def describe(self) -> dict[str, Any]:
        return {"value": "occupancy", "gamma": self.gamma, "samples": self.samples}


class RolloutValue:
    """Q(s, a) = sum_{k=1..H} gamma^(k-1) r(s_{t+k}) along sampled rollouts of a one-step model.

    The candidate is the first action; those after it are drawn from behaviour cloning. What lies
    beyond H is left out.

    Args:
        voc: a model with 0 among its gammas, conditioned on one action.
        cloning: acts after the first step; reads the same stacks.
        gamma: discount, in [0, 1).
        samples: rollouts per candidate, S.
        horizon: steps of a rollout, H.

    Raises:
        UserError: it is no one-step model, or a number is impossible.
    """

    def __init__(
        self, voc: VOC, cloning: Cloning, *, gamma: float = 0.9, samples: int = 4, horizon: int = 10
    ) -> None:
        _require_actions(voc)
        if ONE_STEP not in voc.config.gammas or voc.config.action_steps != 1:
            raise UserError(
                "Rollouts take a model of the next step, trained with 0 among --model.gammas and "
                f"--model.action-steps 1; this one has the gammas {list(voc.config.gammas)} and "
                f"reads {voc.config.action_steps} actions."
            )
        if samples < 1 or horizon < 1 or not 0.0 <= gamma < 1.0:
            raise UserError(
                "Rollouts need samples and horizon of at least 1 and gamma in [0, 1), found "
                f"{samples}, {horizon} and {gamma}."
            )
        self.voc, self.cloning = voc.eval(), cloning.eval()
        self.gamma, self.samples, self.horizon = gamma, samples, horizon

    @property
    def steps(self) -> int:
        return 1

    def __call__(self, stacks: Tensor, actions: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        candidates = actions.shape[1]
        # (B N S, T, h, w): from the second step on, every rollout is a row of its own.
        states = self._step(stacks, actions, rngs, self.samples).flatten(0, 2)
        # Candidates share their draws, as in `VOC.sample`.
        seeds = [torch.randint(2**62, (self.samples,), generator=rng).tolist() for rng in rngs]
        rollout_rngs = [
            torch.Generator().manual_seed(seed)
            for state_seeds in seeds
            for _ in range(candidates)
            for seed in state_seeds
        ]
        value = self.voc.predicted_reward(states)
        for k in range(1, self.horizon):
            cloned = self.cloning.propose(states, 1, rngs=rollout_rngs)[:, 0, :1]  # (B N S, 1, A)
            states = self._step(states, cloned, rollout_rngs, 1)[:, 0]
            value = value + self.gamma**k * self.voc.predicted_reward(states)
        return value.view(len(stacks), candidates, self.samples).mean(-1)

    def _step(
        self, stacks: Tensor, actions: Tensor, rngs: Sequence[torch.Generator], samples: int
    ) -> Tensor:
        """Draw next stacks; shapes as in `VOC.sample`."""
        return self.voc.sample(stacks, samples=samples, gamma=ONE_STEP, actions=actions, rng=rngs)

    def describe(self) -> dict[str, Any]:
        return {
            "value": "rollouts",
            "gamma": self.gamma,
            "samples": self.samples,
            "rollout_steps": self.horizon,
        }


def _require_actions(voc: VOC) -> None:
    if not voc.config.actions:
        raise UserError(
            "This model foresees what the data's behaviour leads to, whatever one does; to plan, "
            "train one that is conditioned on actions."
        )
