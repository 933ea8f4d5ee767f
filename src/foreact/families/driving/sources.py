"""What the driving models learn from and are measured on: drives, their windows, their mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from foreact.checkpoints.configs import read_json
from foreact.checkpoints.format import TokenizerRef
from foreact.data.formats.frames import read_names
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.store import open_store
from foreact.data.windows.loader import Windows
from foreact.data.windows.mixing import Concat, HardTurns, Subset, mix
from foreact.errors import UserError
from foreact.families.driving.data.token_folders import TokenFolders, TrajectoryTokens
from foreact.families.driving.data.windows import DrivingWindows, plan_spec
from foreact.families.driving.released.trajectories import open_trajectories
from foreact.families.driving.vavim import VaViMConfig
from foreact.files import listed
from foreact.runs.inputs import Inputs, file_digest
from foreact.types import StreamSpec

PATCH = 16
"""Pixels of a picture's side per token of the released tokenizer."""

CAMERAS = ("CAM_FRONT", "CAM_F0")
"""Names of the front camera in nuScenes and nuPlan."""


@dataclass(frozen=True, kw_only=True)
class DrivingData:
    """Drives to learn from.

    A source is a store (drives.zarr), a folder of token folders with its frame rate
    (flat_tokens@10), or trajectories with their tokens and frame rate (train.pkl:tokens@2, or
    .jsonl).
    """

    sources: tuple[str, ...] = ()
    """Where the training windows come from."""
    ratios: tuple[float, ...] = ()
    """Share of each source in an epoch, of sum 1; empty: every window of every source once."""
    total: int | None = None
    """Windows in an epoch when there are ratios; None: as many as all sources have together."""
    only: Path | None = None
    """JSON list of windows of the first source to take, such as `foreact data remaining` writes."""
    val_sources: tuple[str, ...] = ()
    """Where the validation windows come from; empty: val_ratio of the sources' drives."""
    val_ratio: float = 0.05
    """Share of the drives kept for validation when there are no val_sources."""
    rate_hz: float = 2.0
    """Frames per second that the model sees."""
    command_horizon: Literal["plan", "reference"] = "plan"
    """How far ahead a command looks: to the plan's end, or as released (0.6 s on nuPlan)."""
    hard_turns: int = 0
    """Of each batch that is drawn, keep this many windows with the sharpest turns; 0: all."""


def open_drives(source: str) -> EpisodeStore:
    """Open one source; see `DrivingData`.

    Raises:
        UserError: it does not exist, or does not say what is needed.
    """
    path, _, rate = source.partition("@")
    trajectories, colon, tokens = path.partition(":")
    if not rate and not colon:
        if any(listed(folder, "*.npy") for folder in listed(Path(path)) if folder.is_dir()):
            raise UserError(
                f"The files of {path} do not tell their frame rate; write it after them: {path}@10."
            )
        return open_store(Path(path), memory_limit=4 * 2**30)
    try:
        rate_hz = float(rate)
    except ValueError:
        raise UserError(
            f"'{source}' should end with the frame rate of its files, as in {path}@10; found "
            f"'{rate}'."
        ) from None
    if not (rate_hz > 0 and math.isfinite(rate_hz)):
        raise UserError(f"The frame rate of '{source}' should be a positive number.")
    if not colon:
        return TokenFolders(path, videos_of(Path(path)), rate_hz=rate_hz)
    return TrajectoryTokens(open_trajectories(trajectories, *CAMERAS), tokens, rate_hz=rate_hz)


def videos_of(root: Path) -> list[str]:
    """Videos of a token root: as in its videos.json or videos.txt, else every folder."""
    for name in ("videos.json", "videos.txt"):
        if (root / name).is_file():
            return read_names(root / name)
    if not root.is_dir():
        raise UserError(f"There is no token folder {root}.")
    videos = [path.name for path in listed(root) if path.is_dir()]
    if not videos:
        raise UserError(f"{root} holds no folder of tokens; it should hold one per video.")
    return videos


@dataclass(frozen=True, kw_only=True)
class DrivingSplit:
    """Windows to train on and to validate with.

    Attributes:
        spec: what the numbers mean to the model: its frame rate, its camera, its plans.
        tokenizer: the tokenizer the tokens come from, where a source says so.
        about: the sources, in words.
        inputs: the sources by content.
    """

    training: Windows
    validation: Windows
    spec: StreamSpec
    tokenizer: TokenizerRef | None
    about: str
    inputs: Inputs


def load_driving(
    data: DrivingData, model: VaViMConfig, *, horizon: int | None, inputs: Inputs
) -> DrivingSplit:
    """Open the sources, split them by drive, cut windows and mix them.

    Args:
        data: what to learn from.
        model: whose frames, grid, vocabulary and camera the windows must fit.
        horizon: waypoints per plan; None for tokens alone.
        inputs: of the run, with the seed of split and mixture.

    Raises:
        UserError: no source, a rate that does not divide, a grid or ids of another tokenizer,
            ratios that are no shares, or an option that has nothing to act on.
    """
    if not data.sources:
        raise UserError(
            "Name what to learn from: --data.sources drives.zarr (see `foreact data "
            "import-nuscenes`)."
        )
    if data.total is not None and not data.ratios:
        raise UserError(
            "--data.total counts the windows of a mixture; give --data.ratios with "
            "it, or leave it out."
        )
    if data.hard_turns and horizon is None:
        raise UserError(
            "--data.hard-turns goes by plans, and a video model learns from none; leave it out."
        )
    sources = [open_drives(source) for source in data.sources]
    val_sources = [open_drives(source) for source in data.val_sources]
    stream = f"tokens_{model.camera}"
    hashes = {drives.tokenizer_hash(stream) for drives in (*sources, *val_sources)} - {None}
    if len(hashes) > 1:
        raise UserError(
            "The sources were made with different tokenizers "
            f"({sorted(map(str, hashes))}); use one."
        )
    parts, held_out = [], []
    val_ratio = 0.0 if data.val_sources else data.val_ratio
    for drives in sources:
        split = inputs.split(drives, val_ratio, both_sides=False)
        training, validation = split.training, split.validation
        if not data.val_sources and len(validation) == 0:
            raise UserError(
                f"Of {drives.label} (drives: {len(drives)}) none is left to validate with; "
                "name others with --data.val-sources, or take a share with --data.val-ratio."
            )
        parts.append(windows_of(drives, data, model, horizon=horizon, episodes=training))
        if len(validation):
            held_out.append(windows_of(drives, data, model, horizon=horizon, episodes=validation))
    for drives in val_sources:
        inputs.held_out(drives)
        held_out.append(windows_of(drives, data, model, horizon=horizon))
    chosen: list[Windows] = list(parts)
    if data.only is not None:
        chosen[0] = Subset(parts[0], rows_of(data.only))
    inputs.note("data.only", file_digest(data.only))
    if data.ratios:
        mixture = mix(chosen, data.ratios, data.total or sum(map(len, chosen)), inputs.seed)
    else:
        mixture = Concat(chosen)
    tokenizer = next(iter(hashes), None)
    return DrivingSplit(
        inputs=inputs,
        training=HardTurns(mixture, data.hard_turns) if data.hard_turns else mixture,
        validation=Concat(held_out),
        spec=spec_of(sources[0], model, data.rate_hz, plans=horizon is not None),
        tokenizer=None if tokenizer is None else TokenizerRef(family="vq", hash=tokenizer),
        about=", ".join(
            f"{drives.label} ({len(drives)} drives, {int(drives.lengths.sum())} frames)"
            for drives in sources
        ),
    )


def windows_of(
    drives: EpisodeStore,
    data: DrivingData,
    model: VaViMConfig,
    *,
    horizon: int | None,
    episodes: np.ndarray | None = None,
) -> DrivingWindows:
    """The windows of one source at the model's rate, checked against the model's grid."""
    if not data.rate_hz > 0:
        raise UserError(f"--data.rate-hz should be positive, found {data.rate_hz:g}.")
    remedy = "choose a --data.rate-hz that divides it"
    windows = DrivingWindows(
        drives,
        frames=model.frames,
        stride=even_stride(drives.label, drives.spec.fps, data.rate_hz, remedy),
        horizon=horizon,
        command_horizon=data.command_horizon,
        vocab=model.vocab,
        camera=model.camera,
        episodes=episodes,
    )
    grid = tuple(drives.gather(f"tokens_{model.camera}", np.zeros(1, np.int64)).shape[1:])
    if grid != tuple(model.grid):
        raise UserError(
            f"{drives.label} holds grids of {grid[0]} x {grid[1]} tokens, the model reads "
            f"{model.grid[0]} x {model.grid[1]}; set --model.grid {grid[0]} {grid[1]} for a new "
            "model, or tokenize at the model's size."
        )
    return windows


def even_stride(label: str, rate_hz: float, model_hz: float, remedy: str) -> int:
    """Frames of the data from one frame of the model to the next.

    Raises:
        UserError: `model_hz` frames per second cannot be taken evenly; the sentence ends with the
            remedy.
    """
    stride = rate_hz / model_hz
    if round(stride) < 1 or abs(stride - round(stride)) > 1e-6:
        raise UserError(
            f"{label} has {rate_hz:g} frames per second, of which {model_hz:g} cannot be taken "
            f"evenly; {remedy}."
        )
    return round(stride)


def rows_of(path: Path) -> np.ndarray:
    """Window numbers from a JSON list."""
    rows = read_json(path)
    if not isinstance(rows, list) or not all(type(row) is int for row in rows):
        raise UserError(f"{path} should hold a JSON list of window numbers.")
    return np.array(rows, np.int64)


def spec_of(drives: EpisodeStore, model: VaViMConfig, rate_hz: float, *, plans: bool) -> StreamSpec:
    """What a driving model sees and plans; token files do not tell the size of their pictures."""
    tokenized = (model.grid[0] * PATCH, model.grid[1] * PATCH)
    size = next(iter(drives.spec.cameras.values()), tokenized)
    return StreamSpec(
        cameras={model.camera: size}, fps=rate_hz, action=plan_spec(rate_hz) if plans else None
    )
