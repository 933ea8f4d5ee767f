"""Driving models on recorded drives, without acting: next-token loss and distance of plans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.evals.clustered import clustered_estimate
from foreact.families.driving.data.ego import COMMANDS
from foreact.types import Batch, Estimate


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Result of `next_token`.

    Attributes:
        loss: nats per token, every predicted token counting alike; the interval is over independent
            drives.
        perplexity: exp of the loss.
        tokens: how many were predicted.
        windows: how many windows they came from.
    """

    loss: Estimate
    perplexity: float
    tokens: int
    windows: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@torch.no_grad()
def next_token(
    token_losses: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    camera: str,
    *,
    device: torch.device | str,
) -> NextToken:
    """Cross-entropy of each token given those before it, over all windows.

    Args:
        token_losses: int64 (B, T, h, w) -> float (B, T h w - 1), nats: the loss of each token but
            the first.
        batches: with `tokens[camera]`; frames marked invalid do not count. `index` names the drive
            of each window.
        camera: stream to read.
        device: where `token_losses` computes.

    Raises:
        UserError: no window, or losses that are not finite.
    """
    means, counts, drives = [], [], []  # per window of each batch
    for batch in batches:
        tokens = _tokens(batch, camera)
        losses = token_losses(tokens.to(device)).double().cpu()
        valid = batch.valid.get(camera)
        if valid is None:
            weight = torch.ones_like(losses)
        else:
            # (B, T) per frame -> (B, T h w - 1) per predicted token.
            weight = valid.repeat_interleave(math.prod(tokens.shape[2:]), dim=1)[:, 1:].double()
        count = weight.sum(1)
        kept = count > 0
        means.append(((losses * weight).sum(1) / count)[kept])
        counts.append(count[kept])
        drives.append(_drives(batch, sum(map(len, drives)))[kept])
    weights = _joined(counts)
    loss = clustered_estimate(
        _joined(means),
        _joined(drives),
        weights=weights,
        unit="nats per token",
        higher_is_better=False,
    )
    return NextToken(
        loss=loss,
        perplexity=math.exp(min(loss.mean, 700.0)),  # a float64 overflows beyond exp(709)
        tokens=int(weights.sum()),
        windows=len(weights),
    )


class Planner(Protocol):
    """What is measured: a model that draws k plans per context."""

    def act(
        self, tokens: Tensor, commands: Tensor, *, samples: int, steps: int, rng: torch.Generator
    ) -> Tensor:
        """int64 (B, T, h, w) and (B,) -> float (B, k, K, 2), metres in the frame of the car."""
        ...


@dataclass(frozen=True)
class Plan:
    """One window: what was planned and what was driven.

    Attributes:
        predicted: float32 (k, K, 2), metres, x forward and y left of the car.
        truth: float32 (K, 2).
        command: the high-level command that the model was given.
        episode, step: where the window's last frame lies.
    """

    predicted: np.ndarray
    truth: np.ndarray
    command: int
    episode: int
    step: int


@dataclass(frozen=True, kw_only=True)
class OpenLoopResult:
    """Result of `open_loop`.

    Attributes:
        samples: plans drawn per window, k.
        steps: of the sampler.
        seed: of the draws.
        min_ade: distance of the nearest plan, averaged over windows; the interval is over
            independent drives.
        per_command: the same for the windows of each command that occurs.
        baselines: the distance of plans that need no model, one per window; see `baseline_plans`.
        windows: per window, in order: its command's name -> count.
        plans: every window's plans.
        examples: numbers of the plans to show, one per drive and command.
    """

    samples: int
    steps: int
    seed: int
    min_ade: Estimate
    per_command: Mapping[str, Estimate]
    baselines: Mapping[str, Estimate]
    windows: Mapping[str, int]
    plans: Sequence[Plan] = ()
    examples: Sequence[int] = ()

    def to_json(self) -> dict[str, Any]:
        """All but the plans."""
        raw = dataclasses.asdict(dataclasses.replace(self, plans=()))
        return {name: value for name, value in raw.items() if name not in ("plans", "examples")}

    def plans_json(self) -> list[dict[str, Any]]:
        """Every window's plans, in metres rounded to millimetres."""
        return [
            {
                "episode": plan.episode,
                "step": plan.step,
                "command": plan.command,
                "truth": plan.truth.astype(np.float64).round(3).tolist(),
                "predicted": plan.predicted.astype(np.float64).round(3).tolist(),
            }
            for plan in self.plans
        ]


def open_loop(
    model: Planner,
    batches: Iterable[Batch],
    camera: str,
    *,
    samples: int = 10,
    steps: int = 10,
    seed: int = 0,
    examples: int = 8,
    device: torch.device | str,
) -> OpenLoopResult:
    """minADE_k: plan from each window's last frame and compare with what was driven.

    Args:
        model: draws the plans.
        batches: with `tokens[camera]`, `plans` in metres and `commands`.
        samples: plans per window, k; a score falls as k grows, so it belongs beside the number.
        steps: of the sampler.
        seed: decides the draws.
        examples: windows to choose for pictures.
        device: where the model computes.

    Raises:
        UserError: no window, data without plans, or plans of another shape than the model's.
    """
    rng = torch.Generator(device).manual_seed(seed)
    plans: list[Plan] = []
    errors: list[Tensor] = []
    baseline_errors: dict[str, list[Tensor]] = {}
    for batch in batches:
        if batch.plans is None or batch.commands is None:
            raise UserError(
                "Open-loop evaluation needs plans and commands; open data with trajectories."
            )
        driven = batch.plans.float()  # (B, T, K, 2); the model plans from the last frame
        tokens = _tokens(batch, camera).to(device)
        command = batch.commands[:, -1].to(device)
        predicted = model.act(tokens, command, samples=samples, steps=steps, rng=rng).float().cpu()
        if predicted.shape[2:] != driven.shape[2:]:
            raise UserError(
                f"The model plans {tuple(predicted.shape[2:])} (steps, coordinates) and the data "
                f"holds {tuple(driven.shape[2:])}; read the data with the model's horizon."
            )
        plans += _plans(batch, predicted, driven[:, -1], before=len(plans))
        errors.append(min_ade(predicted, driven[:, -1])[0])
        for name, plan in baseline_plans(driven).items():
            error = min_ade(plan[:, None], driven[:, -1])[0]
            baseline_errors.setdefault(name, []).append(error)
    values = _joined(errors)
    baselines = {name: _joined(parts) for name, parts in baseline_errors.items()}
    drives = np.array([plan.episode for plan in plans])
    commands = np.array([plan.command for plan in plans])
    if not 0 <= commands.min() <= commands.max() < len(COMMANDS):
        raise UserError(
            f"Commands should lie in 0..{len(COMMANDS) - 1}, found "
            f"{commands.min()}..{commands.max()}."
        )
    occurring = {name: commands == i for i, name in enumerate(COMMANDS) if (commands == i).any()}

    def mean(distances: np.ndarray, rows: np.ndarray | slice = slice(None)) -> Estimate:
        return clustered_estimate(distances[rows], drives[rows], unit="m", higher_is_better=False)

    return OpenLoopResult(
        samples=samples,
        steps=steps,
        seed=seed,
        min_ade=mean(values),
        per_command={name: mean(values, rows) for name, rows in occurring.items()},
        baselines={name: mean(distances) for name, distances in baselines.items()},
        windows={name: int(rows.sum()) for name, rows in occurring.items()},
        plans=plans,
        examples=_first_of_each(plans, examples),
    )


def _plans(batch: Batch, predicted: Tensor, truth: Tensor, *, before: int) -> list[Plan]:
    """The windows of a batch that follows `before` others, with what was planned and driven."""
    assert batch.commands is not None
    rows = range(len(truth))
    steps = [before + row for row in rows] if batch.index is None else batch.index[:, 1].tolist()
    drives, commands = _drives(batch, before).tolist(), batch.commands[:, -1].tolist()
    return [
        Plan(predicted[i].numpy(), truth[i].numpy(), commands[i], drives[i], steps[i]) for i in rows
    ]


def _first_of_each(plans: Sequence[Plan], most: int) -> list[int]:
    """Numbers of the first windows of every drive and command, at most so many."""
    first: dict[tuple[int, int], int] = {}
    for i, plan in enumerate(plans):
        first.setdefault((plan.episode, plan.command), i)
    return list(first.values())[: max(most, 0)]


def baseline_plans(plans: Tensor) -> dict[str, Tensor]:
    """Plans that need no model, to judge a distance by.

    "standing still" stays where it is. "straight on" keeps the heading and the speed, which is told
    by the way from the frame before; windows of one frame tell none.

    Args:
        plans: what was driven, metres, (B, T, K, 2); waypoints as far apart in time as frames.

    Returns:
        name -> (B, K, 2), from the last frame on.
    """
    still = torch.zeros_like(plans[:, -1])
    if plans.shape[1] < 2:
        return {"standing still": still}
    # The first waypoint of the frame before is the last frame's place: the way of one step (B, 2).
    step = plans[:, -2, 0]
    distance = torch.linalg.vector_norm(step, dim=-1).copysign(step[:, 0])  # negative: backwards
    steps = torch.arange(1, plans.shape[2] + 1, dtype=plans.dtype, device=plans.device)
    straight = torch.stack([distance[:, None] * steps, still[..., 1]], dim=-1)
    return {"standing still": still, "straight on": straight}


def min_ade(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Average displacement error of the nearest of k paths.

    Args:
        predicted: (B, k, K, A).
        truth: (B, K, A).

    Returns:
        The error (B,), which is the Euclidean distance averaged over the K steps, least over the k
        paths; and the path that has it, int64 (B,).

    Raises:
        UserError: the shapes do not fit.
    """
    if predicted.ndim != 4 or predicted.shape[1] < 1 or predicted[:, 0].shape != truth.shape:
        raise UserError(
            f"minADE compares (B, k, K, A) with (B, K, A), found {tuple(predicted.shape)} and "
            f"{tuple(truth.shape)}."
        )
    errors = torch.linalg.vector_norm(predicted - truth[:, None], dim=-1).mean(-1)  # (B, k)
    least = errors.min(dim=1)
    return least.values, least.indices


def _tokens(batch: Batch, camera: str) -> Tensor:
    if camera not in batch.tokens:
        raise UserError(
            f"The data has no tokens of camera '{camera}' (it has {sorted(batch.tokens)}); "
            "run `foreact tokenize` first."
        )
    return batch.tokens[camera]


def _drives(batch: Batch, before: int) -> Tensor:
    """The episode of each window, (B,); windows without one count as a drive each."""
    if batch.index is None:
        return torch.arange(before, before + len(batch))
    return batch.index[:, 0].cpu()


def _joined(parts: Sequence[Tensor]) -> np.ndarray:
    if not parts:
        raise UserError("There is no window to measure; give longer drives or another split.")
    return torch.cat(list(parts)).numpy()
