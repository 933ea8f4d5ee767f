"""Values of states from an occupancy model, held against what the episodes then earned.

The truth is the discounted return to the episode's end, of whoever acted in it, for states so early
that what lies beyond the end would not matter. The reference implementation compares with a return
that is cut after a few steps; that one is measured beside the estimates, as if it were an estimate
too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.windows.loader import WindowDataset, spread
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window, place
from foreact.errors import UserError
from foreact.evals.clustered import clustered_estimate
from foreact.evals.correlation import correlation_estimate
from foreact.evals.estimate import all_alike
from foreact.families.voc.evals.delays import DelayCount, Delays
from foreact.families.voc.evals.returns import discounted_returns, settled, truncated_returns
from foreact.families.voc.evals.value_estimates import density_value, legacy_density, sampled_value
from foreact.types import Estimate

TAIL = 0.01
"""Share of a value that may lie beyond the episode's end of a state whose truth counts as known."""


class OccupancyModel(Protocol):
    """A model of the discounted future with a head that predicts the reward of a state."""

    def sample(
        self,
        context: Tensor,
        *,
        samples: int = 1,
        gamma: float | None = None,
        actions: Tensor | None = None,
        rng: torch.Generator,
    ) -> Tensor:
        """int64 (B, T, h, w), actions (B, m, A) -> int64 (B, samples, T, h, w)."""
        ...

    def predicted_reward(self, tokens: Tensor) -> Tensor:
        """int64 (..., T, h, w) -> float32 (...)."""
        ...

    def future_logits(
        self,
        context: Tensor,
        future: Tensor,
        *,
        gamma: float | None = None,
        actions: Tensor | None = None,
    ) -> Tensor:
        """int64 (B, T, h, w) twice -> logits of each token of the future, float (B, T h w, V)."""
        ...


# --- what is compared -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How near estimates come to true values; every interval is over independent episodes.

    Attributes:
        rank: Spearman's rank correlation; None where either side is one number.
        linear: Pearson's correlation, likewise.
        mse: mean squared error.
        bias: mean of estimate minus truth.
        states: how many were compared.
    """

    rank: Estimate | None
    linear: Estimate | None
    mse: Estimate
    bias: Estimate
    states: int


def accuracy(estimates: np.ndarray, truth: np.ndarray, episodes: np.ndarray) -> Accuracy:
    """Compare estimated with true values (N,) of states that belong to `episodes` (N,).

    Raises:
        UserError: no state, or a value that is not finite.
    """
    error = np.asarray(estimates, np.float64) - truth
    mse = clustered_estimate(error**2, episodes, higher_is_better=False)
    correlated = not (all_alike(estimates) or all_alike(truth))
    return Accuracy(
        rank=correlation_estimate(estimates, truth, episodes, ranks=True) if correlated else None,
        linear=correlation_estimate(estimates, truth, episodes) if correlated else None,
        mse=dataclasses.replace(mse, low=max(mse.low, 0.0)),
        bias=clustered_estimate(error, episodes, higher_is_better=False),
        states=len(error),
    )


@dataclass(frozen=True, kw_only=True)
class Values:
    """Result of `measure_values`; arrays have one entry per state, (N,).

    Attributes:
        gamma: discount.
        samples: futures drawn per state.
        states: int64 (N, 2), episode and step.
        truth: discounted return to the episode's end.
        truncated: discounted return of the next `horizon` steps alone, which the reference takes
            for the truth.
        horizon: of `truncated`, steps.
        sampled, error: mean reward of the sampled futures over 1 - gamma, and its standard error.
        density, effective: estimate from the densities of true later states, and its effective
            sample size.
        legacy: that estimate by the reference's formula.
        nats: cross-entropy of the true discounted future under the model, nats per token.
        train_mean: mean value of the training episodes, an estimate that needs no model.
        grades: each state's grade of behaviour, where the data has grades.
        delays: of the sampled futures.
    """

    gamma: float
    samples: int
    states: np.ndarray
    truth: np.ndarray
    truncated: np.ndarray
    horizon: int
    sampled: np.ndarray
    error: np.ndarray
    density: np.ndarray
    effective: np.ndarray
    legacy: np.ndarray
    nats: np.ndarray
    train_mean: float
    grades: np.ndarray | None
    delays: Delays

    @cached_property
    def table(self) -> dict[str, Accuracy]:
        """Name of an estimate -> how near it comes."""
        rows = {
            "sampled futures": self.sampled,
            "densities": self.density,
            "densities, reference's formula": self.legacy,
            "mean of the training data": np.full_like(self.truth, self.train_mean),
            f"true rewards of {self.horizon} steps": self.truncated,
        }
        return {
            name: accuracy(values, self.truth, self.states[:, 0]) for name, values in rows.items()
        }

    @cached_property
    def per_grade(self) -> dict[str, Accuracy]:
        """How near sampled futures come within each grade; empty unless there are two or more."""
        if self.grades is None or len(set(self.grades)) < 2:
            return {}
        rows = {str(grade): self.grades == grade for grade in sorted(set(self.grades))}
        return {
            grade: accuracy(self.sampled[chosen], self.truth[chosen], self.states[chosen, 0])
            for grade, chosen in rows.items()
        }

    def to_json(self) -> dict[str, Any]:
        columns = (
            "truth",
            "truncated",
            "sampled",
            "error",
            "density",
            "effective",
            "legacy",
            "nats",
        )
        each: dict[str, Any] = {
            "episode": self.states[:, 0].tolist(),
            "step": self.states[:, 1].tolist(),
        }
        if self.grades is not None:
            each["grade"] = [str(grade) for grade in self.grades]
        each |= {name: getattr(self, name).round(6).tolist() for name in columns}
        return {
            "gamma": self.gamma,
            "samples": self.samples,
            "train_mean": self.train_mean,
            "accuracy": {name: dataclasses.asdict(row) for name, row in self.table.items()},
            "per_grade": {name: dataclasses.asdict(row) for name, row in self.per_grade.items()},
            "effective_sample_size": float(self.effective.mean()),
            "nats_per_token": float(self.nats.mean()),
            "delays": self.delays.to_json(),
            "states": each,
        }


# --- data -----------------------------------------------------------------------------------------


def contexts(
    store: EpisodeStore,
    episodes: Sequence[int] | np.ndarray,
    camera: str,
    frames: int,
    *,
    action_steps: int = 0,
    normalizer: Normalizer | None = None,
) -> WindowDataset:
    """Every stack of `frames` token frames with a successor, and `action_steps` actions.

    The first frame of an episode stands in for those before it. The last step of an episode has no
    action.
    """
    window = Window(
        tokens={camera: tuple(range(1 - frames, 1))},
        actions=tuple(range(action_steps)),
        span=(0, max(1, action_steps)),
    )
    return WindowDataset(store, window, episodes, normalizer)


def mean_value(store: EpisodeStore, episodes: Sequence[int] | np.ndarray, gamma: float) -> float:
    """Mean true value of the episodes' states whose truth is known; of all if there are none."""
    truth = discounted_returns(_rewards(store), store.lengths, gamma)
    chosen = np.repeat(np.isin(np.arange(len(store.lengths)), episodes), store.lengths)
    settled_steps = chosen & settled(store.lengths, gamma, tolerance=TAIL)
    return float(truth[settled_steps if settled_steps.any() else chosen].mean())


def known_states(windows: WindowDataset, gamma: float) -> np.ndarray:
    """Rows of the windows whose states have a known true value, int64 (M,).

    Raises:
        UserError: gamma outside (0, 1), or no state with enough steps left.
    """
    if not 0.0 < gamma < 1.0:
        raise UserError(f"A value needs a gamma in (0, 1), found {gamma}.")
    store, index = windows.store, windows.index
    rows = store.starts[index[:, 0]] + index[:, 1]  # of the states in the store
    is_settled = settled(store.lengths, gamma, tolerance=TAIL)[rows]
    if not is_settled.any():
        raise UserError(
            f"At gamma {gamma} a state's true value is known {reach(gamma)} steps before its "
            "episode's end or earlier, and the episodes to measure have "
            f"{int(store.lengths[index[:, 0]].max())} steps at most; give longer ones or a "
            "smaller gamma."
        )
    return np.flatnonzero(is_settled)


def reach(gamma: float) -> int:
    """Steps after which no more than `TAIL` of a value is left."""
    return math.ceil(math.log(TAIL) / math.log(gamma))


def _rewards(store: EpisodeStore) -> np.ndarray:
    """Every reward of the store, float32 (N,)."""
    if not store.spec.has_reward:
        raise UserError(
            f"The store {store.path} has no rewards, and values are measured by them; "
            "use another store."
        )
    return store.gather("reward", np.arange(int(store.lengths.sum())))[:, 0]


class TrueFutures:
    """The stacks that follow a state, read episode by episode."""

    def __init__(self, windows: WindowDataset, camera: str) -> None:
        self.store, self.stream = windows.store, f"tokens_{camera}"
        self.offsets = windows.window.tokens[camera]
        self.episode, self.stacks = -1, torch.empty(0)

    def after(self, episode: int, step: int, most: int) -> Tensor:
        """The stacks 1, 2, ... `most` steps ahead, within the episode: int64 (J, T, h, w)."""
        if episode != self.episode:
            length = int(self.store.lengths[episode])
            steps, _ = place(self.offsets, np.arange(length), length)
            tokens = self.store.gather(self.stream, self.store.starts[episode] + steps)
            self.episode, self.stacks = episode, torch.from_numpy(tokens.astype(np.int64))
        return self.stacks[step + 1 : step + 1 + most]


# --- measuring ------------------------------------------------------------------------------------


@torch.no_grad()
def measure_values(
    model: OccupancyModel,
    windows: WindowDataset,
    camera: str,
    *,
    gamma: float,
    train_mean: float,
    states: int = 200,
    samples: int = 100,
    candidates: int = 32,
    batch_size: int = 8,
    seed: int = 0,
    grades: Sequence[str] | np.ndarray | None = None,
    on_states: Callable[[int], object] | None = None,
    device: torch.device | str = "cpu",
) -> Values:
    """Estimate the values of states and compare them with what followed.

    Args:
        model: in evaluation mode.
        windows: see `contexts`.
        camera: whose tokens.
        gamma: discount, in (0, 1).
        train_mean: see `mean_value`.
        states: measure so many, spread evenly over those whose truth is known.
        samples: futures per state.
        candidates: true later states per state for the density estimates, evenly spread over 99 %
            of the law.
        batch_size: states per call.
        seed: of the draws.
        grades: of every episode of the store.
        on_states: called with the number of states done since the last call, for progress bars.
        device: where the model computes.

    Raises:
        UserError: gamma outside (0, 1), no state with enough steps left, fewer than two samples, no
            rewards.
    """
    if samples < 2 or min(states, candidates, batch_size) < 1:
        raise UserError(
            "--samples should be at least 2, --states, --candidates and --batch-size at least 1, "
            f"found {samples}, {states}, {candidates} and {batch_size}."
        )
    store = windows.store
    settled_rows = known_states(windows, gamma)
    chosen = settled_rows[spread(len(settled_rows), states)]
    index = windows.anchors.at(chosen)
    rows = store.starts[index[:, 0]] + index[:, 1]
    rewards, horizon = _rewards(store), min(int(1 / (1 - gamma)), 10)
    futures, delays = TrueFutures(windows, camera), DelayCount(gamma)
    rng = torch.Generator(device).manual_seed(seed)
    columns: dict[str, list[float]] = {
        name: [] for name in ("sampled", "error", "density", "effective", "legacy", "nats")
    }
    for first in range(0, len(chosen), batch_size):
        batch = windows.batch(chosen[first : first + batch_size])
        context = batch.tokens[camera].to(device)
        actions = None if batch.actions is None else batch.actions.to(device)
        drawn = model.sample(context, samples=samples, gamma=gamma, actions=actions, rng=rng)
        value, error = sampled_value(model.predicted_reward(drawn), gamma)
        columns["sampled"] += value.tolist()
        columns["error"] += error.tolist()
        for row, (episode, step) in enumerate(index[first : first + batch_size].tolist()):
            future = futures.after(episode, step, reach(gamma)).to(device)
            delays.add(context[row], drawn[row], future)
            ahead = torch.from_numpy(spread(len(future), candidates)).to(device)
            estimates = _by_density(
                model,
                context[row],
                None if actions is None else actions[row],
                future,
                ahead,
                gamma,
                batch_size,
            )
            for name, number in estimates.items():
                columns[name].append(number)
        if on_states is not None:
            on_states(len(batch))
    return Values(
        gamma=gamma,
        samples=samples,
        states=index,
        truth=discounted_returns(rewards, store.lengths, gamma)[rows],
        truncated=truncated_returns(rewards, store.lengths, gamma, horizon=horizon)[rows],
        horizon=horizon,
        train_mean=train_mean,
        grades=None if grades is None else np.asarray(grades)[index[:, 0]],
        delays=delays.result(),
        **{name: np.array(values) for name, values in columns.items()},
    )


def _by_density(
    model: OccupancyModel,
    context: Tensor,
    actions: Tensor | None,
    future: Tensor,
    ahead: Tensor,
    gamma: float,
    batch_size: int,
) -> dict[str, float]:
    """Estimates of one state from the densities of its true later states, future[ahead]."""
    parts = []
    for delays in ahead.split(batch_size):
        later = future[delays]
        logits = model.future_logits(
            context.expand(len(later), *context.shape),
            later,
            gamma=gamma,
            actions=None if actions is None else actions.expand(len(later), *actions.shape),
        )
        rewards = model.predicted_reward(later)
        part = legacy_density(logits.float(), later.flatten(1), rewards)
        parts.append(torch.stack([part.log_probs, rewards, part.weights]).double())
    log_probs, rewards, weights = torch.cat(parts, dim=1)
    value, effective = density_value(log_probs, rewards, gamma)
    law = (math.log(gamma) * ahead.double()).softmax(dim=0)
    return {
        "density": value.item(),
        "effective": effective.item(),
        "legacy": (weights * rewards).sum().item(),
        "nats": -(law * log_probs).sum().item() / future[0].numel(),
    }
