"""`foreact eval control`: several policies, one protocol, one table.

Every policy acts in the same episodes; what is measured already, under the same protocol, is not
measured again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreact.checkpoints.configs import config_from_json, read_json
from foreact.checkpoints.format import load_checkpoint
from foreact.checkpoints.shipped import resolve
from foreact.errors import UserError
from foreact.evals.closed_loop import ClosedLoopResult, read_closed_loop, versions
from foreact.families.voc.action_values import ONE_STEP
from foreact.families.voc.cloning.policy import CloningOptions
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.policy import OccupancyOptions, PlanningConfig
from foreact.files import write_json
from foreact.runs.acting import (
    BASELINES,
    TEST_SEED,
    measure,
    open_policy,
    report_scores,
    seconds_per_plan,
    with_variant,
)
from foreact.runs.command_line import arguments_of, command_line
from foreact.runs.results import open_results
from foreact.runs.run import say
from foreact.seeds import require_seeds
from foreact.tasks import find_task
from foreact.types import Policy
from foreact.worlds import Task

FAMILY = {"bc": "bc", "bc-draw": "bc", "one-step": "voc", "voc": "voc"}
"""Kind of policy -> family of its weights."""


@dataclass(frozen=True)
class TableRow:
    """One row of the table.

    Attributes:
        name: what it is called there.
        kind: a baseline, or one of `FAMILY`.
        weights: a checkpoint, or the baseline's name.
        gamma: discount of an occupancy model; None for everyone else.
    """

    name: str
    kind: str
    weights: str
    gamma: float | None = None


def control(
    task: str = "cheetah-run",
    policies: tuple[str, ...] = ("random",),
    gammas: tuple[float, ...] = (),
    prior: str | None = None,
    episodes: int = 20,
    first_seed: int = TEST_SEED,
    max_steps: int | None = None,
    execute: int = 1,
    planning: PlanningConfig = PlanningConfig(),  # noqa: B008 - frozen
    variant: str | None = None,
    videos: int = 1,
    workers: int | None = None,
    out: Path = Path("runs/control"),
    device: str | None = None,
) -> None:
    """Compare policies in the simulator on the same episodes: a table, a report and films.

    A policy that was measured into --out before, by the same protocol, is read from there.

    Args:
        task: where to act.
        policies: "random" or "do-nothing", or KIND:WEIGHTS: bc (the mode of behaviour cloning),
            bc-draw (draws from it), one-step (rollouts of a VOC that knows gamma 0) or voc
            (planning with a VOC, one row per other gamma).
        gammas: discounts of the occupancy models; default: all that each was trained for.
        prior: weights of behaviour cloning that propose actions to the planners; default: those
            among the policies, if there are any.
        episodes: one per seed.
        first_seed: seed of the first.
        max_steps: steps of an episode, one action each; default: the environment's own limit.
        execute: actions played before planning again.
        planning: how planners search; its gamma is the discount of rollouts, which only one-step
            policies take.
        variant: a variant of the task's environment, such as no-shadows, as in the data that the
            policies learned from; default: the task's choice.
        videos: episodes of each policy to film.
        workers: simulator processes; default one per core.
        out: folder of the results.
        device: where the policies compute; default CUDA if there is one.
    """
    asked = arguments_of(control, locals())
    require_seeds(first_seed, episodes)
    # A table may be extended by more policies; what they are measured by stays.
    protocol = {k: v for k, v in asked.items() if k not in ("policies", "gammas", "prior")}
    folder = open_results(out, "eval control", protocol)
    if planning.rollouts:
        raise UserError(
            "Rollouts are asked for as one-step:WEIGHTS among --policies; leave out "
            "--planning.rollouts."
        )
    loaded_task = with_variant(find_task(task), variant)
    rows = table_rows(policies, gammas)
    if prior is None:
        prior = next((row.weights for row in rows if FAMILY.get(row.kind) == "bc"), None)
    checkpoints = {row.weights for row in rows if row.kind in FAMILY}
    if prior is not None:
        checkpoints.add(prior)
    for weights in checkpoints:
        _require_same_pictures(weights, loaded_task)
    opened: dict[str, Policy] = {}
    for row in rows:
        options: Any = None
        if row.kind in ("voc", "one-step"):
            rollouts = row.kind == "one-step"
            search = dataclasses.replace(
                planning, gamma=planning.gamma if rollouts else row.gamma, rollouts=rollouts
            )
            options = OccupancyOptions(prior=prior, planning=search)
        elif row.kind in ("bc", "bc-draw"):
            options = CloningOptions(draw=row.kind == "bc-draw")
        opened[row.name] = open_policy(
            row.weights, loaded_task, options, execute=execute, device=device
        )
    seeds = range(first_seed, first_seed + episodes)
    requests = {
        name: {
            "env": loaded_task.env,
            "score": loaded_task.score,
            "seeds": list(seeds),
            "max_steps": max_steps,
            "videos": videos,
            **policy.describe(),
        }
        for name, policy in opened.items()
    }
    for name, request in requests.items():
        _require_same(out / name, request)
    say(
        "Control",
        task=f"{loaded_task.name} ({loaded_task.env})",
        policies=", ".join(row.name for row in rows),
        prior=prior or "none",
        episodes=f"{episodes}, seeds {first_seed}..{first_seed + episodes - 1}",
        out=out,
    )
    results = []
    for name, policy in opened.items():
        results.append(_measured(loaded_task, policy, name, out, requests[name], workers))
        print(_line(results[-1]))
    write_json(out / "control.json", to_json(loaded_task, results))
    report = report_scores(
        out,
        loaded_task,
        results,
        title=f"Control: {loaded_task.name}",
        facts={"command": command_line("eval control", asked)},
    )
    folder.finish()
    print(f"{loaded_task.score_note}\nTable: {out / 'control.json'}\nReport: {report}")


def table_rows(policies: tuple[str, ...], gammas: tuple[float, ...]) -> list[TableRow]:
    """The rows that the command line asks for, in its order.

    Raises:
        UserError: an unknown kind, weights of another one, a row twice, or a gamma that no model
            knows.
    """
    rows = [row for policy in policies for row in _rows_of_policy(policy)]
    trained = sorted({row.gamma for row in rows if row.gamma is not None})
    if unknown := [gamma for gamma in gammas if gamma not in trained]:
        raise UserError(
            f"No model among the policies was trained for gamma {unknown[0]:g}; they know "
            f"{trained}."
        )
    rows = [row for row in rows if row.gamma is None or not gammas or row.gamma in gammas]
    names = [row.name for row in rows]
    if not names or len(set(names)) < len(names):
        found = "none" if not names else f"{next(n for n in names if names.count(n) > 1)} twice"
        raise UserError(
            f"A table needs one or more different policies, found {found}; measure those into "
            "another --out."
        )
    return rows


def _rows_of_policy(policy: str) -> list[TableRow]:
    """The rows of one entry of --policies."""
    kind, colon, weights = policy.partition(":")
    if not colon and kind in BASELINES:
        return [TableRow(kind, kind, kind)]
    if kind not in FAMILY or not weights:
        raise UserError(
            f"A policy should be one of {', '.join(BASELINES)} or KIND:WEIGHTS with one of the "
            f"kinds {', '.join(FAMILY)}, found '{policy}'."
        )
    checkpoint = load_checkpoint(resolve(weights), of=FAMILY[kind], who=kind)
    if checkpoint.family != "voc":
        return [TableRow(kind, kind, weights)]
    gammas = config_from_json(VOCConfig, checkpoint.config).gammas
    usable = [gamma for gamma in gammas if (gamma == ONE_STEP) == (kind == "one-step")]
    if not usable:
        raise UserError(
            f"{weights} was trained with the gammas {list(gammas)}: name it "
            f"{'one-step' if kind == 'voc' else 'voc'}:{weights}, or other weights; a one-step "
            "model has gamma 0."
        )
    if kind == "one-step":
        return [TableRow(kind, kind, weights)]
    return [TableRow(f"voc-{gamma:g}", kind, weights, gamma) for gamma in usable]


def to_json(task: Task, results: list[ClosedLoopResult]) -> dict[str, Any]:
    """The table."""
    rows = [
        {
            "policy": r.name,
            "score": dataclasses.asdict(r.score),
            "seconds_per_plan": seconds_per_plan(r),
            "episodes": [e.score for e in r.episodes],
            "protocol": dict(r.protocol),
        }
        for r in results
    ]
    seeds = [e.seed for e in results[0].episodes]
    return {"format": 1, "task": task.name, "seeds": seeds, "rows": rows, "versions": versions()}


def _measured(
    task: Task,
    policy: Policy,
    name: str,
    out: Path,
    request: Mapping[str, Any],
    workers: int | None,
) -> ClosedLoopResult:
    """The result in `out / name`, which answers the same request, or a new one."""
    request_file = out / name / "request.json"
    if request_file.is_file():
        return read_closed_loop(out / name)
    result = measure(
        task,
        policy,
        request["seeds"],
        name,
        out,
        videos=request["videos"],
        workers=workers,
        max_steps=request["max_steps"],
    )
    write_json(request_file, dict(request))
    return result


def _require_same(folder: Path, request: Mapping[str, Any]) -> None:
    """See that no other measurement lies in the folder of a policy."""
    path = folder / "request.json"
    if path.is_file() and (before := read_json(path)) != request:
        differing = [name for name in request if before.get(name) != request[name]]
        raise UserError(
            f"{folder} holds a measurement with other {' and '.join(differing) or 'settings'}; "
            "name another --out."
        )


def _line(result: ClosedLoopResult) -> str:
    return f"{result.name:<16}score {result.score}   {seconds_per_plan(result):.3g} s per plan"


def _require_same_pictures(weights: str, task: Task) -> None:
    """Weights that say whether their data had shadows are not shown others."""
    learned = shadows_variant(load_checkpoint(resolve(weights)).card)
    if learned is None or task.env is None:
        return
    if task.variants.get(learned, task.env) != task.env:
        raise UserError(
            f"{weights} learned from pictures of the variant '{learned}'; give --variant {learned}."
        )


def shadows_variant(attributes: Mapping[str, Any]) -> str | None:
    """Variant of the environment that the attribute "shadows" of a store or card tells of."""
    variants: dict[Any, str] = {True: "shadows", False: "no-shadows"}
    return variants.get(attributes.get("shadows"))
