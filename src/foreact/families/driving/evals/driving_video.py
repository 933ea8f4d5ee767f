"""How good imagined drives look: PSNR and SSIM against the true frames, FID per frame ahead, FVD over clips.

    true future   ─► features ──────────────────────────┐
    true future   ─► tokenizer ─► features ─────────────┼─► Frechet distances, per frame ahead and over clips
    context ─► model ─► tokenizer's decoder ─► features ┘

What the tokenizer alone loses is measured beside the model: no model of its tokens can do better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
class DrivingVideo:
    """Result of `driving_video`.

    Attributes:
        quality: PSNR and SSIM of the model, where there is one ("psnr"), of the tokenizer alone ("psnr_tokenizer") and
            of repeating the last frame ("psnr_copy").
        fid: "imagined", where there is a model, and "tokenizer" -> one distance per frame ahead; empty without a
            network for pictures.
        fvd: the same over the clips of future frames; empty without a network for clips.
        real: which true frames FID compares with.
        accumulation: of the moments.
        clips: number of clips, which is the number of samples behind each distance.
        networks: "fid", "fvd" -> name, hash and preprocessing of the feature network, with its feature width.
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


def driving_video(
    batches: Iterable[Batch],
    tokenizer: Encoder,
    camera: str,
    *,
    generate: Generate | None,
    context: int,
    stride: int = 1,
    seed: int = 0,
    fid_network: FeatureNetwork | None = None,
    fvd_network: FeatureNetwork | None = None,
    real: RealSet = "future",
    accumulation: Accumulation = "exact",
    examples: int = 4,
    device: torch.device | str,
) -> DrivingVideo:
    """Imagine what follows the first `context` frames of each window and compare it with what did.

    All pictures are compared as uint8, true and imagined alike, as they would lie on disk.

    Args:
        batches: with `video[camera]`; `tokens[camera]`, where there, save encoding. `index` names the drives.
        tokenizer: of the model's tokens; it has to know the way back to pixels.
        camera: stream to look at.
        generate: the model; None measures the tokenizer alone.
        context: frames of a window that the model sees; the others are the future.
        stride: steps of the store between frames, for labels.
        seed: of the model's draws, for the record.
        fid_network, fvd_network: feature networks over pictures and over clips; None leaves the distance out.
        real: true frames that FID@k compares with: the future ones of the same k, or, as the reference evaluation
            does, all context frames, which lets a model that repeats its context win.
        accumulation: "reference" for the float32 sums of the reference evaluation.
        examples: windows to keep for pictures, one per drive.
        device: where tokenizer and model compute.

    Raises:
        UserError: windows without pictures or without a future, too few for a Frechet distance, or a tokenizer that
            draws no pictures.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(
            "Imagined tokens are compared as pictures, and this tokenizer only encodes; give a model whose tokens "
            "can be drawn, such as those of a vq."
        )
    distances = _Distances(fid_network, fvd_network, real, accumulation)
    values: dict[str, list[np.ndarray]] = {}
    owners: list[np.ndarray] = []
    kept: list[Example] = []
    windows, future = 0, 0
    for batch in batches:
        if camera not in batch.video:
            raise UserError(
                f"Imagined frames are compared with true ones, and the data has no pictures of camera '{camera}'; "
                "open a store with frames, not tokens alone."
            )
        video = batch.video[camera]
        future = video.shape[1] - context
        if context < 1 or future < 1:
            raise UserError(f"Windows of {video.shape[1]} frames leave no future after {context} frames of context.")
        true = video.movedim(2, -1).cpu().numpy()
        reconstructed, predicted = _imagine(batch, video, tokenizer, camera, generate, context, device)
        truth, seen = true[:, context:], true[:, :context]
        made = {"tokenizer": reconstructed} | ({} if predicted is None else {"imagined": predicted})
        distances.add(seen, truth, made)
        copy = np.repeat(seen[:, -1:], future, axis=1)
        for suffix, frames in (("", predicted), ("_tokenizer", reconstructed), ("_copy", copy)):
            if frames is None:
                continue
            pair = (frames.reshape(-1, *frames.shape[2:]), truth.reshape(-1, *truth.shape[2:]))
            values.setdefault(f"psnr{suffix}", []).append(psnr(*pair).clip(max=ROUNDING_PSNR).reshape(-1, future))
            values.setdefault(f"ssim{suffix}", []).append(ssim(*pair).reshape(-1, future))
        index = np.stack([np.arange(windows, windows + len(true))] * 2, 1) if batch.index is None else batch.index
        index = np.asarray(index)
        owners.append(index[:, 0])
        for row, (episode, anchor) in enumerate(index.tolist()):
            if len(kept) < examples and episode not in [e.episode for e in kept]:
                own = None if predicted is None else predicted[row]
                kept.append(Example(seen[row], truth[row], own, episode, anchor, reconstructed=reconstructed[row]))
        windows += len(true)
    if not windows:
        raise UserError("There is no window to imagine from; give longer drives or another split.")
    drives = np.concatenate(owners)
    joined = {name: np.concatenate(parts) for name, parts in values.items()}
    quality = VideoQuality(
        mode="video",
        estimates={name: _estimate(name, v.mean(1), drives) for name, v in joined.items()},
        curves={name: [_estimate(name, column, drives) for column in v.T] for name, v in joined.items()},
        steps_ahead=[(i + 1) * stride for i in range(future)],
        windows=windows,
        seed=seed,
        examples=kept,
    )
    return DrivingVideo(
        quality=quality,
        fid=distances.fid(),
        fvd=distances.fvd(),
        real=real,
        accumulation=accumulation,
        clips=windows,
        networks=distances.networks(),
    )


@torch.no_grad()
def _imagine(
    batch: Batch,
    video: Tensor,
    tokenizer: Tokenizer,
    camera: str,
    generate: Generate | None,
    context: int,
    device: torch.device | str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reconstructed and imagined future, uint8 (B, F, H, W, 3)."""
    tokens = batch.tokens.get(camera)
    tokens = tokenizer.encode(to_model_range(video.to(device))) if tokens is None else tokens.to(device)

    def frames(z: Tensor) -> np.ndarray:
        found = to_uint8(tokenizer.decode(z)).movedim(2, -1).cpu().numpy()
        if found.shape[2:4] != tuple(video.shape[3:]):
            raise UserError(
                f"The tokenizer draws {found.shape[2]} x {found.shape[3]} pixels and the data holds {video.shape[3]} x "
                f"{video.shape[4]}; use the tokenizer and picture size that belong together."
            )
        return found

    reconstructed = frames(tokens[:, context:])
    if generate is None:
        return reconstructed, None
    return reconstructed, frames(generate(tokens[:, :context], tokens.shape[1] - context))


class _Distances:
    """Moments of true, reconstructed and imagined frames and clips."""

    def __init__(
        self,
        fid_network: FeatureNetwork | None,
        fvd_network: FeatureNetwork | None,
        real: RealSet,
        accumulation: Accumulation,
    ) -> None:
        if real not in ("future", "context"):
            raise UserError(f"FID compares with the true 'future' or the 'context', found '{real}'.")
        self.fid_network, self.fvd_network, self.real = fid_network, fvd_network, real
        self.accumulation: Accumulation = accumulation
        self._frames: dict[tuple[str, int], Moments] = {}
        self._clips: dict[str, Moments] = {}

    def add(self, seen: np.ndarray, truth: np.ndarray, made: Mapping[str, np.ndarray]) -> None:
        if self.fid_network is not None:
            network = self.fid_network

            def features(clips: np.ndarray) -> np.ndarray:
                """(B, F, D), all frames in one call."""
                return network.images(clips.reshape(-1, *clips.shape[2:])).reshape(*clips.shape[:2], -1)

            frames = {name: features(clips) for name, clips in made.items()}
            if self.real == "future":
                frames["real"] = features(truth)
            else:
                for rows in features(seen):
                    self._add_frames("real", -1, rows)
            for name, rows in frames.items():
                for k in range(rows.shape[1]):
                    self._add_frames(name, k, rows[:, k])
        if self.fvd_network is not None:
            for name, clips in {"real": truth, **made}.items():
                self._clips.setdefault(name, Moments(self.accumulation)).add(self.fvd_network.clips(clips))

    def _add_frames(self, name: str, k: int, rows: np.ndarray) -> None:
        self._frames.setdefault((name, k), Moments(self.accumulation)).add(rows)

    def fid(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for (name, k), moments in self._frames.items():
            if name != "real":
                real = self._frames["real", k if self.real == "future" else -1]
                found.setdefault(name, []).append(frechet_distance(real, moments))
        return found

    def fvd(self) -> dict[str, float]:
        made = {name: moments for name, moments in self._clips.items() if name != "real"}
        return {name: frechet_distance(self._clips["real"], moments) for name, moments in made.items()}

    def networks(self) -> dict[str, dict[str, Any]]:
        found = {}
        for name, network, sets in (
            ("fid", self.fid_network, list(self._frames.values())),
            ("fvd", self.fvd_network, list(self._clips.values())),
        ):
            if network is not None:
                found[name] = network.describe() | {"width": len(sets[0].mean)}
        return found


def _estimate(name: str, values: np.ndarray, drives: np.ndarray) -> Estimate:
    return clustered_estimate(values, drives, unit="dB" if name.startswith("psnr") else "")
