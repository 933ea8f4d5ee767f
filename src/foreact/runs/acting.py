"""Acting: a policy from a checkpoint or a baseline's name, and its score on a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreact.checkpoints.format import family_of
from foreact.checkpoints.shipped import resolve
from foreact.errors import UserError, did_you_mean
from foreact.evals import closed_loop as loop
from foreact.evals.report import write_report
from foreact.plugs import FAMILIES
from foreact.policies.baselines import DoNothing, RandomPolicy
from foreact.runs.run import pick_device
from foreact.runs.stores import policy_spec
from foreact.types import Policy
from foreact.worlds import Task

TEST_SEED = 100_000
"""First of the held-out seeds; no collection may contain them."""
BASELINES = {"do-nothing": DoNothing, "random": RandomPolicy}


def load_policy(
    weights: str | Path, *, execute: int | None = None, device: str | None = None, **options: Any
) -> Policy:
    """The policy of a checkpoint, of any family that acts.

    Args:
        weights: a checkpoint folder or a shipped name.
        execute: actions played before planning again; None: what is usual for the family.
        device: where it computes; None: CUDA if there is one.
        options: the family's own, such as `temperature` for "uva"; `foreact eval closed-loop
            --weights WEIGHTS --help` explains them.

    Raises:
        UserError: there are no such weights, they cannot act, or an option is unknown.
    """
    path = resolve(weights)
    family = FAMILIES.find(family_of(path))
    opener = family.get("policy")
    cls = None if family.policy_options is None else family.get("policy_options")
    option_names = [] if cls is None else [f.name for f in dataclasses.fields(cls)]
    if unknown := [name for name in options if name not in option_names]:
        raise UserError(
            f"Policies of the family '{family.name}' have no option '{unknown[0]}'"
            f"{did_you_mean(unknown[0], option_names)}"
        )
    policy_options = None if cls is None else cls(**options)
    return opener(path, policy_options, execute=execute, device=pick_device(device))


def open_policy(
    weights: str,
    task: Task,
    options: Any = None,
    *,
    execute: int | None = None,
    device: str | None = None,
) -> Policy:
    """The baseline of that name, or the policy of a checkpoint, checked against the task.

    Args:
        weights: a baseline, a checkpoint folder or a shipped name.
        task: where it shall act.
        options: the family's `policy_options`; None: its defaults.
        execute, device: see `load_policy`.
    """
    if weights in BASELINES:
        return BASELINES[weights](task.spec, execute=8 if execute is None else execute)
    path = resolve(weights)
    opener = FAMILIES.find(family_of(path)).get("policy")
    policy: Policy = opener(path, options, execute=execute, device=pick_device(device))
    policy_spec(task).require_equal(policy.spec, f"task '{task.name}'", f"weights '{weights}'")
    return policy


def with_variant(task: Task, variant: str | None) -> Task:
    """The task with that variant of its environment; None: with its own."""
    if variant is None:
        return task
    if variant not in task.variants:
        raise UserError(
            f"Task '{task.name}' has no variant '{variant}'{did_you_mean(variant, task.variants)}"
        )
    return dataclasses.replace(task, env=task.variants[variant])


def run_closed_loop(
    task: Task,
    policies: Mapping[str, Policy],
    seeds: Sequence[int],
    out: Path,
    videos: int,
    workers: int | None,
) -> list[loop.ClosedLoopResult]:
    """Every policy on the same seeds; only the first is filmed.

    Args:
        task: where they act.
        policies: what each is called in tables -> itself.
        seeds: one per episode.
        out: folder of the results, which go to `out / name`.
        videos: episodes of the first to film.
        workers: simulator processes; None: one per core.
    """
    return [
        measure(task, policy, seeds, name, out, videos=videos if i == 0 else 0, workers=workers)
        for i, (name, policy) in enumerate(policies.items())
    ]


def policy_name(weights: str) -> str:
    """What tables call the policy of some weights: its run, where they are those of a run."""
    if weights in BASELINES:
        return weights
    path = Path(weights).expanduser().absolute()
    folder = path.parent if path.name == "weights" else path
    name = folder.name
    if folder.parent.name == "checkpoints":  # of one step of a run
        name = f"{folder.parent.parent.name}-{name}"
    return f"{name}-weights" if name in BASELINES else name


def measure(
    task: Task,
    policy: Policy,
    seeds: Sequence[int],
    name: str,
    out: Path,
    *,
    videos: int,
    workers: int | None,
    max_steps: int | None = None,
) -> loop.ClosedLoopResult:
    """Score one policy by the task's rule, into the folder `out / name`."""
    if task.env is None:
        raise UserError(
            f"Nothing simulates task '{task.name}', so nothing can act in it; name a "
            "task with an env."
        )
    rule: dict[str, Any] = {}
    if task.score == "sum":  # has no range, and no value that means the task is solved
        rule = {"score": "sum", "score_range": None, "success_at": None}
    return loop.closed_loop(
        task.env,
        policy,
        seeds,
        name=name,
        out_dir=out / name,
        videos=videos,
        workers=workers,
        max_steps=max_steps,
        **rule,
    )


def report_scores(
    out: Path,
    task: Task,
    results: Sequence[loop.ClosedLoopResult],
    *,
    title: str,
    facts: Mapping[str, Any],
) -> Path:
    """Write `report.html` into `out`; returns its path."""
    return write_report(
        out / "report.html", title=title, score_note=task.score_note, results=results, facts=facts
    )


def seconds_per_plan(result: loop.ClosedLoopResult) -> float:
    """Computing time for one decision of one episode, where episodes share calls: their share."""
    return result.latency["mean_ms_per_chunk"] / 1e3
