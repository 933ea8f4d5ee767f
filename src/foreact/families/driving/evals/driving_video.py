"""How good imagined drives look: PSNR, SSIM, FID per frame ahead and FVD of clips.

    true future   ─► features ──────────────────────────┐
    true future   ─► tokenizer ─► features ─────────────┼─► Frechet distances: frames, clips
    context ─► model ─► tokenizer's decoder ─► features ┘

What the tokenizer alone loses is measured beside the model: no model of its tokens can do better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.evals.clustered import clustered_estimate
from foreact.evals.features import FeatureNetwork
from foreact.evals.frechet import Accumulation, Moments, frechet_distance
from foreact.evals.video import ROUNDING_PSNR, Example, VideoQuality, psnr, ssim
from foreact.types import Batch, Encoder, Estimate, Tokenizer, to_model_range, to_uint8

Generate = Callable[[Tensor, int], Tensor]
"""Context tokens int64 (B, T, h, w), F -> imagined tokens int64 (B, F, h, w)."""

RealSet = Literal["future", "context"]


@dataclass(frozen=True, kw_only=True)
class DrivingVideoResult:
    """Result of `driving_video`.

    Attributes:
        quality: PSNR and SSIM of the model, where there is one ("psnr"), of the tokenizer alone
            ("psnr_tokenizer") and of repeating the last frame ("psnr_copy").
        fid: "imagined", where there is a model, and "tokenizer" -> one distance per frame ahead;
            empty without a network for pictures.
        fvd: the same over the clips of future frames; empty without a network for clips.
        real: which true frames FID compares with.
        accumulation: of the moments.
        clips: number of clips, which is the number of samples behind each distance.
        networks: "fid", "fvd" -> name, hash and preprocessing of the feature network, with its
            feature width.
    """

    quality: VideoQuality
    fid: Mapping[str, Sequence[float]]
    fvd: Mapping[str, float]
    real: RealSet
    accumulation: Accumulation
    clips: int
    networks: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """All but the pictures."""
        raw = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return raw | {"quality": self.quality.to_json()}


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Which Frechet distances to measure.

    Attributes:
        fid_network, fvd_network: feature networks over pictures and over clips; None leaves the
            distance out.
        real: true frames that FID@k compares with: the future ones of the same k, or, as the
            reference evaluation does, all context frames, which lets a model that repeats its
            context win.
        accumulation: "reference" for the float32 sums of the reference evaluation.
    """

    fid_network: FeatureNetwork | None = None
    fvd_network: FeatureNetwork | None = None
    real: RealSet = "future"
    accumulation: Accumulation = "exact"

    def __post_init__(self) -> None:
        if self.real not in ("future", "context"):
            raise UserError(
                f"FID compares with the true 'future' or the 'context', found '{self.real}'."
            )


class Futures(NamedTuple):
    """Context, true future and drawn futures of windows: uint8 (B, T or F, H, W, 3).

    `drawn` holds "tokenizer", the true future through the tokenizer alone, and "imagined", where
    there is a model.
    """

    context: np.ndarray
    truth: np.ndarray
    drawn: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Imaginer:
    """A model of tokens, and the tokenizer that draws what it foresees.

    Attributes:
        tokenizer: of the model's tokens; it has to know the way back to pixels.
        camera: stream to look at.
        context: frames of a window that the model sees; the others are the future.
        generate: the model; None leaves the tokenizer alone.
        device: where both compute.
    """

    tokenizer: Encoder
    camera: str
    context: int
    generate: Generate | None
    device: torch.device | str

    def __post_init__(self) -> None:
        if not isinstance(self.tokenizer, Tokenizer):
            raise UserError(
                "Imagined tokens are compared as pictures, and this tokenizer only encodes; give "
                "a model whose tokens can be drawn, such as those of a vq."
            )

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Futures:
        """Imagine what follows the first frames of the windows of a batch.

        Raises:
            UserError: windows without pictures or without a future, or pictures of another size
                than the tokenizer's.
        """
        if self.camera not in batch.video:
            raise UserError(
                "Imagined frames are compared with true ones, and the data has no pictures of "
                f"camera '{self.camera}'; open a store with frames, not tokens alone."
            )
        video, tokens = batch.video[self.camera], batch.tokens.get(self.camera)
        context, future = self.context, video.shape[1] - self.context
        if context < 1 or future < 1:
            raise UserError(
                f"Windows of {video.shape[1]} frames leave no future after {context} "
                "frames of context."
            )
        if tokens is None:
            tokens = self.tokenizer.encode(to_model_range(video.to(self.device)))
        tokens = tokens.to(self.device)
        drawn = {"tokenizer": self._draw(tokens[:, context:], video)}
        if self.generate is not None:
            drawn["imagined"] = self._draw(self.generate(tokens[:, :context], future), video)
        frames = video.movedim(2, -1).cpu().numpy()  # (B, T + F, H, W, 3)
        return Futures(frames[:, :context], frames[:, context:], drawn)

    def _draw(self, tokens: Tensor, video: Tensor) -> np.ndarray:
        """Tokens int64 (B, F, h, w) -> uint8 (B, F, H, W, 3), the size of video (B, T, 3, H, W)."""
        assert isinstance(self.tokenizer, Tokenizer)
        frames = to_uint8(self.tokenizer.decode(tokens)).movedim(2, -1).cpu().numpy()
        if frames.shape[2:4] != tuple(video.shape[3:]):
            raise UserError(
                f"The tokenizer draws {frames.shape[2]} x {frames.shape[3]} pixels and the data "
                f"holds {video.shape[3]} x {video.shape[4]}; use the tokenizer and picture size "
                "that belong together."
            )
        return frames


def driving_video(
    batches: Iterable[Batch],
    imaginer: Imaginer,
    *,
    distances: Distances | None = None,
    stride: int = 1,
    seed: int = 0,
    examples: int = 4,
) -> DrivingVideoResult:
    """Imagine what follows the context of each window and compare it with what did.

    All pictures are compared as uint8, true and imagined alike, as they would lie on disk.

    Args:
        batches: with `video[camera]`; `tokens[camera]`, where there, save encoding. `index` names
            the drives.
        imaginer: model and tokenizer.
        distances: which Frechet distances to measure; None: none.
        stride: steps of the store between frames, for labels.
        seed: of the model's draws, for the record.
        examples: windows to keep for pictures, one per drive.

    Raises:
        UserError: no window, windows that do not fit, or too few for a Frechet distance.
    """
    distances = distances or Distances()
    features, similarity = _Features(distances), _Similarity(examples)
    for batch in batches:
        futures = imaginer(batch)
        features.add(futures)
        similarity.add(futures, batch.index)
    quality = similarity.quality(imaginer.camera, stride, seed)
    return DrivingVideoResult(
        quality=quality,
        clips=quality.windows,
        real=distances.real,
        accumulation=distances.accumulation,
        fid=features.fid(),
        fvd=features.fvd(),
        networks=features.networks(),
    )


class _Similarity:
    """PSNR and SSIM of every window so far, and the first windows of different drives."""

    def __init__(self, examples: int) -> None:
        self._room = examples
        self._values: dict[str, list[np.ndarray]] = {}
        self._drives: list[int] = []
        self._kept: list[Example] = []

    def add(self, futures: Futures, index: Tensor | None) -> None:
        """Compare the futures of windows whose drive and step are `index`, int64 (B, 2).

        Windows without an index count as a drive each.
        """
        context, truth, drawn = futures
        imagined, reconstructed = drawn.get("imagined"), drawn["tokenizer"]
        copy = np.repeat(context[:, -1:], truth.shape[1], axis=1)
        for suffix, frames in (("", imagined), ("_tokenizer", reconstructed), ("_copy", copy)):
            if frames is None:
                continue
            # The metrics take pictures (B F, H, W, 3); their values go back to (B, F).
            pair = (frames.reshape(-1, *frames.shape[2:]), truth.reshape(-1, *truth.shape[2:]))
            metrics = {"psnr": psnr(*pair).clip(max=ROUNDING_PSNR), "ssim": ssim(*pair)}
            for name, values in metrics.items():
                self._values.setdefault(name + suffix, []).append(values.reshape(truth.shape[:2]))
        if index is None:
            before = len(self._drives)
            places = [(i, i) for i in range(before, before + len(truth))]
        else:
            places = index.tolist()
        for row, (episode, anchor) in enumerate(places):
            self._drives.append(episode)
            if len(self._kept) < self._room and episode not in [e.episode for e in self._kept]:
                example = Example(
                    context[row],
                    truth[row],
                    None if imagined is None else imagined[row],
                    episode,
                    anchor,
                    reconstructed=reconstructed[row],
                )
                self._kept.append(example)

    def quality(self, camera: str, stride: int, seed: int) -> VideoQuality:
        if not self._drives:
            raise UserError(
                "There is no window to imagine from; give longer drives or another split."
            )
        values = {name: np.concatenate(parts) for name, parts in self._values.items()}
        future = values["psnr_copy"].shape[1]

        def estimate(name: str, rows: np.ndarray) -> Estimate:
            unit = "dB" if name.startswith("psnr") else ""
            return clustered_estimate(rows, self._drives, unit=unit)

        return VideoQuality(
            mode="video",
            camera=camera,
            estimates={name: estimate(name, v.mean(1)) for name, v in values.items()},
            curves={name: [estimate(name, column) for column in v.T] for name, v in values.items()},
            steps_ahead=[(i + 1) * stride for i in range(future)],
            windows=len(self._drives),
            seed=seed,
            examples=self._kept,
        )


class _Features:
    """Moments of the features of true, reconstructed and imagined frames and clips."""

    def __init__(self, distances: Distances) -> None:
        self._distances = distances
        # (set, frame ahead) -> moments; context frames that stand for the truth are at -1.
        self._frames: dict[tuple[str, int], Moments] = {}
        self._clips: dict[str, Moments] = {}

    def add(self, futures: Futures) -> None:
        context, truth, drawn = futures
        if (fid_network := self._distances.fid_network) is not None:

            def features(clips: np.ndarray) -> np.ndarray:
                """(B, F, D), all frames in one call."""
                frames = clips.reshape(-1, *clips.shape[2:])
                return fid_network.images(frames).reshape(*clips.shape[:2], -1)

            by_name = {name: features(clips) for name, clips in drawn.items()}
            if self._distances.real == "future":
                by_name["real"] = features(truth)
            else:
                for rows in features(context):
                    self._add(self._frames, ("real", -1), rows)
            for name, rows in by_name.items():
                for k in range(rows.shape[1]):
                    self._add(self._frames, (name, k), rows[:, k])
        if (fvd_network := self._distances.fvd_network) is not None:
            for name, clips in {"real": truth, **drawn}.items():
                self._add(self._clips, name, fvd_network.clips(clips))

    def _add(self, moments: dict[Any, Moments], key: Any, rows: np.ndarray) -> None:
        moments.setdefault(key, Moments(self._distances.accumulation)).add(rows)

    def fid(self) -> dict[str, list[float]]:
        fid: dict[str, list[float]] = {}
        for (name, k), moments in self._frames.items():
            if name != "real":
                real = self._frames["real", k if self._distances.real == "future" else -1]
                fid.setdefault(name, []).append(frechet_distance(real, moments))
        return fid

    def fvd(self) -> dict[str, float]:
        return {
            name: frechet_distance(self._clips["real"], moments)
            for name, moments in self._clips.items()
            if name != "real"
        }

    def networks(self) -> dict[str, dict[str, Any]]:
        """Each network in words, with the width of its features."""
        networks = {}
        for name, network, moments in (
            ("fid", self._distances.fid_network, self._frames),
            ("fvd", self._distances.fvd_network, self._clips),
        ):
            if network is not None:
                width = len(next(iter(moments.values())).mean)
                networks[name] = network.describe() | {"width": width}
        return networks
