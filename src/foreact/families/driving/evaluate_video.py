"""`foreact eval video` for driving models: imagined and true drives by PSNR, SSIM, FID, FVD."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from tyro.conf import arg

from foreact.data.stores.fingerprint import fingerprint
from foreact.evals.features import COMPARABLE, FeatureNetwork, open_features
from foreact.evals.report import Media
from foreact.evals.video import save_examples
from foreact.families.driving import measuring
from foreact.families.driving.evals import driving_video as imagining
from foreact.machine import AnyPrecision, Precision, autocast, choose_precision
from foreact.progress import Progress
from foreact.runs.command_line import options_of
from foreact.runs.results import open_results
from foreact.runs.run import pick_device, say
from foreact.seeds import require_seeds


@dataclass(frozen=True, kw_only=True)
class DrivingVideo:
    """Which model to measure, on which drives, and how."""

    data: Path
    """a store with the camera's pictures."""
    weights: str | None = None
    """a checkpoint of VaViM or VaVAM; left out, the tokenizer alone is measured."""
    tokenizer: str | None = None
    """checkpoint folder, shipped name or TorchScript encoder, where the model does not embed it."""
    decoder: Path | None = None
    """TorchScript decoder that belongs to a TorchScript encoder."""
    context: int = 4
    """frames that the model sees."""
    future: int = 4
    """frames that it imagines."""
    stride: int | None = None
    """frames of the store from one of the model's to the next; default: by the model's rate."""
    temperature: float = 1.0
    """of the draws."""
    top_k: int = 1
    """draw among the k likeliest tokens; 1 takes the likeliest."""
    features: str | None = None
    """network for FID, a TorchScript file or "module:function"; default: no FID."""
    preprocessing: str = "none"
    """what it expects: none, bytes, imagenet, inception, dinov2, dinov2-reference, i3d."""
    clip_features: str | None = None
    """network over clips for FVD; default: no FVD."""
    clip_preprocessing: str = "i3d"
    """what that one expects."""
    reference: bool = False
    """FID as the reference evaluation computes it.

    That is against the context frames instead of the true future, from float32 sums; to be combined
    with --preprocessing dinov2-reference.
    """
    max_windows: int | None = 256
    """measure so many, spread evenly over the store."""
    batch_size: int = 2
    """windows per call."""
    seed: int = 0
    """of the draws."""
    examples: int = 4
    """windows to draw side by side."""
    precision: AnyPrecision = "fp32"
    """to compute in; with auto, what is fast here, the numbers depend on the machine."""
    out: Path = Path("runs/driving-video")
    """folder of the results."""
    device: str | None = None
    """where to compute; default CUDA if there is one."""


def driving_video(asked: Annotated[DrivingVideo, arg(name="")]) -> None:  # --data, not --asked.data
    """Compare imagined with true drives by PSNR, SSIM, FID per frame ahead and FVD.

    The tokenizer alone is measured beside the model.
    """
    opened = Opened(asked)
    facts = opened.describe()
    say("Imagined drives", **facts, device=opened.device, out=asked.out)
    opened.report(facts, opened.measure())


class Opened:
    """The model, where there is one, the windows to imagine from, and the networks that judge."""

    def __init__(self, asked: DrivingVideo) -> None:
        measuring.require_batch_size(asked.batch_size)
        require_seeds(asked.seed, option="--seed")
        self.asked = asked
        self.device = pick_device(asked.device)
        self.precision: Precision = choose_precision(asked.precision, self.device)
        self.models = None
        if asked.weights is not None:
            self.models = measuring.open_models(asked.weights, self.device)
        tokenizer = measuring.code_tokenizer(
            self.models, asked.tokenizer, self.device, decoder=asked.decoder
        )
        hashes = {} if self.models is None else {"weights": self.models.checkpoint.hash}
        self.fid_network = self._network(asked.features, asked.preprocessing)
        self.fvd_network = self._network(asked.clip_features, asked.clip_preprocessing)
        self.pictures = measuring.open_pictures(
            asked.data,
            tokenizer,
            weights=None if self.models is None else self.models.checkpoint.path,
            frames=asked.context + asked.future,
            stride=asked.stride,
            most=asked.max_windows,
            rate_hz=measuring.MODEL_HZ if self.models is None else self.models.rate_hz,
        )
        hashes["data"] = fingerprint(self.pictures.store).digest
        self.results = open_results(asked.out, "eval video", options_of(asked), **hashes)

    def _network(self, source: str | None, preprocessing: str) -> FeatureNetwork | None:
        if source is None:
            return None
        return open_features(source, preprocessing=preprocessing, device=self.device)

    def describe(self) -> dict[str, Any]:
        asked, models = self.asked, self.models
        weights = "tokenizer alone"
        if models is not None:
            weights = f"{asked.weights} {models.checkpoint.hash}"
        facts = {
            "command": self.results.command,
            "weights": weights,
            "tokenizer": str(asked.tokenizer or "embedded"),
            "data": str(asked.data),
            "drives": self.pictures.about,
            "window": f"{asked.context} + {asked.future} frames, {self.pictures.windows.stride} "
            "apart",
            "sampling": f"temperature {asked.temperature}, top_k {asked.top_k}, seed {asked.seed}",
            "precision": self.precision,
        }
        if asked.features is not None:
            facts["FID against"] = "true future frames"
            if asked.reference:
                facts["FID against"] = "context frames, float32 sums (reference)"
        for kind, network in (("FID", self.fid_network), ("FVD", self.fvd_network)):
            if network is not None:
                facts[f"{kind} network"] = f"{network.name} {network.hash}"
        return facts

    def measure(self) -> imagining.DrivingVideoResult:
        asked, models, pictures = self.asked, self.models, self.pictures
        rng = torch.Generator(self.device).manual_seed(asked.seed)

        def generate(tokens: Tensor, frames: int) -> Tensor:
            assert models is not None
            with autocast(self.device, self.precision):
                return models.vavim.generate(
                    tokens, frames=frames, temperature=asked.temperature, top_k=asked.top_k, rng=rng
                )

        imagine = None if models is None else generate
        imaginer = pictures.imaginer(asked.context, imagine, self.device)
        batches = pictures.batches(asked.batch_size)
        total = -(-len(pictures.chosen) // asked.batch_size)
        distances = imagining.Distances(
            fid_network=self.fid_network,
            fvd_network=self.fvd_network,
            real="context" if asked.reference else "future",
            accumulation="reference" if asked.reference else "exact",
        )
        return imagining.driving_video(
            Progress(batches, total=total, desc="imagine", unit="batch"),
            imaginer,
            distances=distances,
            stride=pictures.windows.stride,
            seed=asked.seed,
            examples=asked.examples,
        )

    def report(self, facts: dict[str, Any], result: imagining.DrivingVideoResult) -> None:
        print("  ".join(f"{name} {value}" for name, value in result.quality.estimates.items()))
        distances = {
            f"FID@1..{self.asked.future}, {name}": ", ".join(f"{v:.3f}" for v in values)
            for name, values in result.fid.items()
        }
        distances |= {f"FVD, {name}": f"{value:.3f}" for name, value in result.fvd.items()}
        for name, value in distances.items():
            print(f"{name}: {value}   ({result.clips} clips)")
        facts |= distances
        if result.networks:
            facts["note"] = COMPARABLE
            if any(result.clips <= network["width"] for network in result.networks.values()):
                facts["note"] += (
                    " There are no more clips than features, so the distances are rough and too "
                    "large."
                )
            print(facts["note"])
        paths = save_examples(result.quality, self.asked.out, fps=self.pictures.store.spec.fps)
        measuring.conclude(
            self.asked.out,
            "Imagined drives",
            {"facts": facts} | result.to_json(),
            facts=facts,
            futures=[Media(path, path.stem) for path in paths],
            quality=[result.quality],
        )
        self.results.finish()
