"""`foreact eval`: scores in closed loop, and the quality of imagined video."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from foreact.evals import closed_loop as loop
from foreact.evals.report import Media, write_report
from foreact.evals.video import VideoQuality, save_examples, video_quality
from foreact.policies.baselines import DoNothing, RandomPolicy
from foreact.policies.cloning import load_cloning_policy
from foreact.policies.occupancy import PlanningConfig, load_planning_policy
from foreact.policies.uva import UVAPolicy, load_policy
from foreact.recipes.runs import pick_device, say, write_json
from foreact.recipes.stores import open_held_out_store
from foreact.recipes.tasks import find_task
from foreact.types import Policy, Task, UserError
from foreact.weights.format import family_of
from foreact.weights.shipped import resolve

TEST_SEED = 100_000
"""First of the held-out seeds; no collection may contain them."""
BASELINES = {"do-nothing": DoNothing, "random": RandomPolicy}
TEMPERATURE = 0.95
"""Of UVA's sampling."""
PLAIN = "_plain"
"""End of the name of an environment without shadows."""


def closed_loop(
    weights: str = "uva-pusht",
    task: str = "pusht",
    seeds: int = 50,
    first_seed: int = TEST_SEED,
    execute: int | None = None,
    temperature: float = TEMPERATURE,
    steps: int | None = None,
    prior: str | None = None,
    planning: PlanningConfig = PlanningConfig(),  # noqa: B008 - frozen
    shadows: bool | None = None,
    videos: int = 4,
    workers: int | None = None,
    baselines: tuple[Literal["do-nothing", "random"], ...] = (),
    out: Path = Path("runs/closed-loop"),
    device: str | None = None,
) -> None:
    """Let a policy act in the simulator, one episode per seed, and write scores, films and a report.

    Args:
        weights: a checkpoint folder, a shipped name, or "do-nothing" or "random".
        task: where to act.
        seeds: how many episodes.
        first_seed: seed of the first.
        execute: actions played before planning again; default 8, and 1 for behaviour cloning and VOC.
        temperature: of UVA's sampling; 0 takes the likeliest course.
        steps: UVA's sampling steps; default: the model's own.
        prior: weights of behaviour cloning that propose actions to VOC's planner.
        planning: how VOC searches for actions.
        shadows: DeepMind Control only: whether pictures have shadows, as in the data that the policy learned from;
            default: the task's choice.
        videos: episodes to film.
        workers: simulator processes; default one per core.
        baselines: policies to measure on the same seeds.
        out: folder of the results.
        device: where the policy computes; default CUDA if there is one.
    """
    found = lit(find_task(task), shadows)
    family = None if weights in BASELINES else family_of(resolve(weights))
    for option, reader, given in (
        ("prior", "voc", prior is not None),
        ("planning", "voc", planning != PlanningConfig()),
        ("temperature", "uva", temperature != TEMPERATURE),
        ("steps", "uva", steps is not None),
    ):
        if given and family != reader:
            raise UserError(f"--{option} is for weights of the family '{reader}'; leave it out with '{weights}'.")
    policies = {
        weights: open_policy(weights, found, execute, temperature, steps, device, prior=prior, planning=planning)
    }
    policies |= {name: open_policy(name, found, execute, temperature, steps, device) for name in baselines}
    for name, policy in policies.items():
        if isinstance(policy, UVAPolicy) and not policy.model.config.predict_action:
            raise UserError(
                f"'{name}' was trained to foresee video only and cannot act; name weights of stage 'joint'."
            )
    say("Closed loop", task=task, weights=weights, seeds=f"{first_seed}..{first_seed + seeds - 1}", out=out)
    results = run_closed_loop(found, policies, range(first_seed, first_seed + seeds), out, videos, workers)
    for result in results:
        solved = "" if result.success is None else f"   solved {result.success}"
        print(f"{result.name:<24}score {result.score}{solved}")
    facts = {"command": f"foreact eval closed-loop --weights {weights} --task {task} --seeds {seeds}"}
    report = report_scores(out, found, results, title=f"Closed loop on {task}", facts=facts)
    print(f"{found.score_note}\nReport: {report}")


def lit(task: Task, shadows: bool | None) -> Task:
    """The task with shadows in its pictures, without them, or as it is; an environment `f` has none as `f_plain`."""
    if shadows is None or task.env is None:
        return task
    env = task.env.removesuffix(PLAIN)
    return dataclasses.replace(task, env=env if shadows else env + PLAIN)


def open_policy(
    weights: str, task: Task, execute: int | None = None, temperature: float = TEMPERATURE, steps: int | None = None,
    device: str | None = None, *, prior: str | None = None, planning: PlanningConfig | None = None, draw: bool = False,
) -> Policy:  # fmt: skip
    """The baseline of that name, or the policy of a checkpoint, checked against the task.

    Args:
        weights: a baseline, a checkpoint folder or a shipped name.
        task: where it shall act.
        execute, prior, planning: see `closed_loop`.
        temperature, steps: of UVA's sampling.
        device: where to compute.
        draw: behaviour cloning plays draws from its distribution instead of the mode.
    """
    if weights in BASELINES:
        return BASELINES[weights](task.spec, execute=8 if execute is None else execute)
    path, where = resolve(weights), pick_device(device)
    family = family_of(path)
    # A CPU gains little from large calls, and calls that are filled up cost as much as full ones.
    on_codes: dict[str, Any] = {
        "device": where,
        "execute": 1 if execute is None else execute,
        "batch_size": 1 if where.type == "cpu" else 32,
    }
    policy: Policy
    if family == "voc":
        proposer = None if prior is None else resolve(prior)
        policy = load_planning_policy(path, prior=proposer, planning=planning, **on_codes)
    elif family == "bc":
        policy = load_cloning_policy(path, draw=draw, **on_codes)
    else:
        chunk = 8 if execute is None else execute
        policy = load_policy(path, device=where, execute=chunk, temperature=temperature, steps=steps)
    task.spec.require_equal(policy.spec, f"task '{task.name}'", f"weights '{weights}'")
    return policy


def open_imagining(weights: str, task: Task, device: str | None) -> UVAPolicy:
    """`open_policy` for a model that can be asked for futures."""
    policy = open_policy(weights, task, device=device)
    if not isinstance(policy, UVAPolicy):
        raise UserError(f"'{weights}' imagines nothing; name weights of UVA.")
    return policy


def run_closed_loop(
    task: Task, policies: dict[str, Policy], seeds: Sequence[int], out: Path, videos: int, workers: int | None
) -> list[loop.ClosedLoopResult]:
    """Every policy on the same seeds; only the first is filmed."""
    return [
        measure(task, policy, seeds, Path(name).name, out, videos=videos if i == 0 else 0, workers=workers)
        for i, (name, policy) in enumerate(policies.items())
    ]


def measure(
    task: Task, policy: Policy, seeds: Sequence[int], name: str, out: Path, *, videos: int, workers: int | None,
    max_steps: int | None = None,
) -> loop.ClosedLoopResult:  # fmt: skip
    """Score one policy by the task's rule, into the folder `out / name`."""
    if task.env is None:
        raise UserError(f"Nothing simulates task '{task.name}', so nothing can act in it; name a task with an env.")
    # A sum has no range, and no value from which on it means that the task is solved.
    rule: dict[str, Any] = {} if task.score == "max" else {"score": "sum", "score_range": None, "success_at": None}
    return loop.closed_loop(
        task.env, policy, seeds, name=name, out_dir=out / name, videos=videos, workers=workers, max_steps=max_steps,
        **rule,
    )  # fmt: skip


def report_scores(
    out: Path, task: Task, results: Sequence[loop.ClosedLoopResult], *, title: str, facts: Mapping[str, Any]
) -> Path:
    """Write `report.html` into `out`; returns its path."""
    return write_report(out / "report.html", title=title, score_note=task.score_note, results=results, facts=facts)


def seconds_per_plan(result: loop.ClosedLoopResult) -> float:
    """Computing time for one decision of one episode, where episodes share calls: their share."""
    return result.latency["mean_ms_per_chunk"] / 1e3


def video(
    weights: str = "uva-pusht",
    task: str = "pusht",
    data: Path | None = None,
    windows_per_episode: int = 4,
    episodes: int = 16,
    seed: int = 0,
    examples: int = 4,
    out: Path = Path("runs/video"),
    device: str | None = None,
) -> None:
    """Compare imagined with true futures: PSNR and SSIM, with and without the true actions, beside copying.

    Args:
        weights: a checkpoint folder or a shipped name.
        task: whose data to use.
        data: a store of episodes that training has not seen; default: fresh ones, shown by the task's expert on seeds
            that no training uses.
        windows_per_episode: windows drawn from each episode.
        episodes: at most so many.
        seed: decides windows and draws.
        examples: windows to draw side by side.
        out: folder of the results.
        device: where to compute; default CUDA if there is one.
    """
    found = find_task(task)
    policy = open_imagining(weights, found, device)
    store = open_held_out_store(found, data)
    held_out = list(range(min(episodes, len(store.lengths))))
    say("Video quality", task=task, weights=weights, data=store.path, episodes=len(held_out), out=out)
    qualities: list[VideoQuality] = []
    futures: list[Media] = []
    for mode in ("video", "dynamics"):
        quality = video_quality(
            policy, store, held_out, mode=mode, windows_per_episode=windows_per_episode, seed=seed, examples=examples
        )
        qualities.append(quality)
        print(f"{mode}: " + ", ".join(f"{name} {value}" for name, value in quality.estimates.items()))
        for path in save_examples(quality, out / mode, fps=found.spec.fps):
            futures.append(Media(path, f"{mode}: {path.stem}"))
        write_json(out / f"{mode}.json", quality.to_json())
    report = write_report(out / "report.html", title=f"Imagined futures on {task}", quality=qualities, futures=futures)
    print(f"Report: {report}")
