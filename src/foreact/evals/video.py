"""PSNR and SSIM of imagined against true frames, beside repeating the last frame seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foreact.data.formats.video import contact_sheet, save_image, write_mp4
from foreact.errors import UserError
from foreact.evals.estimate import estimate
from foreact.evals.seen import Recordings, Watcher, read_seen
from foreact.types import Estimate, Seen

ROUNDING_PSNR = 10.0 * float(np.log10(255.0**2 * 12.0))
"""58.9 dB, of rounding to uint8 (variance 1/12): a cap, as equal frames have an infinite PSNR."""

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
"""Settings of SSIM in its paper (Wang et al. 2004)."""


class FramePredictor(Watcher, Protocol):
    """A model that imagines F frames from F frames, `context_stride` steps apart."""

    @property
    def frames(self) -> int: ...

    @property
    def context_stride(self) -> int: ...

    @property
    def foreseen(self) -> Sequence[str]:
        """The cameras whose future it imagines."""
        ...

    @property
    def action_offsets(self) -> Sequence[int]:
        """Of the K actions that lead through that future."""
        ...

    def predict_video(self, seen: Seen, *, rng: torch.Generator) -> dict[str, np.ndarray]: ...

    def predict_dynamics(
        self, seen: Seen, actions: np.ndarray, *, rng: torch.Generator
    ) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Example:
    """One window: frames, uint8 (F, H, W, 3) each, its episode and its anchor step ("now").

    `predicted` and `reconstructed`, which is the true future through the tokenizer alone, are None
    where that was not measured.
    """

    context: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray | None
    episode: int
    anchor: int
    reconstructed: np.ndarray | None = None

    def futures(self) -> dict[str, np.ndarray]:
        """What to show one below the other, by name."""
        named_frames = {
            "true": self.truth,
            "tokenizer": self.reconstructed,
            "imagined": self.predicted,
        }
        return {name: frames for name, frames in named_frames.items() if frames is not None}


@dataclass(frozen=True, kw_only=True)
class VideoQuality:
    """Result of `video_quality`.

    Attributes:
        mode: "video" or "dynamics".
        camera: whose future it is.
        estimates: "psnr", "ssim" of the model, "psnr_copy", "ssim_copy" of repeating the last frame
            seen. A value per episode is the mean over its windows and frames, so that the interval
            is one over independent episodes.
        curves: the same names, one estimate per future frame.
        steps_ahead: steps from now to each future frame.
        windows: number of windows that were measured.
        seed: of the windows and the draws.
        examples: the first windows, for pictures.
    """

    mode: str
    camera: str
    estimates: Mapping[str, Estimate]
    curves: Mapping[str, Sequence[Estimate]]
    steps_ahead: Sequence[int]
    windows: int
    seed: int
    examples: Sequence[Example] = ()

    def to_json(self) -> dict[str, Any]:
        """All but the pictures."""
        raw = dataclasses.asdict(dataclasses.replace(self, examples=()))
        raw.pop("examples")
        return raw


def video_quality(
    model: FramePredictor,
    recordings: Recordings,
    episodes: Sequence[int],
    *,
    mode: Literal["video", "dynamics"] = "video",
    windows_per_episode: int = 4,
    seed: int = 0,
    examples: int = 4,
    batch: int = 32,
) -> list[VideoQuality]:
    """Compare imagined with true futures on windows of held-out episodes, camera by camera.

    Args:
        episodes: numbers of recordings; those too short for a window are left out.
        mode: "video" imagines from frames alone, "dynamics" is given the true actions as well.
        windows_per_episode: windows drawn from each, without repeats, fewer where it is too short.
        seed: decides windows and draws.
        examples: windows to keep for pictures, one per episode.
        batch: windows per call of the model.

    Raises:
        UserError: no episode is long enough, or the mode is unknown.
    """
    if mode not in ("video", "dynamics"):
        raise UserError(f"Video quality is measured in mode 'video' or 'dynamics', found '{mode}'.")
    anchors = _anchors(model, recordings, episodes, windows_per_episode, seed)
    rng = torch.Generator().manual_seed(seed)
    measured = {camera: _Measured(examples) for camera in model.foreseen}
    future = [(i + 1) * model.context_stride for i in range(model.frames)]
    for start in range(0, len(anchors), batch):
        part = anchors[start : start + batch]
        seen = read_seen(model, recordings, part)
        if mode == "video":
            predicted = model.predict_video(seen, rng=rng)
        else:
            actions = recordings.actions(part, model.action_offsets)
            predicted = model.predict_dynamics(seen, actions, rng=rng)
        for camera, values in measured.items():
            truth = recordings.frames(camera, part, future)
            values.add(part, seen.frames[camera], truth, predicted[camera])
    return [
        VideoQuality(
            mode=mode,
            camera=camera,
            **values.result(),
            steps_ahead=future,
            windows=len(anchors),
            seed=seed,
        )
        for camera, values in measured.items()
    ]


class _Measured:
    """Imagined futures of one camera, as they are measured."""

    def __init__(self, examples: int) -> None:
        self.wanted, self.examples, self.episodes = examples, list[Example](), list[int]()
        names = ("psnr", "ssim", "psnr_copy", "ssim_copy")
        self.values: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def add(
        self,
        moments: Sequence[tuple[int, int]],
        context: np.ndarray,
        truth: np.ndarray,
        predicted: np.ndarray,
    ) -> None:
        """Take in windows, uint8 (B, F, H, W, 3) each."""
        copy = np.repeat(context[:, -1:], truth.shape[1], axis=1)
        for suffix, frames in (("", predicted), ("_copy", copy)):
            flat = (frames.reshape(-1, *frames.shape[2:]), truth.reshape(-1, *truth.shape[2:]))
            shape = truth.shape[:2]
            self.values[f"psnr{suffix}"].append(psnr(*flat).clip(max=ROUNDING_PSNR).reshape(shape))
            self.values[f"ssim{suffix}"].append(ssim(*flat).reshape(shape))
        for row, (episode, anchor) in enumerate(moments):
            shown = [example.episode for example in self.examples]
            if len(shown) < self.wanted and episode not in shown:
                example = Example(context[row], truth[row], predicted[row], episode, anchor)
                self.examples.append(example)
            self.episodes.append(episode)

    def result(self) -> dict[str, Any]:
        """Fields of a `VideoQuality`."""
        of = np.array(self.episodes)
        per_episode = {
            name: np.stack([np.concatenate(parts)[of == e].mean(0) for e in np.unique(of)])
            for name, parts in self.values.items()
        }
        return {
            "estimates": {name: _estimate(name, v.mean(1)) for name, v in per_episode.items()},
            "curves": {name: [_estimate(name, x) for x in v.T] for name, v in per_episode.items()},
            "examples": self.examples,
        }


def _estimate(name: str, values: np.ndarray) -> Estimate:
    if name.startswith("psnr"):
        return estimate(values, unit="dB")
    return estimate(values, valid_range=(-1.0, 1.0))


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR in dB of uint8 images (N, H, W, 3): float64 (N,); inf where they are equal."""
    _check_pair(a, b)
    error = ((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(255.0**2 / error)


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of uint8 images (N, H, W, 3), per image, (N,) float64 in -1..1.

    Gaussian window of 11 x 11 with sigma 1.5, data range 255, over the places where the window lies
    inside the image; the mean over places and colour channels.

    Raises:
        UserError: shapes or dtypes differ, or the images are smaller than the window.
    """
    _check_pair(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise UserError(
            f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, found "
            f"{a.shape[1]} x {a.shape[2]}."
        )
    # In slices, so that memory stays flat however many frames are compared.
    return np.concatenate(
        [_ssim(a[i : i + 64], b[i : i + 64]) for i in range(0, len(a), 64)] or [np.zeros(0)]
    )


def _ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = (torch.from_numpy(np.ascontiguousarray(v)).double().movedim(-1, 1) for v in (a, b))
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * 255.0) ** 2, (K2 * 255.0) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3)).numpy()


def _blur(images: Tensor) -> Tensor:
    taps = torch.exp(-0.5 * ((torch.arange(WINDOW, dtype=images.dtype) - WINDOW // 2) / SIGMA) ** 2)
    taps = taps / taps.sum()
    channels = images.shape[1]
    rows = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    down = functional.conv2d(images, rows, groups=channels)
    return functional.conv2d(down, rows.transpose(2, 3), groups=channels)


def save_examples(quality: VideoQuality, folder: Path, fps: float) -> list[Path]:
    """Write one PNG strip and one mp4 per example: context, then the true and the imagined future.

    Args:
        fps: frames per second of the store; the films play in real time, but at least 4 frames a
            second.

    Returns:
        The files, the PNG of an example before its mp4.
    """
    paths = []
    for example in quality.examples:
        name = f"{quality.mode}-{quality.camera}-episode-{example.episode}-step-{example.anchor}"
        save_image(folder / f"{name}.png", strip(example, quality.steps_ahead))
        write_mp4(
            folder / f"{name}.mp4",
            film(example, quality.steps_ahead),
            max(fps / quality.steps_ahead[0], 4.0),
        )
        paths += [folder / f"{name}.png", folder / f"{name}.mp4"]
    return paths


def strip(example: Example, steps_ahead: Sequence[int]) -> Any:
    """PIL picture: context and true future above, context and imagined future below."""
    rows = _labelled_rows(example, steps_ahead)
    tiles = [tile for row in rows for tile in row]
    return contact_sheet(
        [image for image, _ in tiles], [label for _, label in tiles], columns=len(rows[0])
    )


def film(example: Example, steps_ahead: Sequence[int]) -> np.ndarray:
    """The rows of `strip` side by side in time, uint8 (T, H', W', 3), labelled seen or not."""
    moments = zip(*_labelled_rows(example, steps_ahead), strict=True)
    return np.stack([np.asarray(contact_sheet(*zip(*tiles, strict=True))) for tiles in moments])


def _labelled_rows(
    example: Example, steps_ahead: Sequence[int]
) -> list[list[tuple[np.ndarray, str]]]:
    """One row per kind of future: its frames, after the context, enlarged and labelled."""
    scale = max(1, 192 // example.context.shape[1])
    stride = steps_ahead[0]
    past = [f"seen {-stride * i}" for i in range(len(example.context) - 1, 0, -1)] + ["seen now"]
    rows = []
    for word, future in example.futures().items():
        labels = [*past, *(f"{word} {step:+d}" for step in steps_ahead)]
        frames = [
            frame.repeat(scale, axis=0).repeat(scale, axis=1)
            for frame in (*example.context, *future)
        ]
        rows.append(list(zip(frames, labels, strict=True)))
    return rows


def _anchors(
    model: FramePredictor,
    recordings: Recordings,
    episodes: Sequence[int],
    per_episode: int,
    seed: int,
) -> list[tuple[int, int]]:
    """(episode, anchor) of windows with all their frames, and actions, inside the episode."""
    before = -model.offsets[0]
    after = max(model.frames * model.context_stride, model.action_offsets[-1])
    anchors: list[tuple[int, int]] = []
    for episode in episodes:
        count = int(recordings.lengths[episode]) - before - after
        if count > 0:
            draw = np.random.default_rng([seed, int(episode)])
            chosen = draw.choice(count, size=min(per_episode, count), replace=False)
            anchors += [(int(episode), before + int(c)) for c in np.sort(chosen)]
    if not anchors:
        raise UserError(
            f"None of the {len(episodes)} episodes has the {before + after + 1} steps that a "
            "window takes; give longer episodes."
        )
    return anchors


def _check_pair(a: np.ndarray, b: np.ndarray) -> None:
    dtypes_fit = a.dtype == np.uint8 and b.dtype == np.uint8
    shapes_fit = a.shape == b.shape and a.ndim == 4 and a.shape[3] == 3
    if not (dtypes_fit and shapes_fit):
        raise UserError(
            f"Two stacks of uint8 images (N, H, W, 3) of one shape are compared, found {a.dtype} "
            f"{a.shape} and {b.dtype} {b.shape}."
        )
