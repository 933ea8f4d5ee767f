"""`foreact demo`: collect, train, act, imagine and report, all in minutes."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import torch

from foreact.checkpoints.configs import config_from_json, config_to_json
from foreact.checkpoints.format import load_checkpoint
from foreact.checkpoints.shipped import shipped
from foreact.commands.demos.stages import Stages
from foreact.envs.collect import demonstrations_to_store
from foreact.evals.report import Media, write_report
from foreact.evals.seen import Recordings
from foreact.evals.video import save_examples, video_quality
from foreact.families.uva.model import UVA
from foreact.families.uva.opening import open_imagining
from foreact.families.uva.policy import UVAPolicy
from foreact.families.uva.recipes import UVARun, recipe
from foreact.families.uva.train import train_uva
from foreact.runs.acting import TEST_SEED, open_policy, run_closed_loop
from foreact.runs.command_line import arguments_of, command_line
from foreact.runs.stores import open_held_out_store, open_task_store
from foreact.tasks import find_task
from foreact.train.logs import read_log
from foreact.types import Policy

SHIPPED = "uva-pusht"
DEMONSTRATIONS = 120
"""Of the 300 that ship: as many as a few steps of training can see, in a third of the time."""


def demo(
    out: Path = Path("runs/demo"), steps: int = 150, seeds: int = 20, workers: int | None = None
) -> None:
    """Continue the shipped PushT model for a few steps, act on held-out seeds, write a report.

    Everything is real: the simulator draws the demonstrations, the model trains on them, acts in
    the simulator beside three baselines, and imagines futures of episodes it never saw. It prints
    at the start how long it takes on this machine.

    Args:
        out: folder of the run and of report.html; a demo that was stopped goes on.
        steps: optimiser steps of the training.
        seeds: closed-loop episodes.
        workers: simulator processes; default one per core.
    """
    command = command_line("demo", arguments_of(demo, locals()))
    stages = Stages("demo", "Demonstrations", "Training", "Acting", "Imagining")
    task = find_task("pusht")
    stages.begin()
    demonstrations = out / "demonstrations.zarr"
    if not demonstrations.exists():
        out.mkdir(parents=True, exist_ok=True)
        demonstrations_to_store(demonstrations, DEMONSTRATIONS)
    store = open_task_store(task, demonstrations)
    held_out = open_held_out_store(task, None)
    print(
        f"  {len(store.lengths)} to learn from in {store.path}, {len(held_out.lengths)} held "
        f"out in {held_out.path}"
    )

    stages.begin(start=f"the shipped weights '{SHIPPED}'", steps=steps)
    run = continued(out / "training", demonstrations, steps)
    weights = train_uva(run)

    stages.begin(episodes=f"{seeds}, seeds from {TEST_SEED}")
    policies: dict[str, Policy] = {
        "continued": open_policy(str(weights), task),
        "shipped": open_policy(SHIPPED, task),
    }
    policies |= {"untrained": untrained(weights), "random": open_policy("random", task)}
    policies |= {"do-nothing": open_policy("do-nothing", task)}
    results = run_closed_loop(
        task, policies, range(TEST_SEED, TEST_SEED + seeds), out / "acting", 4, workers
    )

    stages.begin(episodes=len(held_out.lengths))
    imagining = open_imagining(weights)
    recordings = Recordings(held_out)
    qualities, futures = [], []
    for mode in ("video", "dynamics"):
        for quality in video_quality(imagining, recordings, range(len(held_out)), mode=mode):
            qualities.append(quality)
            for path in save_examples(quality, out / "imagined", fps=task.spec.fps):
                futures.append(Media(path, path.stem.replace("-", " ")))

    report = write_report(
        out / "report.html",
        title="Foreact demo: the Unified Video Action model on PushT",
        score_note=task.score_note,
        results=results,
        log=read_log(run.out / "log.jsonl"),
        quality=qualities,
        futures=futures,
        config=config_to_json(run),
        facts={
            "command": command,
            "minutes": f"{stages.minutes:.1f}",
            "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        },
    )
    print()
    for result in results:
        print(f"{result.name:<12}score {result.score}   solved {result.success}")
    print(f"\n{task.score_note}")
    stages.conclude()
    print(f"The report, with curves, films and imagined futures: {report}")


def untrained(weights: Path) -> UVAPolicy:
    """The same model with random weights: what training is worth."""
    policy = open_imagining(weights)
    torch.manual_seed(0)
    policy.model.load_state_dict(UVA(policy.model.config).state_dict())
    return policy


def continued(out: Path, demonstrations: Path, steps: int) -> UVARun:
    """A short training that goes on from the shipped weights, at a small and falling rate."""
    run = recipe()
    model = config_from_json(type(run.model), load_checkpoint(shipped(SHIPPED)).config)
    return dataclasses.replace(
        run,
        init=SHIPPED,
        data=demonstrations,
        out=out,
        model=model,
        train=dataclasses.replace(
            run.train,
            steps=steps,
            lr=5e-5,
            schedule="cosine",
            warmup=min(20, steps),
            drop=0,
            log_every=5,
            save_every=steps,
            eval_every=steps,
        ),
    )
