"""Does a GPU compute what the CPU computes, and how fast? One run, one JSON, one table.

    python benchmarks/gpu_check.py                          (published sizes, under 6 minutes)
    python benchmarks/gpu_check.py --device cpu --quick     (tiny sizes, to see that it works)

The GPU figures are not measured yet: so far this has run on a CPU only.

    correctness       outputs, losses and gradients on the device, in float32 without TF32 and under
                      bfloat16 autocast, against float32 on the CPU: same weights, same draws
    latency           of a call without gradients, until the device is done
    training          samples/s, and FLOP/s as a share of those of a large product of the same type
    decode_bandwidth  bytes of weights a second that a decoding step reads, as a share of what the
                      memory gives; the keys and values it reads besides are not counted
    modes             a call in eager mode, as a CUDA graph, and with its blocks compiled; "apart"
                      is how far the result is from eager's

Weights and inputs are random. bfloat16 is autocast, but where VaViM is timed without training: its
weights are bfloat16 there, as in `foreact generate`. VaViM's decoding step is always the first one
after the context; another place in the window would be another graph, and another compilation.

This runs from the source tree and needs torch and what foreact's models and tokenizers import, no
more. So AdamW is torch's own, over the models' parameter groups: `foreact.train` imports progress
bars. A part that fails is named with its reason, and the rest goes on. Exit status: 0; 1 where a
check failed or a part broke (a graph or compilation that fails is a finding); 2 without the device.
The JSON is "complete" where no part was left out for want of time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foreact.families.driving.vavam import SIZES, ExpertConfig, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.families.uva.model import UVA, Question, UVAConfig
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.model import VOC
from foreact.nn.gpt import KVCache
from foreact.nn.mup import HiddenLinear
from foreact.nn.weight_only import reduce_weights
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.types import Batch

TOLERANCE = {
    # values: |found - right| / |right|, norms over the tensor. Rounding on a CPU made up to 1e-5 of
    # it in float32 and 2e-2 in bfloat16; TF32, with three bits more, should make 1e-3 and more.
    # codes: share that differs, since rounding decides between codes that are equally near.
    "float32": {"values": 3e-4, "codes": 0.01},
    "bfloat16": {"values": 5e-2, "codes": 0.3},
}
DTYPES = tuple(TOLERANCE)
BUDGET_S = 300.0  # no part begins later: a GPU on loan goes back in time
TIMED_S = 2.0  # a measurement ends then, once it has three repeats
LR, DECAY = 1e-4, 0.1
Call = Callable[[], Any]
Calls = dict[str, Call]
Found = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Networks, and how much is asked of them.

    Attributes:
        *_rows: of a batch in training.
        futures: draws of VOC from one stack.
        repeats: of a measurement.
        product: side of the matrices whose product shows the device's peak.
        megabytes: of the tensor that shows its bandwidth.
    """

    vavam: VaVAMConfig
    uva: UVAConfig
    voc: VOCConfig
    vq: VQConfig
    kl: KLVAEConfig
    vavim_rows: int
    uva_rows: int
    voc_rows: int
    futures: int
    repeats: int
    product: int
    megabytes: int


PUBLISHED = Sizes(
    vavam=SIZES["S"],
    uva=UVAConfig(),
    voc=VOCConfig(),
    vq=VQConfig(image_size=(288, 512)),
    kl=KLVAEConfig(),
    vavim_rows=4,
    uva_rows=16,
    voc_rows=32,
    futures=64,
    repeats=20,
    product=8192,
    megabytes=4096,
)
QUICK = Sizes(
    vavam=VaVAMConfig(
        vavim=VaViMConfig(width=32, heads=2, layers=2, vocab=65, frames=3, grid=(2, 3)),
        expert=ExpertConfig(width=16, horizon=3),
        steps=2,
    ),
    uva=UVAConfig(
        latent_channels=4,
        grid=(4, 4),
        patch=2,
        frames=2,
        horizon=8,
        width=16,
        depth=1,
        heads=2,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        video_head_depth=1,
        video_head_width=16,
        action_head_depth=1,
        action_head_width=16,
        action_sampling_steps="3",
    ),
    voc=VOCConfig(width=16, heads=2, layers=1, vocab=16, code_dim=4, grid=(2, 2), frames=2),
    vq=VQConfig(
        channels=8, multipliers=(1, 2), norm_groups=4, codes=64, code_dim=4, image_size=(8, 12)
    ),
    kl=KLVAEConfig(channels=8, multipliers=(1, 2), norm_groups=4, image_size=(8, 8)),
    vavim_rows=2,
    uva_rows=2,
    voc_rows=4,
    futures=3,
    repeats=3,
    product=128,
    megabytes=8,
)


class NotHereError(Exception):
    """Does not apply here, for the reason given."""


def has_bfloat16(device: torch.device) -> bool:
    return device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)


class Run:
    """Where and in what a part runs, and its inputs, drawn on the CPU to be the same everywhere.

    Attributes:
        few: little is asked, since the CPU does the same for comparison.
        rng: of the inputs.
        local: on the device, for draws that need not be the same everywhere.
    """

    def __init__(self, sizes: Sizes, device: torch.device, dtype: str, few: bool = False) -> None:
        self.sizes, self.device, self.dtype, self.few = sizes, device, dtype, few
        self.half, self.cuda = dtype == "bfloat16", device.type == "cuda"
        if self.half and not has_bfloat16(device):
            raise NotHereError("this GPU has no bfloat16")
        self.rng = torch.Generator().manual_seed(0)
        self.local = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.rng).to(self.device)

    def codes(self, vocab: int, *shape: int) -> Tensor:
        return torch.randint(vocab, shape, generator=self.rng).to(self.device)

    def most(self, count: int) -> int:
        return min(count, 2) if self.few else count

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def timed(self, call: Call) -> Found:
        """Wall time of a call until the device is done."""
        wait = torch.cuda.synchronize if self.cuda else lambda: None
        for _ in range(3):
            call()
        ms: list[float] = []
        while len(ms) < self.sizes.repeats and (len(ms) < 3 or sum(ms) < 1e3 * TIMED_S):
            wait()
            start = time.perf_counter()
            call()
            wait()
            ms.append(1e3 * (time.perf_counter() - start))
        return {"median_ms": statistics.median(ms), "min_ms": min(ms), "repeats": len(ms)}


# --- the systems: a network's calls by name; of a "loss" the gradients are compared too -----------


def vavim(model: VaViM, run: Run) -> Calls:
    c, frames = model.config, run.most(model.config.frames)
    tokens = run.codes(c.vocab, run.most(run.sizes.vavim_rows), frames, *c.grid)
    context = run.codes(c.vocab, 1, (frames - 1) * c.tokens_per_frame)
    caches = [KVCache(context.shape[1] + 1) for _ in model.blocks]

    def read(seen: int, tokens: Tensor) -> Tensor:
        for cache in caches:
            cache.length = seen
        return model._step(tokens, caches)

    def step() -> Tensor:
        """The first one after the context, again and again."""
        if not caches[0].length:
            read(0, context)
        return read(context.shape[1], context[:, :1])

    return {
        "prefill": lambda: read(0, context),
        "step": step,
        "loss": lambda: model(Batch(tokens={c.camera: tokens}), rng=run.local).loss,
    }


def vavam(model: VaVAM, run: Run) -> Calls:
    video, expert = model.config.vavim, model.config.expert
    frames = run.most(video.frames)
    tokens = run.codes(video.vocab, 1, frames, *video.grid)
    commands, t = run.codes(expert.commands, 1, frames), run.uniform(1, frames)
    noise = run.normal(1, 10, expert.horizon, expert.action_dim)
    plans = 10.0 * run.normal(1, frames, *noise.shape[2:])  # metres

    def act(samples: int) -> Tensor:
        return model.act(tokens, commands[:, -1], samples=samples, noise=noise[:, :samples])

    return {
        "act-1": lambda: act(1),
        "act-10": lambda: act(10),
        "loss": lambda: model.loss(tokens, commands, plans, t, noise[:, :frames]),
    }


def voc(model: VOC, run: Run) -> Calls:
    """What is called "learn" is the recipe's; "loss" has fixed shapes, as a graph needs them."""
    c, rows = model.config, run.most(run.sizes.voc_rows)
    model.set_codebook(run.normal(*model.codebook.shape))
    tokens, rewards = run.codes(c.vocab, rows, c.frames + 1, *c.grid), run.uniform(rows, 1)
    stacks, gammas = model.stacks(tokens), run.codes(1, rows)
    bootstrap, uniform = run.uniform(rows, 1) < c.gammas[0], run.uniform(rows, 1, c.block)

    def targets() -> Tensor:
        """In float32 as `VOC.targets`, but all rows are sampled, and the unwanted ones dropped."""
        with torch.no_grad(), torch.autocast(run.device.type, enabled=False):
            condition = model.target.condition(gammas, None)[:, None]
            sampled = model.target.sample(stacks[:, 1], condition, uniform)[:, 0]
        return torch.where(bootstrap, sampled, stacks[:, 1])

    def loss() -> Tensor:
        return model.loss(stacks, targets(), rewards, gammas=gammas, actions=None).loss

    return {
        "targets": targets,
        "logits": lambda: model.future_logits(tokens[:, :-1], tokens[:, 1:], online=True),
        "futures": lambda: model.sample(tokens[:1, 1:], samples=run.sizes.futures, rng=run.local),
        "loss": loss,
        "learn": lambda: model.learn(tokens, rewards, None, rng=run.local).loss,
    }


def uva(model: UVA, run: Run) -> Calls:
    """Losses of the question that asks for most; the recipe draws one of five at every step."""
    c, rows = model.config, run.most(run.sizes.uva_rows)
    latents = run.normal(rows, 2 * c.frames, c.latent_channels, *c.grid)
    actions = run.normal(rows, c.horizon, c.action_dim)
    batch = Batch(latents={c.camera: latents}, actions=actions.clamp(-1, 1))
    condition, t = run.normal(1, c.horizon, c.action_head_width), run.codes(1000)
    draws = model.draw(batch, run.rng, mode="joint")

    def act(rng: torch.Generator) -> Tensor | None:
        return model.sample(
            Question(mode="policy", context=latents[:1, : c.frames]), rng=rng
        ).actions

    return {
        "actions": lambda: act(run.rng),
        "act": lambda: act(run.local),
        "denoiser": lambda: model.heads["action"].denoiser(actions[:1], t, condition),
        "loss": lambda: model.loss(batch, draws).loss,
        "learn": lambda: model.loss(batch, model.draw(batch, run.local, mode="joint")).loss,
    }


def tokenizer(model: KLVAE | VQTokenizer, run: Run) -> Calls:
    picture = 2.0 * run.uniform(1, 1, 3, *model.config.image_size) - 1.0
    calls: Calls = {"encode": lambda: model.encode(picture), "decode": lambda: model.decode(z)}
    if isinstance(model, VQTokenizer):
        z = run.codes(model.config.codes, 1, 1, *model.grid)
        return {"latents": lambda: model.latents(picture[0]), **calls}
    z = run.normal(1, 1, model.config.latent_channels, *model.grid)
    return calls


@dataclass(frozen=True)
class System:
    build: Callable[[Sizes], nn.Module]
    calls: Callable[[Any, Run], Calls]
    checked: tuple[str, ...]


SYSTEMS = {
    "vavim": System(lambda s: VaViM(s.vavam.vavim), vavim, ("prefill", "step", "loss")),
    "vavam": System(lambda s: VaVAM(s.vavam), vavam, ("act-10", "loss")),
    "voc": System(lambda s: VOC(s.voc), voc, ("targets", "logits", "loss")),
    "uva": System(lambda s: UVA(s.uva), uva, ("actions", "loss")),
    "kl-vae": System(lambda s: KLVAE(s.kl), tokenizer, ("encode", "decode")),
    "vq": System(lambda s: VQTokenizer(s.vq), tokenizer, ("latents", "encode", "decode")),
}
LATENCIES = (
    "kl-vae encode",
    "vq encode",
    "vavim prefill",
    "vavim step",
    "vavam act-1",
    "vavam act-10",
    "uva act",
    "voc futures",
)
TRAININGS = ("vavim", "uva", "voc")
# With the modules to compile: blocks one by one, since those that are alike are compiled once.
MODES: dict[str, Callable[[Any], Sequence[nn.Module]]] = {
    "vavim step": lambda model: model.blocks,
    "uva denoiser": lambda model: [model.heads["action"].denoiser],
    "vavim training": lambda model: model.blocks,
    "voc training": lambda model: model.gpt.blocks,
}


# --- the sections: of one part, one column --------------------------------------------------------

Make = Callable[..., Run]  # of a dtype


@torch.no_grad()
def made(name: str, run: Run) -> Any:
    """A network on the device, there the same one every time.

    All parameters get noise: some start at zero, which would hide what is behind them.
    """
    torch.manual_seed(0)
    with run.device:
        model = SYSTEMS[name].build(run.sizes)
        for p in model.parameters():
            p.add_(torch.randn(p.shape), alpha=0.5 * p[0].numel() ** -0.5 if p.ndim > 1 else 0.1)
    return model.eval()


def outputs(name: str, model: nn.Module, run: Run) -> dict[str, Tensor]:
    """What is compared, on the CPU."""
    found, calls = {}, SYSTEMS[name].calls(model, run)
    for label in SYSTEMS[name].checked:
        with run.autocast():  # anew each time: it keeps the weights it cast, also without gradients
            found[label] = calls[label]()
    if "loss" in found:
        used = [p for p in model.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(found["loss"], used, allow_unused=True)
        found["gradients"] = torch.cat([g.flatten() for g in slopes if g is not None])
    return {label: t.detach().cpu() for label, t in found.items()}


def reference(name: str, sizes: Sizes) -> tuple[nn.Module, dict[str, Tensor]]:
    run = Run(sizes, torch.device("cpu"), "float32", few=True)
    model = made(name, run)
    return model, outputs(name, model, run)


def correctness(name: str, expect: Call, make: Make, dtype: str) -> Found:
    run, (model, right) = make(dtype, few=True), expect()
    found, checks = outputs(name, copy.deepcopy(model).to(run.device), run), {}
    for label, t in right.items():
        limit = TOLERANCE[run.dtype]["values" if t.is_floating_point() else "codes"]
        relative, most = apart(found[label], t), (found[label].double() - t.double()).abs().max()
        checks[label] = {"relative": relative, "max_abs": most.item(), "tolerance": limit}
        checks[label]["ok"] = relative <= limit
    worst = max(checks, key=lambda label: checks[label]["relative"] / checks[label]["tolerance"])
    ok = all(check["ok"] for check in checks.values())
    return {"ok": ok, "worst": worst, "relative": checks[worst]["relative"], "outputs": checks}


def apart(found: Tensor, right: Tensor) -> float:
    """Norm of the difference over that of what is right; the share of whole numbers that differ."""
    if not right.is_floating_point():
        return (found != right).double().mean().item()
    if not found.isfinite().all():
        raise ArithmeticError("the result holds NaN or infinite values")
    norm = right.double().norm().clamp_min(1e-30)
    return ((found.double() - right.double()).norm() / norm).item()


def looking(name: str, run: Run) -> tuple[Any, Call]:
    """A network and a call of it without gradients, named "system call"."""
    (system, label), context = name.split(), run.autocast()
    model = made(system, run)
    if system == "vavim" and run.half:
        reduce_weights(model, "bf16")
        context = contextlib.nullcontext()
    call = SYSTEMS[system].calls(model, run)[label]

    def look() -> Any:
        with torch.no_grad(), context:
            return call()

    return model, look


def learning(name: str, run: Run, *, steady: bool = False) -> tuple[Any, Call]:
    """A network and a step of its training; a steady one can be captured as a graph."""
    model, graph = made(name, run).train(), steady and run.cuda
    calls = SYSTEMS[name].calls(model, run)
    loss = calls["loss"] if steady else calls.get("learn", calls["loss"])
    groups = model.param_groups(torch.tensor(LR, device=run.device) if graph else LR, DECAY)
    optimizer = torch.optim.AdamW(groups, lr=LR, fused=True, capturable=graph)

    def step() -> None:
        optimizer.zero_grad(set_to_none=not graph)
        with run.autocast():
            value = loss()
        value.backward()
        optimizer.step()
        if isinstance(model, VOC):
            model.after_step()

    return model, step


def latency(name: str, make: Make, dtype: str) -> Found:
    run = make(dtype)
    return run.timed(looking(name, run)[1])


def training(name: str, make: Make, dtype: str) -> Found:
    run = make(dtype)
    peak, rows = product_rate(run), getattr(run.sizes, f"{name}_rows")
    model, step = learning(name, run)
    flops = count_flops(step, run)
    if run.cuda:
        torch.cuda.reset_peak_memory_stats()
    found = run.timed(step)
    per_s = 1e3 / found["median_ms"]
    return {
        **found,
        "rows": rows,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "samples_per_s": rows * per_s,
        "flops": flops,
        "flops_per_s": flops * per_s,
        "product_flops_per_s": peak,
        "share_of_peak": flops * per_s / peak,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if run.cuda else None,
    }


def product_rate(run: Run) -> float:
    """FLOP/s of a large matrix product."""
    side, options = run.sizes.product, {"device": run.device, "dtype": getattr(torch, run.dtype)}
    a, b = torch.randn(side, side, **options), torch.randn(side, side, **options)
    return 2 * side**3 / run.timed(lambda: a @ b)["median_ms"] * 1e3


def count_flops(step: Call, run: Run) -> int:
    """Of all products of a step, sampling too; attention is counted in full, causal or not."""
    with contextlib.ExitStack() as stack:
        if not run.cuda:  # the counter knows neither the CPU's own products nor its attention
            stack.enter_context(warnings.catch_warnings(action="ignore"))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        counter = stack.enter_context(FlopCounterMode(display=False))
        step()
    return counter.get_total_flops()


def decode_bandwidth(make: Make, dtype: str, how: str) -> Found:
    found, run = mode("vavim step", make, dtype, "", how), make(dtype)
    model, _ = looking("vavim step", run)
    hidden = [m.weight for m in model.modules() if isinstance(m, HiddenLinear)]
    weights = sum(w.nbytes for w in [*hidden, model.token_embedding.weight])
    x = torch.ones(run.sizes.megabytes * 2**18, device=run.device)
    y = torch.empty_like(x)
    memory = {  # a sum reads, a copy reads and writes
        "read_per_s": x.nbytes / run.timed(x.sum)["median_ms"] * 1e3,
        "copy_per_s": 2 * x.nbytes / run.timed(lambda: y.copy_(x))["median_ms"] * 1e3,
    }
    rate = weights / found["median_ms"] * 1e3
    found |= {"weight_bytes": weights, "bytes_per_s": rate, "memory": memory}
    return {**found, "share_of_bandwidth": rate / max(memory.values())}


def mode(name: str, make: Make, dtype: str, backend: str, how: str) -> Found:
    """Time a call in one of the three modes; `backend` is that of torch.compile."""
    run = make(dtype)
    if how == "graph" and not run.cuda:
        raise NotHereError("CUDA graphs are not on this device")
    if how == "compile" and not backend:
        raise NotHereError("no C++ compiler was found")
    system, trained = name.split()[0], name.endswith(" training")
    model, eager = learning(system, run, steady=True) if trained else looking(name, run)
    right, call, began = eager(), eager, time.perf_counter()
    if how == "graph":
        call = captured(eager)
    elif how == "compile":
        torch.compiler.reset()
        for module in MODES[name](model):
            module.compile(backend=backend, dynamic=False)
    facts: Found = {"dtype": run.dtype}
    found = call()
    if how != "eager":
        facts["ready_s"] = time.perf_counter() - began
        facts |= {} if trained else {"apart": apart(found, right)}
    return {**run.timed(call), **facts, **({"backend": backend} if how == "compile" else {})}


def captured(step: Call) -> Call:
    """The step as a CUDA graph, warmed up on another stream as torch wants it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = step()

    def replay() -> Any:
        graph.replay()
        return held

    return replay


def compiler(device: torch.device, quick: bool) -> str:
    """The backend of torch.compile; none where the CPU's C++ compiler is missing.

    It alone takes half a minute on two cores, so a quick run on the CPU stops before it: the module
    is traced and its gradients derived, and torch computes the rest as ever.
    """
    if device.type == "cpu" and quick:
        return "aot_eager"
    there = device.type == "cuda" or shutil.which(os.environ.get("CXX", "g++"))
    return "inductor" if there else ""


# --- the report ----------------------------------------------------------------------------------


class Report:
    """What was found: section -> part -> column. Written anew, whole, after every part."""

    def __init__(self, path: Path, head: Found) -> None:
        self.path, self.began, self.late = path, time.perf_counter(), False
        self.rows: list[str] = []
        self.failures: list[str] = []
        self.data: Found = {**head, "complete": False}
        self.write()

    def part(
        self, section: str, name: str, columns: Sequence[str], run: Callable[[str], Found]
    ) -> None:
        """Run each column of a part, whatever becomes of the others."""
        for column in columns:
            began = time.perf_counter()
            found = self._guarded(functools.partial(run, column))
            if torch.cuda.is_available():
                gc.collect()
                torch.cuda.empty_cache()
            self.data.setdefault(section, {}).setdefault(name, {})[column] = found
            finding = column in ("graph", "compile")
            if found.get("ok") is False or ("error" in found and not finding):
                self.failures.append(f"{section}, {name}, {column}: {summary(found)}")
            self.rows.append(f"{section:<17}{name:<21}{column:<9}  {summary(found)}")
            took = time.perf_counter() - began
            print(f"{took:6.1f} s  {self.rows[-1]}", file=sys.stderr, flush=True)
        self.write()

    def _guarded(self, run: Call) -> Found:
        if time.perf_counter() - self.began > BUDGET_S:
            self.late = True
            return {"skipped": f"the time of {BUDGET_S:.0f} s was used up"}
        try:
            return run()
        except NotHereError as reason:
            return {"skipped": str(reason)}
        except Exception as error:  # the other parts are worth having all the same
            first, *others = f"{type(error).__name__}: {error}".splitlines()
            # torch.compile names the reason on the line after a colon.
            return {"error": " ".join([first, *others[:1]]) if first.endswith(":") else first}

    def write(self) -> None:
        seconds = round(time.perf_counter() - self.began, 1)
        self.data |= {"failures": self.failures, "seconds": seconds}
        half = self.path.with_name(f"{self.path.name}.half")
        half.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(half, self.path)


def summary(found: Found) -> str:
    """One line for people."""
    keys = ("ok", "worst", "relative", "median_ms", "apart", "samples_per_s", "share_of_bandwidth")
    shown = {key: found[key] for key in (*keys, "share_of_peak") if key in found}
    texts = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
    return found.get("error") or found.get("skipped") or ", ".join(texts)


def machine(device: torch.device, options: Sequence[str]) -> Found:
    cuda, cpuinfo, commit = device.type == "cuda", Path("/proc/cpuinfo"), ""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    with contextlib.suppress(OSError):  # no git
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if cuda else [*names, platform.processor()][0],
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "threads": torch.get_num_threads(),
        "command": " ".join(["python benchmarks/gpu_check.py", *options]),
    }


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default)
    parser.add_argument("--quick", action="store_true", help="tiny sizes; others take a CPU hours")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("This torch finds no CUDA device; give --device cpu.", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, sizes = torch.device(args.device), QUICK if args.quick else PUBLISHED
    options = ["--device", args.device, *(["--quick"] if args.quick else [])]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(device, options), "tf32": False, "sizes": dataclasses.asdict(sizes)}
    report, make = Report(args.out, facts), functools.partial(Run, sizes, device)
    for name in SYSTEMS:
        expect = functools.cache(functools.partial(reference, name, sizes))
        report.part("correctness", name, DTYPES, functools.partial(correctness, name, expect, make))
    for name in LATENCIES:
        report.part("latency", name, DTYPES, functools.partial(latency, name, make))
    for name in TRAININGS:
        report.part("training", name, DTYPES, functools.partial(training, name, make))
    for dtype in DTYPES:
        run = functools.partial(decode_bandwidth, make, dtype)
        report.part("decode_bandwidth", f"vavim step {dtype}", ("eager", "graph"), run)
    dtype = "bfloat16" if device.type == "cuda" and has_bfloat16(device) else "float32"
    for name in MODES:
        run = functools.partial(mode, name, make, dtype, compiler(device, args.quick))
        report.part("modes", name, ("eager", "graph", "compile"), run)
    report.data["complete"] = not report.late
    report.write()
    print(f"{report.data['machine']['device']}, torch {torch.__version__}", *report.rows, sep="\n")
    for failure in report.failures:
        print(f"failed: {failure}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
