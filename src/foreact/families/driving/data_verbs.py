"""`foreact data import-opendv`, `import-nuscenes`, `import-nuplan` and `remaining`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from foreact.checkpoints.configs import read_json
from foreact.data.formats.frames import read_names
from foreact.data.formats.importing import Account, store_to_import
from foreact.errors import UserError
from foreact.families.driving.data import nuplan, nuscenes, opendv
from foreact.families.driving.data import toy_street as toy
from foreact.families.driving.data.drives import write_drives
from foreact.families.driving.data.remaining import remaining as remaining_of_reference
from foreact.families.driving.data.remaining import remaining_of_run
from foreact.families.driving.data.toy_street import write_toy_street
from foreact.families.driving.data.trajectories import (
    Record,
    Trajectories,
    read_trajectories,
    write_trajectories,
)
from foreact.files import write_json
from foreact.progress import Progress
from foreact.runs.run import say
from foreact.seeds import require_seeds

REFERENCE_SEED = 84924
"""Seed of the released models' pre-training."""


def import_opendv(
    root: Path,
    out: Path,
    split: str | None = None,
    names: Path | None = None,
    cutting: Literal["exact", "reference"] = "exact",
    damage: Literal["warn", "error"] = "warn",
    height: int = 288,
    width: int = 512,
) -> Account:
    """Cut OpenDV's videos, sample and shrink them into a store, one episode per video, at 10 Hz.

    An import that was stopped goes on after its last whole video.

    Args:
        root: holds metadata.csv and videos/<channel>/<id>.mp4 or .webm.
        out: the store.
        split: such as train or val, as the table says; default all.
        names: file with the ids to take, a JSON list or one per line.
        cutting: exact, or reference: the end is cut discard_start seconds too late, as for the
            released models.
        damage: go on with a warning where a video has damaged parts, or end with an error.
        height: of the frames.
        width: of the frames.
    """
    frames = f"{width}x{height}, 10 Hz"
    say("OpenDV", source=root, split=split or "all", cutting=cutting, frames=frames)
    ids = None if names is None else read_names(names)
    account = opendv.import_opendv(
        root, out, split=split, names=ids, cutting=cutting, damage=damage, size=(height, width)
    )
    print(f"{account}\n{account.episodes} episodes: {out}")
    return account


def import_nuscenes(
    root: Path,
    out: Path,
    version: str | None = None,
    scenes: Path | None = None,
    camera: str = "CAM_FRONT",
    height: int = 288,
    width: int = 512,
) -> Account:
    """Read nuScenes' tables and key frames into a store with ego poses, and write trajectories.

    Args:
        root: holds v1.0-*/ and samples/.
        out: the store; the trajectories become <out>.trajectories.jsonl.
        version: folder of the tables; default the only one.
        scenes: file with the names of the scenes to take, such as those of the training split.
        camera: channel.
        height: of the frames.
        width: of the frames.
    """
    names = None if scenes is None else read_names(scenes)
    account = Account()
    records = nuscenes.nuscenes_records(
        root, version=version, camera=camera, scenes=names, account=account
    )
    size = (height, width)
    return _import("nuScenes", records, camera, root, out, nuscenes.RATE_HZ, size, account)


def import_nuplan(
    databases: Path,
    images: Path,
    out: Path,
    logs: Path | None = None,
    camera: str = "CAM_F0",
    height: int = 288,
    width: int = 512,
) -> Account:
    """Read nuPlan's logs and images into a store with ego poses, and write trajectories.

    Args:
        databases: holds the logs' .db files.
        images: holds <log>/<camera>/*.jpg.
        out: the store; the trajectories become <out>.trajectories.jsonl.
        logs: file with the names of the logs to take (without .db), such as those of the training
            split.
        camera: channel.
        height: of the frames.
        width: of the frames.
    """
    files = nuplan.nuplan_logs(databases, None if logs is None else read_names(logs))
    account = Account()
    bar = Progress(files, unit="log", desc="read")
    records = nuplan.nuplan_records(bar, camera=camera, account=account)
    size = (height, width)
    return _import("nuPlan", records, camera, images, out, nuplan.RATE_HZ, size, account)


def _import(
    source: str,
    records: Iterable[Record],
    camera: str,
    images: Path,
    out: Path,
    rate_hz: float,
    size: tuple[int, int],
    account: Account,
) -> Account:
    """Write the store and the file of trajectories, both or none; see `store_to_import`.

    Args:
        source: name of the data set.
        records: of its frames; whoever makes them counts in `account` what is left out before.
        camera, images, out, rate_hz, size: as in `write_drives`.
        account: filled, and printed at the end.
    """
    file = out.with_suffix(".trajectories.jsonl")
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with store_to_import(out) as store:
        try:
            write_trajectories(draft, records)
            trajectories = Trajectories.from_records(read_trajectories(draft), camera, str(file))
            count = f"{len(trajectories.files)} in {len(trajectories.names)} scenes"
            frames = f"{count}, {size[1]}x{size[0]}"
            say(source, images=images, camera=camera, frames=frames)
            facts = {"source": source, "camera": camera}
            write_drives(
                trajectories,
                images,
                store,
                rate_hz=rate_hz,
                size=size,
                facts=facts,
                account=account,
            )
            os.replace(draft, file)
        finally:
            draft.unlink(missing_ok=True)
    print(f"{account}\n{account.episodes} episodes: {out} (trajectories: {file})")
    return account


def toy_street(out: Path = Path("data/toy-nuscenes"), scenes: int = 60, seed: int = 0) -> None:
    """Draw drives along winding roads in nuScenes' layout, to try the models without a download.

    Args:
        out: the root of the data set; must not exist yet.
        scenes: how many, of 40 pictures each at 2 Hz.
        seed: of roads and speeds.
    """
    require_seeds(seed, option="--seed")
    write_toy_street(out, scenes=scenes, seed=seed)
    print(
        f"{scenes} scenes: {out}; next: foreact data import-nuscenes --root {out} --out "
        f"data/toy.zarr --height {toy.HEIGHT} --width {toy.WIDTH}"
    )


def remaining(
    windows: int,
    out: Path,
    run: Path | None = None,
    world: int | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    seed: int = REFERENCE_SEED,
    drop_last: bool = True,
) -> None:
    """Write the numbers of the windows that a run has not seen, for fine-tuning on new data.

    Args:
        windows: size of the data set of that run.
        out: JSON list to write.
        run: a checkpoint of ours, <run>/checkpoints/step-*; it knows all that follows.
        world: ranks of a run of the reference.
        batch_size: its windows per rank and step.
        steps: its steps so far, all in the first epoch.
        seed: its seed.
        drop_last: whether its sampler dropped the tail that does not fill all ranks.
    """
    require_seeds(seed, option="--seed")
    of_reference = (world, batch_size, steps)
    if run is not None and any(value is not None for value in of_reference):
        raise UserError(
            "Give --run, or --world, --batch-size and --steps of a run of the reference, not both."
        )
    if run is not None:
        record = read_json(run / "train.json")
        config = record["config"]
        seen = record["step"] * config["accumulate"] * record["world"] * config["batch_size"]
        rows = remaining_of_run(windows, seed=config["seed"], seen=seen)
    elif world is not None and batch_size is not None and steps is not None:
        ranks = remaining_of_reference(
            windows, world=world, batch_size=batch_size, steps=steps, seed=seed, drop_last=drop_last
        )
        rows = np.concatenate(ranks)
    else:
        raise UserError(
            "Give --run, or --world, --batch-size and --steps of a run of the reference."
        )
    if len(rows) == 0:
        raise UserError(f"That run has seen all of its {windows} windows.")
    write_json(out, rows.tolist())
    print(f"{len(rows)} of {windows} windows are left: {out}")
