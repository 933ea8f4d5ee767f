"""`foreact data`: import, check, stats, show and text of episode stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foreact.checkpoints.format import load_checkpoint
from foreact.checkpoints.shipped import resolve
from foreact.data import inspect
from foreact.data.formats import replay_buffer as importing
from foreact.data.formats.importing import Account
from foreact.data.instructions import Instruction, list_instructions
from foreact.data.stores.opening import Options, open_episodes
from foreact.data.stores.text_features import text_features
from foreact.errors import UserError
from foreact.runs.stores import hands_of
from foreact.tasks import find_task
from foreact.text.opening import find_text_encoder
from foreact.types import StreamSpec


def import_(
    src: Path,
    out: Path,
    task: str | None = None,
    mask: str | None = None,
    fill_missing: bool = False,
) -> Account:
    """Copy recordings of another project, in any format that opens, into a store of ours.

    A copy that was stopped goes on after its last whole episode.

    Args:
        src: a replay-buffer zarr (folder or zip, v2 or v3), such as pusht_cchi_v7_replay.zarr; a
            LeRobotDataset v3.0; a folder of videos; a robomimic .hdf5 file; a folder of LIBERO's;
            or what an installed format reads.
        out: the new store.
        task: what the streams mean; needed unless the recordings say so themselves.
        mask: of a robomimic file: the choice of demonstrations to take, such as train.
        fill_missing: read chunks that are absent from a zarr as its fill value, instead of
            refusing.
    """
    account = importing.import_store(
        src,
        out,
        _spec(task),
        fill_missing=fill_missing,
        options=_options(task),
        chosen={} if mask is None else {"mask": mask},
    )
    print(f"{account}\n{account.episodes} episodes: {out}")
    return account


def import_d4rl(
    root: Path,
    out: Path,
    task: str | None = None,
    fps: float | None = None,
    codes: str | None = None,
    grid: tuple[int, int] | None = None,
    vocab: int | None = None,
) -> Account:
    """Copy V-D4RL recordings, or shards with Video Occupancy Models' codes, into our store.

    A copy that was stopped goes on after its last whole episode.

    Args:
        root: folder of .hdf5 shards, or of .npz files with one episode each.
        out: the new store.
        task: what the streams mean; by default what the files say.
        fps: steps per second, where neither the task nor a folder's name (cheetah, walker,
            humanoid) tells.
        codes: array of the codes to take along, such as vae_latents, or none; by default the only
            one there is.
        grid: rows and columns of a frame's codes; by default as they lie in the file, or a square.
        vocab: size of their codebook; codes outside are refused.
    """
    account = importing.import_d4rl(
        root, out, _spec(task), fps=fps, codes=codes, grid=grid, vocab=vocab
    )
    print(f"{account}\n{account.episodes} episodes: {out}")
    return account


def check(store: Path, task: str | None = None, windows: int = 100) -> None:
    """Read windows; report spec, lengths, NaN, constant dims, missing chunks and windows per s.

    Args:
        store: the store, or a mixture of several as .json.
        task: what the streams mean; needed unless the store says so itself.
        windows: how many to read.
    """
    report = inspect.check_store(
        store,
        _spec(task),
        windows=windows,
        options=_options(task),
        hands=None if task is None else hands_of(find_task(task)),
    )
    print(report)
    if not report.ok:
        raise UserError(
            f"{store} has errors, listed above; mend or collect it again before training on it."
        )


def stats(store: Path, task: str | None = None, against: str | None = None) -> None:
    """Print the range, mean and deviation of every number.

    Args:
        store: the store.
        task: what the streams mean; needed unless the store says so itself.
        against: a checkpoint (folder or shipped name) whose statistics to compare with.
    """
    normalizer = None
    if against is not None:
        normalizer = load_checkpoint(resolve(against)).stats
        if normalizer is None:
            raise UserError(
                f"The checkpoint {against} has no statistics to compare with; name one that acts."
            )
    found = inspect.store_stats(store, _spec(task), normalizer, options=_options(task))
    print(inspect.format_stats(found))
    if broken := [name for name, s in found.items() if not np.isfinite(s.mean).all()]:
        raise UserError(
            f"{', '.join(broken)} of {store} hold NaN or infinite values; `foreact "
            "data check` finds them."
        )
    outside = [
        name
        for name, s in found.items()
        if s.out_of_range is not None and s.out_of_range.max() > 0.05
    ]
    if outside:
        raise UserError(
            f"More than 5 % of some values of {', '.join(outside)} lie outside the range that "
            f"{against} learned from; check units and action mode before you use them together."
        )


def show(
    store: Path,
    out: Path = Path("show"),
    task: str | None = None,
    episodes: tuple[int, ...] = (0, 1, 2, 3),
) -> None:
    """Write a contact sheet per camera and an mp4 per episode.

    Args:
        store: the store.
        out: folder for the pictures.
        task: what the streams mean; needed unless the store says so itself.
        episodes: which to show.
    """
    written = inspect.show_store(
        store, _spec(task), out_dir=out, episodes=episodes, options=_options(task)
    )
    for path in written:
        print(path)


def text(store: Path, task: str | None = None, encoder: str | None = None) -> list[Instruction]:
    """List the instructions that episodes follow; with an encoder, also how alike they are.

    The encoder's features are kept beside the data, where training finds them.

    Args:
        store: the store.
        task: what the streams mean; needed unless the store says so itself.
        encoder: minilm, minilm:FOLDER, clip:FOLDER, or the import path of another.
    """
    episodes = open_episodes(store, _spec(task), options=_options(task))
    features = None if encoder is None else text_features(episodes, find_text_encoder(encoder))
    found = list_instructions(episodes, features)
    print(f"{'episodes':>8}{'steps':>10}   instruction")
    for instruction in found:
        print(instruction)
    if features is not None:
        print(f"{features.dim} features each, by {features.encoder} {features.hash[:19]}")
    return found


def _spec(task: str | None) -> StreamSpec | None:
    return None if task is None else find_task(task).spec


def _options(task: str | None) -> Options | None:
    return None if task is None else find_task(task).data_options
