"""`foreact scaling`: does muP hold over widths, and how does the loss fall with size and data?"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from tyro.conf import OmitArgPrefixes

from foreact.checkpoints.configs import read_json
from foreact.data.windows.loader import batches
from foreact.errors import UserError
from foreact.families.driving.evals.scaling_law import ScalingLaw, fit_scaling_law
from foreact.families.driving.sources import DrivingData, DrivingSplit, load_driving
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.files import write_json
from foreact.nn.gpt import CausalBlock
from foreact.progress import Progress
from foreact.runs.inputs import Inputs
from foreact.runs.run import check_run, pick_device, say, write_run
from foreact.runs.validation import ValidationLoss
from foreact.seeds import require_seeds
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig
from foreact.train.loop import train
from foreact.train.optim import build_optimizer, clip_gradients
from foreact.types import Batch

HEAD = 32
"""Channels per head at every width: muP scales widths, not heads."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the runs of a comparison have in common."""

    sources: tuple[str, ...]
    """Drives to learn from, as in `foreact train vavim --data.sources`."""
    layers: int = 3
    """Blocks."""
    frames: int = 2
    """Frames per window."""
    grid: tuple[int, int] = (18, 32)
    """Rows and columns of tokens."""
    vocab: int = 16385
    """Token ids."""
    batch_size: int = 2
    """Windows per step."""
    seed: int = 0
    """Of weights and data."""
    device: str | None = None
    """Where to compute; default CUDA if there is one."""

    def __post_init__(self) -> None:
        require_seeds(self.seed, option="--seed")

    def model(self, width: int, *, base_width: int) -> VaViMConfig:
        """A VaViM of a width, with heads of one size."""
        if width % HEAD:
            raise UserError(f"--widths should be multiples of {HEAD}, found {width}.")
        return VaViMConfig(
            width=width,
            heads=width // HEAD,
            base_width=base_width,
            layers=self.layers,
            frames=self.frames,
            grid=self.grid,
            vocab=self.vocab,
        )


def coord_check(
    setting: OmitArgPrefixes[Setting],
    widths: tuple[int, ...] = (64, 128, 256),
    steps: int = 6,
    lr: float = 0.01,
    out: Path = Path("runs/coord-check"),
) -> None:
    """Train a few steps at several widths and plot how far activations move, with and without muP.

    Under muP the size of what each part adds stays the same at every width; without it, it grows
    with the width, and the learning rate must be tuned again for every size.

    Args:
        setting: what the runs have in common.
        widths: widths to compare; the first is muP's base.
        steps: optimiser steps.
        lr: base learning rate.
        out: folder of the plot and the numbers.
    """
    if not widths or steps < 1:
        raise UserError(
            f"--widths needs one width at least and --steps one step, found {widths} and {steps}."
        )
    device = pick_device(setting.device)
    data = DrivingData(sources=setting.sources)
    narrowest = setting.model(widths[0], base_width=widths[0])
    split = load_driving(data, narrowest, horizon=None, inputs=Inputs(None, seed=setting.seed))
    facts = {"data": split.about, "widths": widths, "steps": steps, "lr": lr}
    say("Coordinate check", **facts, device=device, out=out)
    changes: dict[str, dict[int, list[dict[str, float]]]] = {"muP": {}, "standard": {}}
    for name, rows in changes.items():
        for width in Progress(widths, desc=name, unit="width"):
            config = setting.model(width, base_width=widths[0] if name == "muP" else width)
            rows[width] = movements(setting, config, split, steps=steps, lr=lr)
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "coord-check.json",
        {name: {str(w): v for w, v in rows.items()} for name, rows in changes.items()},
    )
    (out / "coord-check.png").write_bytes(coordinates_figure(changes))
    for name, rows in changes.items():
        first, last = rows[widths[0]][-1], rows[widths[-1]][-1]  # part -> change after all steps
        growth = ", ".join(f"{part} x{last[part] / first[part]:.2f}" for part in first)
        print(f"{name}: widest over narrowest after {steps} steps: {growth}")
    print(out / "coord-check.png")


def movements(
    setting: Setting, config: VaViMConfig, split: DrivingSplit, *, steps: int, lr: float
) -> list[dict[str, float]]:
    """Per step, how far each part's output on the first batch has moved: mean absolute change."""
    device = pick_device(setting.device)
    torch.manual_seed(setting.seed)
    model = VaViM(config).to(device).train()
    optimizer = build_optimizer(model, lr=lr, weight_decay=0.0, betas=(0.9, 0.95))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    stream = batches(split.training, batch_size=setting.batch_size, seed=setting.seed)
    probe = next(stream).to(device)
    start = outputs(model, probe)
    rows = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(next(stream).to(device), rng=torch.Generator()).loss.backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()
        now = outputs(model, probe)
        rows.append({name: (now[name] - start[name]).abs().mean().item() for name in start})
    return rows


@torch.no_grad()
def outputs(model: VaViM, batch: Batch) -> dict[str, torch.Tensor]:
    """Embeddings, what the first and last attention and MLP add, and logits."""
    activations: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, result: torch.Tensor) -> None:
            activations[name] = result.detach()

        return hook

    last = len(model.blocks) - 1
    parts: dict[str, nn.Module] = {"embedding": model.token_embedding}
    for i in sorted({0, last}):
        block = model.blocks[i]
        assert isinstance(block, CausalBlock)
        parts |= {f"attention {i}": block.attention.out, f"mlp {i}": block.mlp}
    handles = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
    activations["logits"] = model.logits(batch.tokens[model.config.camera])
    for handle in handles:
        handle.remove()
    return activations


def lr_sweep(
    setting: OmitArgPrefixes[Setting],
    widths: tuple[int, ...] = (64, 128, 256),
    lrs: tuple[float, ...] = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032),
    steps: int = 100,
    standard: bool = False,
    out: Path = Path("runs/lr-sweep"),
) -> None:
    """Train at several widths and base learning rates; under muP one rate is the best at all.

    A sweep that was stopped goes on with the runs that are missing.

    Args:
        setting: what the runs have in common.
        widths: widths to compare; the first is muP's base.
        lrs: base learning rates.
        steps: optimiser steps of each run, a tenth of them warmup.
        standard: leave muP out (every width is its own base), to see the difference.
        out: folder of the runs, the plot and the numbers.
    """
    if not widths or not lrs:
        raise UserError(f"--widths and --lrs need one value at least, found {widths} and {lrs}.")
    rows = []
    for width in widths:
        base = width if standard else widths[0]
        config = setting.model(width, base_width=base)
        for lr in lrs:
            folder = out / f"width-{width}-lr-{lr:g}"
            loss = short_run(setting, config, folder, lr=lr, steps=steps)
            rows.append({"width": width, "lr": lr, "loss": loss})
            print(f"width {width:>5}  lr {lr:<8g} loss {loss:.4f}")
    write_json(out / "lr-sweep.json", rows)
    (out / "lr-sweep.png").write_bytes(sweep_figure(rows, standard=standard))
    for width in widths:
        best = min((row for row in rows if row["width"] == width), key=lambda row: row["loss"])
        print(f"width {width}: best lr {best['lr']:g} (loss {best['loss']:.4f})")
    print(out / "lr-sweep.png")


def laws(
    setting: OmitArgPrefixes[Setting],
    widths: tuple[int, ...] = (64, 96, 128, 192),
    steps: tuple[int, ...] = (50, 100, 200, 400),
    lr: float = 0.004,
    out: Path = Path("runs/scaling-laws"),
) -> None:
    """Train a grid of sizes and amounts of data, fit L(N, D) = E + A / N^a + B / D^b and plot it.

    Every run goes through its whole schedule. A sweep that was stopped goes on with the runs that
    are missing.

    Args:
        setting: what the runs have in common.
        widths: at least three; the first is muP's base, so that one learning rate serves all.
        steps: optimiser steps, at least three values.
        lr: base learning rate.
        out: folder of the runs, the plot and the numbers.
    """
    if min(len(set(widths)), len(set(steps))) < 3:
        raise UserError(
            "A law needs three widths and three numbers of steps at least, found "
            f"{widths} and {steps}."
        )
    rows = []
    for width in widths:
        config = setting.model(width, base_width=widths[0])
        with torch.device("meta"):
            parameters = sum(p.numel() for p in VaViM(config).blocks.parameters())
        for count in steps:
            folder = out / f"width-{width}-steps-{count}"
            loss = short_run(setting, config, folder, lr=lr, steps=count)
            tokens = count * setting.batch_size * (setting.frames * config.tokens_per_frame - 1)
            sizes = {"width": width, "steps": count, "parameters": parameters, "tokens": tokens}
            rows.append({**sizes, "loss": loss})
            print(f"N {parameters:>10,}  D {tokens:>10,}  loss {loss:.4f}")
    law = fit_scaling_law(*([row[key] for row in rows] for key in ("parameters", "tokens", "loss")))
    write_json(out / "scaling-laws.json", {"runs": rows, "law": dataclasses.asdict(law)})
    (out / "scaling-laws.png").write_bytes(law_figure(rows, law))
    print(f"{law}   (N: parameters of the blocks; relative residuals {law.error:.2%})")
    print(out / "scaling-laws.png")


@dataclass(frozen=True, kw_only=True)
class ShortRun:
    """What a run of a sweep is; the same run is not repeated, another one is not taken for it."""

    free_on_resume: ClassVar[tuple[str, ...]] = ("out", "train")

    out: Path
    sources: tuple[str, ...]
    model: VaViMConfig
    train: TrainConfig


def short_run(
    setting: Setting, config: VaViMConfig, folder: Path, *, lr: float, steps: int
) -> float:
    """Validation loss after a warmup-stable-drop run, nats per token; read where it has ended."""
    batch_size, seed = setting.batch_size, setting.seed
    training = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.0,
        schedule="wsd",
        warmup=max(1, steps // 10),
        drop=steps // 5,
        ema=EMAConfig(enabled=False),
        seed=seed,
        log_every=max(1, steps // 10),
        save_every=steps,
        keep=1,
        best_k=0,
        tensorboard=False,
    )
    split = load_driving(
        DrivingData(sources=setting.sources), config, horizon=None, inputs=Inputs(None, seed=seed)
    )
    evaluator = ValidationLoss(split.validation)
    device = pick_device(setting.device)
    run = ShortRun(out=folder, sources=setting.sources, model=config, train=training)
    run = check_run(run, device)
    loss_file = folder / "loss.json"
    if loss_file.is_file():
        return read_json(loss_file)["val/loss"]

    def micro_batches(start: int, rank: int, world: int) -> Iterator[Batch]:
        return batches(
            split.training, batch_size=batch_size, seed=seed, start=start, rank=rank, world=world
        )

    torch.manual_seed(seed)
    model = VaViM(config)
    result = train(
        model,
        micro_batches,
        run.train,
        folder,
        device=device,
        begin=lambda: write_run(run, split.inputs),
    )
    if result.interrupted:
        raise KeyboardInterrupt
    model.eval()
    with torch.no_grad():
        loss = evaluator(model, steps)["loss"]
    write_json(loss_file, {"val/loss": loss})
    return loss


# --- figures --------------------------------------------------------------------------------------


def coordinates_figure(changes: dict[str, dict[int, list[dict[str, float]]]]) -> bytes:
    figure, axes = _figure(len(changes))
    for ax, (name, rows) in zip(axes, changes.items(), strict=True):
        widths = sorted(rows)
        for part in rows[widths[0]][-1]:
            ax.plot(widths, [rows[w][-1][part] for w in widths], marker="o", ms=4, label=part)
        ax.set(xscale="log", yscale="log", title=name)
        ax.set(xlabel="width", ylabel="mean |change of the output|")
        ax.set_xticks(widths, [str(w) for w in widths], minor=False)
        ax.set_xticks([], minor=True)
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)
    axes[-1].legend(fontsize=8, frameon=False)
    return _png(figure)


def sweep_figure(rows: Sequence[dict[str, Any]], *, standard: bool) -> bytes:
    figure, (ax,) = _figure(1)
    for width in sorted({row["width"] for row in rows}):
        points = sorted((row["lr"], row["loss"]) for row in rows if row["width"] == width)
        lrs, losses = zip(*points, strict=True)
        (line,) = ax.plot(lrs, losses, marker="o", ms=4, label=f"width {width}")
        best = int(np.argmin(losses))
        ax.plot(lrs[best], losses[best], marker="*", ms=13, color=line.get_color())
    ax.set(xscale="log", xlabel="base learning rate", ylabel="validation loss, nats per token")
    ax.set_title("without muP" if standard else "muP: the best rate (star) should not move")
    ax.legend(fontsize=8, frameon=False)
    return _png(figure)


def law_figure(rows: Sequence[dict[str, Any]], law: ScalingLaw) -> bytes:
    figure, (ax,) = _figure(1)
    for size in sorted({row["parameters"] for row in rows}):
        points = sorted((row["tokens"], row["loss"]) for row in rows if row["parameters"] == size)
        tokens, losses = (np.array(v, float) for v in zip(*points, strict=True))
        fine = np.geomspace(tokens.min(), tokens.max(), 50)
        (line,) = ax.plot(fine, law(size, fine), lw=1.2, label=f"N = {size:,}")
        ax.plot(tokens, losses, "o", ms=4, color=line.get_color())
    ax.set(xscale="log", xlabel="tokens seen, D", ylabel="validation loss, nats per token")
    ax.set_title(str(law))
    ax.title.set_fontsize(9)
    ax.legend(fontsize=8, frameon=False)
    return _png(figure)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * panels, 3.8), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
