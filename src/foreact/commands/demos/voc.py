"""`foreact demo voc`: sampled futures, values and a planned episode in one report.

    episodes of three grades ─► tokenizer ─► codes ─┬─► VOC, told gamma and actions ─► futures,
    values ─┬─► report
                                                    └─► behaviour cloning ─► planned episode ──┘

The same calls with more episodes and steps make the real thing.
"""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import torch

from foreact.checkpoints.configs import config_to_json
from foreact.commands.demos.stages import Stages
from foreact.data.stores.store import open_store
from foreact.envs.collect_dmc import collect_store
from foreact.errors import UserError
from foreact.evals.closed_loop import read_closed_loop
from foreact.evals.report import write_report
from foreact.families.codes import train_vq as vq
from foreact.families.voc import train as voc
from foreact.families.voc.cloning import train as cloning
from foreact.families.voc.control import control, shadows_variant
from foreact.families.voc.evals.value_figures import values_section
from foreact.families.voc.evaluate_values import values
from foreact.families.voc.imagine import generate
from foreact.families.voc.policy import PlanningConfig
from foreact.runs.command_line import arguments_of, command_line
from foreact.tasks import find_task
from foreact.train.config import TrainConfig
from foreact.train.logs import read_log
from foreact.worlds import Task

TOKENIZER = dataclasses.replace(vq.SMALL, image_size=(40, 40), codes=256)
"""5 x 5 codes a frame, as in the paper."""
GAMMAS = (0.5, 0.8, 0.95)
PLANNED = 0.8
VAL_RATIO = 0.25
DECISIONS = 200
"""Actions of the planned episode."""
ACTIONS = 4
"""First actions that a candidate names, all of which are played."""
PLANNING = PlanningConfig(planner="shooting", prior_share=1.0, candidates=24, samples=4)


def demo(
    out: Path = Path("runs/demo-voc"),
    task: str = "cheetah-run",
    data: Path | None = None,
    episodes: int = 15,
    effort: float = 1.0,
    decisions: int = DECISIONS,
) -> None:
    """Collect episodes, train a tokenizer, a VOC and behaviour cloning, and write one report.

    Sampled futures at three gammas beside true ones, values against true returns, and an episode
    that is planned with them, on episodes and seeds that no training saw. It says at its start how
    long it takes here; a demo that was stopped goes on where it was.

    Args:
        out: folder of everything, and of report.html.
        task: cheetah-run or walker-walk, or any task with --data.
        data: a store to learn from instead of new episodes.
        episodes: how many to collect: a third each by random actions, a weak and a good planner on
            the simulator.
        effort: factor on all training steps and on the number of states measured.
        decisions: length of the planned episode, in actions.
    """
    command = command_line("demo voc", arguments_of(demo, locals()))
    if episodes < 4 or not effort > 0 or decisions < 1:
        raise UserError(
            "The demo needs 4 episodes or more, a positive effort and 1 decision or more, found "
            f"{episodes}, {effort} and {decisions}."
        )
    titles = (
        "Episodes",
        "Tokenizer",
        "Video occupancy model, and behaviour cloning",
        "Futures and values",
        "Acting",
    )
    stages = Stages("demo voc", *titles)
    definition = find_task(task)
    stages.begin()
    store = _collected(definition, out, episodes) if data is None else data
    opened = open_store(store, definition.spec)
    print(f"  {len(opened)} in {store}")

    def steps(count: int) -> int:
        return max(2, round(count * effort))

    def rhythm(train: TrainConfig, count: int, batch_size: int, **changes: Any) -> TrainConfig:
        n = steps(count)
        return dataclasses.replace(
            train,
            steps=n,
            batch_size=batch_size,
            warmup=min(train.warmup, n // 10),
            save_every=n,
            eval_every=n,
            **changes,
        )

    stages.begin()
    tokenizer = vq.VQRun(
        task=task, data=store, out=out / "tokenizer", val_ratio=VAL_RATIO, model=TOKENIZER
    )
    # Small batches and large steps learn most from the pictures that there is time for.
    tokens = str(
        vq.train_vq(dataclasses.replace(tokenizer, train=rhythm(tokenizer.train, 400, 8, lr=3e-3)))
    )

    stages.begin()
    run = voc.recipe("pocket")
    run = dataclasses.replace(
        run,
        task=task,
        data=store,
        tokenizer=tokens,
        actions=True,
        out=out / "voc",
        val_ratio=VAL_RATIO,
        model=dataclasses.replace(run.model, gammas=GAMMAS, action_steps=ACTIONS),
        train=rhythm(run.train, 350, 16),
    )
    weights = str(voc.train_voc(run))
    clone = cloning.CloningRun(
        task=task, data=store, tokenizer=tokens, out=out / "cloning", val_ratio=VAL_RATIO
    )
    # Few episodes are soon learned by heart: the best of five looks at the held-out ones is kept.
    often = dataclasses.replace(rhythm(clone.train, 1000, 128), eval_every=max(1, steps(1000) // 5))
    clone = dataclasses.replace(
        clone, model=dataclasses.replace(clone.model, action_steps=ACTIONS), train=often
    )
    prior = str(cloning.train_bc(clone))

    stages.begin()
    futures = generate(weights, store, states=3, out=out / "futures")
    measured = values(weights, store, states=max(8, steps(80)), samples=48, out=out / "values")

    stages.begin()
    control(
        task,
        policies=(f"voc:{weights}", f"bc:{prior}", "random"),
        gammas=(PLANNED,),
        episodes=1,
        max_steps=decisions,
        execute=ACTIONS,
        planning=PLANNING,
        variant=shadows_variant(opened.attrs),
        out=out / "acting",
    )
    results = [
        read_closed_loop(out / "acting" / name) for name in (f"voc-{PLANNED:g}", "bc", "random")
    ]

    report = write_report(
        out / "report.html",
        title=f"Foreact demo: a video occupancy model of {definition.name}",
        score_note=f"{definition.score_note} Here one episode of {decisions} decisions shows how "
        "planning works, and cannot show how well; `foreact eval control` measures "
        "that.",
        results=results,
        log=read_log(run.out / "log.jsonl"),
        sections=[values_section(measured)],
        futures=futures,
        config=config_to_json(run),
        facts={
            "command": command,
            "minutes": f"{stages.minutes:.1f}",
            "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        },
    )
    stages.conclude()
    print(f"The report, with sampled futures, values and the planned episode: {report}")


def _collected(task: Task, out: Path, episodes: int) -> Path:
    """Mixed episodes of a task of DeepMind Control; those that are there already stay."""
    name = (task.env or "").rpartition(":make_")[2].removesuffix("_plain")
    if not (task.env or "").startswith("foreact.envs.dmc:"):
        raise UserError(
            f"The demo collects episodes of DeepMind Control; for '{task.name}' name "
            "a store with --data."
        )
    return collect_store(f"dmc/{name}", "mixed", episodes, out / f"{task.name}.zarr", shadows=False)
