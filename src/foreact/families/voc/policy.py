"""Planning with VOC: candidate actions, each judged by the futures that it leads to.

The paper reports that its models help model predictive control and tells neither planner nor
numbers that we could read; this planner is our own. It is one step of policy improvement: the value
of a candidate counts on the behaviour in the data afterwards, so it can do better than that
behaviour, and not arbitrarily better.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from foreact.checkpoints.format import Checkpoint, build, load_checkpoint
from foreact.checkpoints.shipped import resolve
from foreact.errors import UserError
from foreact.families.voc.action_values import ONE_STEP, ActionValue, OccupancyValue, RolloutValue
from foreact.families.voc.cloning.model import Cloning
from foreact.families.voc.cloning.policy import build_cloning
from foreact.families.voc.model import VOC
from foreact.families.voc.planning import best_of, cem, mppi
from foreact.families.voc.stacks import CodeStacks, in_batches, open_stacks
from foreact.types import ActionChunk, Observation, StreamSpec


@dataclass(frozen=True, kw_only=True)
class PlanningConfig:
    """How to search for actions."""

    planner: Literal["cem", "mppi", "shooting"] = "cem"
    """cem and mppi search around cloned behaviour; shooting takes the best of one round.

    Without cloned behaviour, cem and mppi begin in the middle of the bounds. Candidates of shooting
    that are not cloned are uniform.
    """
    candidates: int = 32
    """Candidates per round, N."""
    samples: int = 4
    """Futures per candidate, S."""
    iterations: int = 2
    """Rounds of cem and mppi."""
    elites: int = 6
    """Candidates that cem keeps of a round."""
    temperature: float = 0.5
    """Of mppi, in deviations of the values among candidates."""
    prior_share: float = 0.5
    """Share of the candidates drawn from behaviour cloning, where there is one."""
    spread: float = 0.5
    """First deviation of cem and mppi, where 1 is half the width of the bounds."""
    gamma: float | None = None
    """Discount: of the occupancy model (None where it has one), or of rollouts (None: 0.9)."""
    rollouts: bool = False
    """Judge by rollouts of the model at gamma 0; one without another gamma always is."""
    rollout_steps: int = 10
    """Length of the rollouts."""

    def __post_init__(self) -> None:
        for name in ("candidates", "samples", "iterations", "elites", "rollout_steps"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--planning.{name.replace('_', '-')} should be at least 1, found "
                    f"{getattr(self, name)}."
                )
        if self.planner not in ("cem", "mppi", "shooting"):
            raise UserError(
                f"--planning.planner should be cem, mppi or shooting, found '{self.planner}'."
            )
        if self.planner == "cem" and self.elites > self.candidates:
            raise UserError(
                f"--planning.elites ({self.elites}) should not exceed --planning.candidates "
                f"({self.candidates})."
            )
        positive = self.spread > 0.0 and self.temperature > 0.0
        if not 0.0 <= self.prior_share <= 1.0 or not positive:
            raise UserError(
                "--planning.prior-share should be in [0, 1], --planning.spread and "
                f"--planning.temperature positive, "
                f"found {self.prior_share}, {self.spread} and {self.temperature}."
            )
        if self.planner != "shooting" and self._proposals == self.candidates:
            raise UserError(
                f"{self.planner} draws candidates of its own: lower --planning.prior-share "
                f"({self.prior_share}), or choose the planner shooting."
            )

    @property
    def _proposals(self) -> int:
        return round(self.prior_share * self.candidates)

    def proposals(self, cloning: Cloning | None) -> int:
        """How many of the candidates are drawn from behaviour cloning."""
        return 0 if cloning is None else self._proposals


class PlanningPolicy:
    """Plans by the values that a model gives to candidates; meets `foreact.types.Policy`.

    Args:
        value: judges candidates; its models are on the device of `stacks`.
        stacks: memory of the frames, see there.
        spec: of the task; its actions have bounds.
        cloning: proposes candidates, or None.
        planning: how to search.
        execute: actions played before planning again, 1..m.
        weights: content hash of the model's weights, told by `describe`.
        prior: content hash of the weights of `cloning`.

    Raises:
        UserError: actions without bounds, `execute` beyond the actions of a candidate, or a cloning
            that predicts too few of them.
    """

    def __init__(
        self,
        value: ActionValue,
        stacks: CodeStacks,
        spec: StreamSpec,
        *,
        cloning: Cloning | None = None,
        planning: PlanningConfig | None = None,
        execute: int = 1,
        weights: str = "",
        prior: str | None = None,
    ) -> None:
        if spec.action is None or spec.action.low is None or spec.action.high is None:
            raise UserError(
                "A planner searches within the action bounds, and the spec has none; "
                "add low and high."
            )
        if not 1 <= execute <= value.steps:
            raise UserError(
                f"execute is {execute}; the model judges {value.steps} actions at a time, choose "
                "1 to that many."
            )
        if cloning is not None and cloning.config.action_steps < value.steps:
            raise UserError(
                f"The model judges {value.steps} actions at a time and behaviour cloning proposes "
                f"{cloning.config.action_steps}; train it with --action-steps {value.steps}."
            )
        self.spec, self.value, self.stacks = spec, value, stacks
        self.planning, self.execute = planning or PlanningConfig(), execute
        self.weights, self.prior = weights, prior
        self._cloning = None if cloning is None else cloning.eval()
        self._low, self._high = (
            torch.tensor(b, device=stacks.device) for b in (spec.action.low, spec.action.high)
        )

    def reset(self, seeds: Sequence[int]) -> None:
        self.stacks.reset(seeds)

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        self.stacks.observe(obs, ids)

    @torch.inference_mode()
    def act(self, ids: Sequence[int] | None = None) -> ActionChunk:
        began = time.perf_counter()
        batch = self.stacks.now(ids)
        planned = in_batches(self.plan, self.stacks.batch_size, batch.stacks, batch.rngs)
        actions = planned.cpu().numpy().astype(np.float32)
        elapsed_ms = (time.perf_counter() - began) * 1e3
        return ActionChunk(actions, self.execute, batch.step, elapsed_ms)

    def plan(self, stacks: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """Search: int64 (B, T, h, w) and a generator per row -> float32 (B, m, A)."""
        planning = self.planning
        count, proposals = planning.proposals(self._cloning), None
        if self._cloning is not None and count:
            proposals = self._cloning.propose(stacks, count, rngs=rngs)[:, :, : self.value.steps]

        def score(candidates: Tensor) -> Tensor:
            return self.value(stacks, candidates, rngs)

        if planning.planner == "shooting":
            candidates = self._uniform(planning.candidates - count, rngs)
            if proposals is not None:
                candidates = torch.cat([proposals, candidates], dim=1)
            return best_of(score, candidates)
        mean = self._start(stacks)
        std = (planning.spread * (self._high - self._low) / 2).expand_as(mean)
        common: dict[str, Any] = {
            "samples": planning.candidates,
            "iterations": planning.iterations,
            "rngs": rngs,
            "low": self._low,
            "high": self._high,
            "proposals": proposals,
        }
        if planning.planner == "cem":
            return cem(score, mean, std, elites=planning.elites, **common)
        return mppi(score, mean, std, temperature=planning.temperature, **common)

    def describe(self) -> dict[str, Any]:
        return {
            "policy": "planning",
            "weights": self.weights,
            "prior": self.prior,
            "tokenizer": self.stacks.tokenizer.hash,
            "context": self.stacks.frames,
            "horizon": self.value.steps,
            "execute": self.execute,
            **asdict(self.planning),
            **self.value.describe(),
            "batch_size": self.stacks.batch_size,
            "device": str(self.stacks.device),
        }

    def _start(self, stacks: Tensor) -> Tensor:
        """Where cem and mppi begin: (B, m, A)."""
        if self._cloning is not None:
            return self._cloning.mode(stacks)[:, : self.value.steps]
        return ((self._low + self._high) / 2).expand(len(stacks), self.value.steps, -1)

    def _uniform(self, count: int, rngs: Sequence[torch.Generator]) -> Tensor:
        """Candidates anywhere within the bounds: (B, count, m, A)."""
        shape = (count, self.value.steps, len(self._low))
        drawn = torch.stack([torch.rand(shape, generator=rng) for rng in rngs]).to(self._low.device)
        return self._low + drawn * (self._high - self._low)


@dataclass(frozen=True, kw_only=True)
class OccupancyOptions:
    """How an occupancy model plans."""

    prior: str | None = None
    """Weights of behaviour cloning on the same codes, to propose candidates; rollouts need some."""
    planning: PlanningConfig = PlanningConfig()
    """How to search for actions."""
    batch_size: int | None = None
    """Episodes planned for at once; None: 1 on a CPU, which gains little from more, else 32.

    Fewer are filled up, so that no plan depends on how many run together.
    """
    tokenizer: str | None = None
    """Where its tokenizer lies, if it is not embedded."""


def open_policy(
    path: Path,
    options: OccupancyOptions | None = None,
    *,
    execute: int | None = None,
    device: torch.device | str = "cpu",
) -> PlanningPolicy:
    """A policy from a checkpoint: an occupancy model judges, a one-step model rolls out.

    Args:
        path: checkpoint of a "voc" that is conditioned on actions.
        options: how it plans.
        execute: actions played before planning again; None: 1.
        device: where to compute.

    Raises:
        UserError: a checkpoint is missing, broken, or does not fit.
    """
    options = options or OccupancyOptions()
    planning = options.planning
    checkpoint = load_checkpoint(path, of="voc")
    voc = build(checkpoint, device)
    assert isinstance(voc, VOC)
    cloning, prior_hash = None, None
    if options.prior is not None:
        proposer = load_checkpoint(resolve(options.prior), of="bc")
        cloning, prior_hash = build_cloning(proposer, device), proposer.hash
        _require_same_codes(checkpoint, voc, proposer, cloning)
    stacks = open_stacks(checkpoint, voc.config, options.tokenizer, options.batch_size, device)
    value: ActionValue
    if planning.rollouts or voc.config.gammas == (ONE_STEP,):
        if cloning is None:
            raise UserError(
                f"The rollouts of {path} go on with cloned behaviour; name weights of `foreact "
                "train bc` as the prior."
            )
        gamma = 0.9 if planning.gamma is None else planning.gamma
        value = RolloutValue(
            voc, cloning, gamma=gamma, samples=planning.samples, horizon=planning.rollout_steps
        )
    else:
        value = OccupancyValue(voc, gamma=planning.gamma, samples=planning.samples)
    return PlanningPolicy(
        value,
        stacks,
        stacks.spec,
        cloning=cloning,
        planning=planning,
        execute=1 if execute is None else execute,
        weights=checkpoint.hash,
        prior=prior_hash,
    )


def _require_same_codes(
    checkpoint: Checkpoint, voc: VOC, prior: Checkpoint, cloning: Cloning
) -> None:
    """Model and proposer read the same stacks of the same codes."""
    for name in ("camera", "frames", "grid", "vocab"):
        of_model, of_prior = getattr(voc.config, name), getattr(cloning.config, name)
        if of_model != of_prior:
            raise UserError(
                f"{checkpoint.path} has {name} = {of_model}, its prior {prior.path} has "
                f"{of_prior}; train both on the same."
            )
    tokenizer, other = checkpoint.tokenizer, prior.tokenizer
    if tokenizer is not None and other is not None and tokenizer.hash != other.hash:
        raise UserError(
            f"{checkpoint.path} reads codes of the tokenizer {tokenizer.hash}, its prior "
            f"{prior.path} those of {other.hash}; train both on the same codes."
        )
