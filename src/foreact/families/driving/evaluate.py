"""`foreact eval open-loop` and `eval video` for driving models: VaViM and VaVAM on recorded drives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from foreact.checkpoints.format import Checkpoint, build, load_checkpoint
from foreact.checkpoints.shipped import resolve
from foreact.checkpoints.tokenizers import LoadedTokenizer, open_tokenizer, tokenizer_of
from foreact.data.formats.video import save_image
from foreact.data.stores.store import ZarrStore, open_store
from foreact.data.windows.loader import ordered_batches, spread
from foreact.errors import UserError
from foreact.evals.features import COMPARABLE, FeatureNetwork, open_features
from foreact.evals.report import Media, write_report
from foreact.evals.video import save_examples
from foreact.families.driving.data.drives import FRONT, Drives, StoreDrives
from foreact.families.driving.data.windows import DrivingWindows
from foreact.families.driving.evals import driving_video as imagining
from foreact.families.driving.evals import open_loop as driving
from foreact.families.driving.evals.plan_pictures import GroundCamera, plan_picture
from foreact.families.driving.sources import even_stride, open_drives
from foreact.families.driving.vavam import VaVAM
from foreact.families.driving.vavim import VaViM
from foreact.machine import AnyPrecision, autocast, choose_precision
from foreact.runs.run import pick_device, say, write_json
from foreact.types import Batch, to_uint8

MODEL_HZ = 2.0
"""Frames per second that the published models see, and that weights are taken to see which do not say."""

NEAREST = "choose the nearest with --stride"


def open_loop(
    weights: str,
    data: str,
    stride: int | None = None,
    samples: int = 10,
    steps: int | None = None,
    command_horizon: Literal["plan", "reference"] = "plan",
    max_windows: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    examples: int = 8,
    calibration: Path | None = None,
    store_trajectories: bool = False,
    precision: AnyPrecision = "fp32",
    out: Path = Path("runs/open-loop"),
    device: str | None = None,
) -> None:
    """Score a driving model on recorded drives: loss of the next token and, for VaVAM, minADE of its plans.

    Args:
        weights: a checkpoint of VaViM or VaVAM.
        data: a source as in `foreact train vavim --data.sources`: a store with tokens, a folder of token folders with
            its frame rate (flat_tokens@10), or trajectories with their tokens (val.pkl:tokens@2).
        stride: frames of the data from one frame of the model to the next; default: as makes the model's rate.
        samples: plans per window, the k of minADE_k.
        steps: Euler steps per plan; default: the model's.
        command_horizon: commands look to the end of the plan, or as the released VaVAM was trained.
        max_windows: measure so many, spread evenly over the data; default: every one.
        batch_size: windows per call.
        seed: of the plans' draws.
        examples: plans to draw.
        calibration: JSON of the camera, to draw plans on frames: intrinsic (3 x 3), sensor_to_ego_rot (w, x, y, z),
            sensor_to_ego_tran (x, y, z), size (height, width).
        store_trajectories: also write every plan to plans.json.
        precision: to compute in; with auto, what is fast here, the numbers depend on the machine.
        out: folder of the results.
        device: where to compute; default CUDA if there is one.
    """
    require_batch_size(batch_size)
    where = pick_device(device)
    computed = choose_precision(precision, where)
    models = open_models(weights, where)
    vavim, vavam = models.vavim, models.vavam
    drives = open_drives(data)
    camera = None if calibration is None else GroundCamera.read(calibration)
    shared: dict[str, Any] = {
        "frames": vavim.config.frames,
        "stride": stride or even_stride(drives.label, drives.rate_hz, models.rate_hz, NEAREST),
        "vocab": vavim.config.vocab,
        "camera": vavim.config.camera,
    }
    facts: dict[str, Any] = {
        "weights": f"{weights} {models.checkpoint.hash}",
        "data": drives.label,
        "window": f"{shared['frames']} frames, {shared['stride']} apart",
        "precision": computed,
    }
    say("Open loop", **facts, device=where, out=out)

    windows = DrivingWindows(drives, **shared, horizon=None)
    with autocast(where, computed):
        tokens = driving.next_token(
            vavim.token_losses,
            _bar(windows, batch_size, max_windows, "next token"),
            shared["camera"],
            device=where,
        )
    print(f"next token  {tokens.loss}   perplexity {tokens.perplexity:.1f}   ({tokens.windows} windows)")
    result: dict[str, Any] = {"facts": facts, "next_token": tokens.to_json()}
    pictures: list[Media] = []
    if vavam is not None:
        windows = DrivingWindows(
            drives,
            **{**shared, "frames": vavam.config.context or vavim.config.frames},
            horizon=vavam.config.expert.horizon,
            command_horizon=command_horizon,
        )
        with autocast(where, computed):
            plans = driving.open_loop(
                vavam,
                _bar(windows, batch_size, max_windows, "plans"),
                shared["camera"],
                samples=samples,
                steps=vavam.config.steps if steps is None else steps,
                seed=seed,
                examples=examples,
                device=where,
            )
        name = f"minADE_{samples}"
        facts |= {"command horizon": command_horizon, name: str(plans.min_ade)}
        facts |= {f"{name}, {command}": str(value) for command, value in plans.per_command.items()}
        print(f"{name}  {plans.min_ade}")
        for command, value in plans.per_command.items():
            print(f"  {command:<16}{value}   ({plans.windows[command]} windows)")
        facts |= {f"ADE, {baseline}": str(value) for baseline, value in plans.baselines.items()}
        for baseline, value in plans.baselines.items():
            print(f"  {baseline:<16}{value}")
        result["plans"] = plans.to_json()
        for plan in (plans.plans[i] for i in plans.examples):
            path = out / f"plan-episode-{plan.episode}-step-{plan.step}.png"
            save_image(path, plan_picture(plan, _frame(drives, plan.episode, plan.step), camera))
            pictures.append(Media(path, f"{drives.names[plan.episode]}, step {plan.step}"))
        if store_trajectories:
            write_json(out / "plans.json", plans.plans_json())
    facts |= {"nats per token": str(tokens.loss), "perplexity": f"{tokens.perplexity:.2f}"}
    conclude(out, "Open loop on recorded drives", result, facts=facts, pictures=pictures)


def driving_video(
    data: Path,
    weights: str | None = None,
    tokenizer: str | None = None,
    decoder: Path | None = None,
    context: int = 4,
    future: int = 4,
    stride: int | None = None,
    temperature: float = 1.0,
    top_k: int = 1,
    features: str | None = None,
    preprocessing: str = "none",
    clip_features: str | None = None,
    clip_preprocessing: str = "i3d",
    reference: bool = False,
    max_windows: int | None = 256,
    batch_size: int = 2,
    seed: int = 0,
    examples: int = 4,
    precision: AnyPrecision = "fp32",
    out: Path = Path("runs/driving-video"),
    device: str | None = None,
) -> None:
    """Compare imagined drives with true ones: PSNR, SSIM, FID per frame ahead, FVD; beside the tokenizer alone.

    Args:
        data: a store with the camera's pictures.
        weights: a checkpoint of VaViM or VaVAM; left out, the tokenizer alone is measured.
        tokenizer: checkpoint folder, shipped name or TorchScript encoder, where the model does not embed it.
        decoder: TorchScript decoder that belongs to a TorchScript encoder.
        context: frames that the model sees.
        future: frames that it imagines.
        stride: frames of the store from one frame of the model to the next; default: as makes the model's rate.
        temperature: of the draws.
        top_k: draw among the k likeliest tokens; 1 takes the likeliest.
        features: network for FID, a TorchScript file or "module:function"; default: no FID.
        preprocessing: what it expects: none, bytes, imagenet, inception, dinov2, dinov2-reference, i3d.
        clip_features: network over clips for FVD; default: no FVD.
        clip_preprocessing: what that one expects.
        reference: FID as the reference evaluation computes it: against the context frames instead of the true future,
            from float32 sums; to be combined with --preprocessing dinov2-reference.
        max_windows: measure so many, spread evenly over the store.
        batch_size: windows per call.
        seed: of the draws.
        examples: windows to draw side by side.
        precision: to compute in; with auto, what is fast here, the numbers depend on the machine.
        out: folder of the results.
        device: where to compute; default CUDA if there is one.
    """
    require_batch_size(batch_size)
    where = pick_device(device)
    computed = choose_precision(precision, where)
    models = None if weights is None else open_models(weights, where)
    found = code_tokenizer(models, tokenizer, where, decoder=decoder)
    networks = [
        None if source is None else open_features(source, preprocessing=name, device=where)
        for source, name in ((features, preprocessing), (clip_features, clip_preprocessing))
    ]
    store = open_store(data)
    stride = stride or even_stride(str(data), store.spec.fps, MODEL_HZ if models is None else models.rate_hz, NEAREST)
    windows = DrivingWindows(StoreDrives(store), frames=context + future, stride=stride, horizon=None)
    rng = torch.Generator(where).manual_seed(seed)

    def generate(tokens: Tensor, frames: int) -> Tensor:
        assert models is not None
        with autocast(where, computed):
            return models.vavim.generate(tokens, frames=frames, temperature=temperature, top_k=top_k, rng=rng)

    facts: dict[str, Any] = {
        "weights": "tokenizer alone" if models is None else f"{weights} {models.checkpoint.hash}",
        "tokenizer": str(tokenizer or "embedded"),
        "data": str(data),
        "window": f"{context} + {future} frames, {stride} apart",
        "sampling": f"temperature {temperature}, top_k {top_k}, seed {seed}",
        "precision": computed,
    }
    if features is not None:
        facts["FID against"] = "context frames, float32 sums (reference)" if reference else "true future frames"
    facts |= {f"{kind} network": _named(n) for kind, n in zip(("FID", "FVD"), networks, strict=True) if n is not None}
    say("Imagined drives", **facts, device=where, out=out)
    chosen = choose(windows, max_windows)
    result = imagining.driving_video(
        tqdm(
            picture_batches(windows, store, chosen, batch_size, found),
            total=-(-len(chosen) // batch_size),
            desc="imagine",
            unit="batch",
        ),
        found.tokenizer,
        FRONT,
        generate=None if models is None else generate,
        context=context,
        stride=stride,
        seed=seed,
        fid_network=networks[0],
        fvd_network=networks[1],
        real="context" if reference else "future",
        accumulation="reference" if reference else "exact",
        examples=examples,
        device=where,
    )
    print("  ".join(f"{name} {value}" for name, value in result.quality.estimates.items()))
    for name in result.fid:
        facts[f"FID@1..{future}, {name}"] = ", ".join(f"{v:.3f}" for v in result.fid[name])
    for name in result.fvd:
        facts[f"FVD, {name}"] = f"{result.fvd[name]:.3f}"
    for key in (key for key in facts if key.startswith(("FID@", "FVD,"))):
        print(f"{key}: {facts[key]}   ({result.clips} clips)")
    if any(networks):
        facts["note"] = COMPARABLE
        if any(result.clips <= network["width"] for network in result.networks.values()):
            facts["note"] += " There are no more clips than features, so the distances are rough and too large."
        print(facts["note"])
    futures = [Media(path, path.stem) for path in save_examples(result.quality, out, fps=store.spec.fps)]
    shown = {"facts": facts, "futures": futures, "quality": [result.quality]}
    conclude(out, "Imagined drives", {"facts": facts} | result.to_json(), **shown)


def require_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size should be at least 1, found {batch_size}.")


def picture_batches(
    windows: DrivingWindows, store: ZarrStore, chosen: np.ndarray, batch_size: int, tokenizer: LoadedTokenizer
) -> Iterator[Batch]:
    """The pictures of windows at the size that the tokenizer at hand wants, without tokens: it makes them anew."""
    for part in np.array_split(chosen, -(-len(chosen) // batch_size)):
        frames = store.gather(FRONT, windows.rows(part))
        video = to_uint8(tokenizer.prepare(torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 2)))
        yield Batch(video={FRONT: video}, index=torch.from_numpy(windows.index(part)))


class DrivingModels(NamedTuple):
    """What a checkpoint of VaViM or VaVAM holds: the video model, the action model around it where there is one."""

    vavim: VaViM
    vavam: VaVAM | None
    checkpoint: Checkpoint

    @property
    def rate_hz(self) -> float:
        """Frames per second that the model sees."""
        return MODEL_HZ if self.checkpoint.spec is None else self.checkpoint.spec.fps


def open_models(weights: str, device: torch.device) -> DrivingModels:
    """Read a checkpoint folder, or a shipped name."""
    checkpoint = load_checkpoint(resolve(weights), of=("vavim", "vavam"))
    model = build(checkpoint, device)
    if isinstance(model, VaVAM):
        return DrivingModels(model.vavim, model, checkpoint)
    assert isinstance(model, VaViM)
    return DrivingModels(model, None, checkpoint)


def code_tokenizer(
    models: DrivingModels | None, ref: str | None, device: torch.device, *, decoder: Path | None = None
) -> LoadedTokenizer:
    """The tokenizer of a model's tokens, or the one named by itself."""
    if models is not None:
        found = tokenizer_of(models.checkpoint, ref, device, decoder=decoder)
    elif ref is not None:
        found = open_tokenizer(ref, device, decoder=decoder)
    else:
        raise UserError("Name a model with --weights, or a tokenizer to measure alone with --tokenizer.")
    if found.tokenizer.vocab is None:
        brings = ref if models is None else models.checkpoint.path
        raise UserError(f"{ref or brings} brings a tokenizer of continuous latents; driving models read tokens.")
    return found


def choose(windows: DrivingWindows, most: int | None) -> np.ndarray:
    """Numbers of the windows to measure: all, or at most `most` spread evenly."""
    if most is not None and most < 1:
        raise UserError(f"max_windows should be at least 1, found {most}.")
    return spread(len(windows), len(windows) if most is None else most)


def _bar(windows: DrivingWindows, batch_size: int, most: int | None, name: str) -> Iterable[Batch]:
    chosen = choose(windows, most)
    batches = ordered_batches(windows, batch_size=batch_size, chosen=chosen)
    return tqdm(batches, total=-(-len(chosen) // batch_size), desc=name, unit="batch")


def _frame(drives: Drives, episode: int, step: int) -> np.ndarray | None:
    """The picture of one step, uint8 (H, W, 3), where the drives have pictures."""
    if not isinstance(drives, StoreDrives) or not drives.store.has(FRONT):
        return None
    return drives.store.read(episode, step, step + 1, [FRONT])[FRONT][0]


def _named(network: FeatureNetwork) -> str:
    return f"{network.name} {network.hash}"


def conclude(out: Path, title: str, result: dict[str, Any], **page: Any) -> None:
    """Write metrics.json and report.html (`page`: see `write_report`), and say where they lie."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", result)
    report = write_report(out / "report.html", title=title, **page)
    print(f"Metrics: {out / 'metrics.json'}\nReport: {report}")
