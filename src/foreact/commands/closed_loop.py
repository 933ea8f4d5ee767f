"""`foreact eval closed-loop`: scores in the simulator."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foreact.checkpoints.format import family_of
from foreact.checkpoints.shipped import resolve
from foreact.errors import UserError
from foreact.plugs import FAMILIES, families_with
from foreact.runs.acting import (
    BASELINES,
    TEST_SEED,
    open_policy,
    policy_name,
    report_scores,
    run_closed_loop,
    with_variant,
)
from foreact.runs.command_line import options_of
from foreact.runs.parse import parse_parts
from foreact.runs.results import open_results
from foreact.runs.run import say
from foreact.runs.words import option_value
from foreact.seeds import require_seeds
from foreact.tasks import find_task


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Let a policy act in the simulator, one episode per seed; write scores, films and a report.

    The last options are those of the policy, and depend on the --weights.
    """

    weights: str = "uva-pusht"
    """A checkpoint folder, a shipped name, or "do-nothing" or "random"."""
    task: str = "pusht"
    """Where to act."""
    variant: str | None = None
    """A variant of the task's environment, such as no-shadows; None: the task's choice."""
    seeds: int = 50
    """How many episodes."""
    first_seed: int = TEST_SEED
    """Seed of the first."""
    execute: int | None = None
    """Actions played before planning again; None: what is usual for the policy."""
    videos: int = 4
    """Episodes to film."""
    workers: int | None = None
    """Simulator processes; None: one per core."""
    baselines: tuple[Literal["do-nothing", "random"], ...] = ()
    """Policies to measure on the same seeds."""
    out: Path = Path("runs/closed-loop")
    """Folder of the results."""
    device: str | None = None
    """Where the policy computes; None: CUDA if there is one."""


def command(args: Sequence[str]) -> None:
    """`foreact eval closed-loop`."""
    weights = option_value(args, "--weights") or ClosedLoop.weights
    parts: list[Any] = [ClosedLoop()]
    if weights not in BASELINES:
        family = FAMILIES.find(family_of(resolve(weights)))
        family.get("policy")
        if family.policy_options is not None:
            parts.append(family.get("policy_options")())
    _require_known(args, parts, weights)
    run, *options = parse_parts(parts, args, prog="foreact eval closed-loop")
    closed_loop(run, *options)


def _require_known(args: Sequence[str], parts: Sequence[Any], weights: str) -> None:
    """Refuse, by name, options of another family's policies; leave unknown ones to the parser."""
    known_options = {f.name for part in parts for f in dataclasses.fields(part)}
    given_options = [
        re.split(r"[.=]", word[2:])[0].replace("-", "_") for word in args if word.startswith("--")
    ]
    for name in (name for name in given_options if name not in known_options):
        options = {
            other: FAMILIES.find(other).get("policy_options")
            for other in families_with("policy_options")
        }
        if owners := [
            o for o, cls in options.items() if name in [f.name for f in dataclasses.fields(cls)]
        ]:
            raise UserError(
                f"--{name.replace('_', '-')} is for weights of the family {' or '.join(owners)}; "
                f"leave it out with '{weights}'."
            )


def closed_loop(asked: ClosedLoop, options: Any = None) -> None:
    """Measure and report.

    Args:
        asked: what to measure, and how.
        options: the `policy_options` of the weights' family; None: its defaults.
    """
    task = with_variant(find_task(asked.task), asked.variant)
    require_seeds(asked.first_seed, asked.seeds)
    policy = open_policy(asked.weights, task, options, execute=asked.execute, device=asked.device)
    policies = {policy_name(asked.weights): policy}
    policies |= {name: open_policy(name, task, execute=asked.execute) for name in asked.baselines}
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    folder = open_results(
        asked.out,
        "eval closed-loop",
        options_of(asked),
        options_of(options),
        weights=str(policy.describe().get("weights", "")),
    )
    say(
        "Closed loop",
        task=asked.task,
        weights=asked.weights,
        seeds=f"{seeds.start}..{seeds.stop - 1}",
        out=asked.out,
    )
    results = run_closed_loop(task, policies, seeds, asked.out, asked.videos, asked.workers)
    for result in results:
        solved = "" if result.success is None else f"   solved {result.success}"
        print(f"{result.name:<24}score {result.score}{solved}")
    report = report_scores(
        asked.out,
        task,
        results,
        title=f"Closed loop on {asked.task}",
        facts={"command": folder.command},
    )
    folder.finish()
    print(f"{task.score_note}\nReport: {report}")
