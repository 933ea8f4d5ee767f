"""`foreact demo driving`: from raw frames to plans in one go, on roads drawn for the purpose.

    drawn nuScenes ─► store ─► tokenizer ─► tokens ─► VaViM: pretrain, fine-tune ─► VaVAM ─► minADE,
    imagined drives

The same calls with one's own nuScenes, nuPlan or OpenDV make the real thing; `docs/driving.md` goes
through them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from foreact.commands.demos.stages import Stages
from foreact.errors import UserError
from foreact.families.codes import train_vq as vq
from foreact.families.codes.tokenize import tokenize
from foreact.families.driving import train_vavam as vavam
from foreact.families.driving import train_vavim as vavim
from foreact.families.driving.data import toy_street as toy
from foreact.families.driving.data_verbs import import_nuscenes
from foreact.families.driving.evaluate_open_loop import OpenLoop, open_loop
from foreact.families.driving.imagine import Imagining, generate
from foreact.families.driving.sources import DrivingData
from foreact.families.driving.vavam import ExpertConfig, VaVAMConfig
from foreact.families.driving.vavim import VaViMConfig

# Sizes and steps are those that ten minutes of two cores allow, not those at which anything stops
# getting better.
TOKENIZER = dataclasses.replace(
    vq.SMALL, channels=8, multipliers=(1, 2, 4, 8), norm_groups=4, codes=256, image_size=(72, 128)
)
VIDEO = VaViMConfig(width=128, heads=4, layers=3, frames=4, grid=(9, 16), vocab=256)
ACTION = VaVAMConfig(vavim=VIDEO, expert=ExpertConfig(width=64))


def demo(out: Path = Path("runs/demo-driving"), scenes: int = 60, effort: float = 1.0) -> None:
    """Draw roads, train tokenizer, video model and action expert on them, and score the plans.

    It says at its start how long it takes here; a demo that was stopped goes on where it was.

    Args:
        out: folder of everything.
        scenes: drives of 20 seconds to learn from; six more are held out.
        effort: factor on all training steps.
    """
    if scenes < 4 or not effort > 0:
        raise UserError(
            f"The demo needs 4 scenes or more and a positive effort, found {scenes} and {effort}."
        )
    titles = ("Roads", "Tokenizer", "Video model", "Action expert", "Plans and imagined drives")
    stages = Stages("demo driving", *titles)
    stages.begin(scenes=f"{scenes} to learn from, 6 held out")
    height, width = TOKENIZER.image_size
    for seed, name, count in ((0, "toy", scenes), (1, "held-out", 6)):
        if not (out / f"{name}-nuscenes").exists():
            toy.write_toy_street(out / f"{name}-nuscenes", scenes=count, seed=seed)
        import_nuscenes(out / f"{name}-nuscenes", out / f"{name}.zarr", height=height, width=width)
    store, held_out = out / "toy.zarr", out / "held-out.zarr"

    def steps(count: int) -> int:
        return max(2, round(count * effort))

    data = DrivingData(sources=(str(store),), val_sources=(str(held_out),))
    stages.begin()
    tokenizer = vq.VQRun(data=store, out=out / "vq", model=TOKENIZER)
    # Small batches and large steps learn most from the pictures that there is time for.
    n = steps(800)
    training = dataclasses.replace(
        tokenizer.train,
        steps=n,
        batch_size=4,
        lr=3e-3,
        warmup=min(20, n),
        save_every=n,
        eval_every=n,
    )
    tokens = vq.train_vq(dataclasses.replace(tokenizer, train=training))
    for drives in (store, held_out):
        tokenize(drives, str(tokens))

    stages.begin()
    base = vavim.recipe()
    n = steps(240)
    rhythm = dataclasses.replace(
        base.train, batch_size=8, steps=n, warmup=n // 20, drop=0, save_every=n, eval_every=n
    )
    pretrain = dataclasses.replace(
        base, model=VIDEO, data=data, tokenizer=str(tokens), out=out / "pretrain", train=rhythm
    )
    vavim.train_vavim(pretrain)
    n = steps(60)
    falling = dataclasses.replace(
        rhythm, steps=n, warmup=0, drop=n, save_every=n, eval_every=n, start_from=out / "pretrain"
    )
    finetune = dataclasses.replace(pretrain, stage="finetune", out=out / "finetune", train=falling)
    video = vavim.train_vavim(finetune)

    stages.begin()
    driving = vavam.recipe()
    n = steps(240)
    rhythm = dataclasses.replace(
        driving.train,
        batch_size=16,
        steps=n,
        warmup=n // 20,
        drop=n // 5,
        save_every=n,
        eval_every=n,
    )
    expert = dataclasses.replace(
        driving, video=str(video), model=ACTION, data=data, out=out / "action", train=rhythm
    )
    weights = vavam.train_vavam(expert)
    stages.begin()
    open_loop(OpenLoop(weights=str(weights), data=str(held_out), out=out / "open-loop"))
    generate(Imagining(weights=str(weights), data=held_out, out=out / "imagined", windows=4))
    stages.conclude()
