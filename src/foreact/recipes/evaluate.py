"""`foreact eval`: scores in closed loop, and the quality of imagined video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from foreact.evals import closed_loop as loop
from foreact.evals.report import Media, write_report
from foreact.evals.video import VideoQuality, save_examples, video_quality
from foreact.policies.baselines import DoNothing, RandomPolicy
from foreact.policies.uva import UVAPolicy, load_policy
from foreact.recipes.runs import pick_device, say, write_json
from foreact.recipes.stores import open_held_out_store
from foreact.recipes.tasks import find_task
from foreact.types import Policy, Task, UserError
from foreact.weights.shipped import resolve

TEST_SEED = 100_000
"""First of the held-out seeds; no collection may contain them."""
BASELINES = {"do-nothing": DoNothing, "random": RandomPolicy}


def closed_loop(
    weights: str = "uva-pusht",
    task: str = "pusht",
    seeds: int = 50,
    first_seed: int = TEST_SEED,
    execute: int = 8,
    temperature: float = 0.95,
    steps: int | None = None,
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
        execute: actions played before planning again.
        temperature: of sampling; 0 takes the likeliest course.
        steps: sampling steps; default: the model's own.
        videos: episodes to film.
        workers: simulator processes; default one per core.
        baselines: policies to measure on the same seeds.
        out: folder of the results.
        device: where the policy computes; default CUDA if there is one.
    """
    found = find_task(task)
    policies = {weights: open_policy(weights, found, execute, temperature, steps, device)}
    policies |= {name: open_policy(name, found, execute, temperature, steps, device) for name in baselines}
    for name, policy in policies.items():
        if isinstance(policy, UVAPolicy) and not policy.model.config.predict_action:
            raise UserError(
                f"'{name}' was trained to foresee video only and cannot act; name weights of stage 'joint'."
            )
    say("Closed loop", task=task, weights=weights, seeds=f"{first_seed}..{first_seed + seeds - 1}", out=out)
    results = run_closed_loop(found, policies, range(first_seed, first_seed + seeds), out, videos, workers)
    for result in results:
        print(f"{result.name:<24}score {result.score}   solved {result.success}")
    report = write_report(
        out / "report.html", title=f"Closed loop on {task}", score_note=found.score_note, results=results,
        facts={"command": f"foreact eval closed-loop --weights {weights} --task {task} --seeds {seeds}"},
    )  # fmt: skip
    print(f"{found.score_note}\nReport: {report}")


def open_policy(
    weights: str, task: Task, execute: int = 8, temperature: float = 0.95, steps: int | None = None,
    device: str | None = None,
) -> Policy:  # fmt: skip
    """The baseline of that name, or the policy of a checkpoint, checked against the task."""
    if weights in BASELINES:
        return BASELINES[weights](task.spec, execute=execute)
    policy = load_policy(
        resolve(weights), device=pick_device(device), execute=execute, temperature=temperature, steps=steps
    )
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
    if task.env is None:
        raise UserError(f"Nothing simulates task '{task.name}', so nothing can act in it; name a task with an env.")
    results = []
    for i, (name, policy) in enumerate(policies.items()):
        short = Path(name).name
        results.append(
            loop.closed_loop(
                task.env,
                policy,
                seeds,
                name=short,
                out_dir=out / short,
                videos=videos if i == 0 else 0,
                workers=workers,
            )
        )
    return results


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
