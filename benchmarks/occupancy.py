"""A training update of Video Occupancy Models against the published way of doing it, with Hugging
Face's GPT-2.

Both sides take turns in one process, on the same stored codes and from the same weights. An update
is: draw the targets (gamma 0.8), forward and backward over all predictions and the reward, AdamW,
moving average of the target network.

    published    generate() for every row with the default cache and top_k=50, of which the
                 rows that wanted a sample are kept;
                 labels loss; average parameter by parameter in a Python loop
    foreact      samples for the rows that want one

    python benchmarks/occupancy.py --threads 1 --processor-time
    python benchmarks/occupancy.py --device cuda --graph      (not yet measured: no GPU was at hand)
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from foreact.families.voc.config import VOCConfig
from foreact.families.voc.model import VOC
from foreact.families.voc.released.gpt2 import to_reference
from foreact.machine import Precision, autocast, choose_precision
from foreact.train.optim import build_optimizer

TOP_K = 50
LR, DECAY, BETAS = 3e-4, 0.1, (0.9, 0.999)
PARTS = ("targets", "forward+backward", "optimiser", "average")


class Foreact:
    """The library's update, as its training loop does it."""

    def __init__(self, model: VOC, precision: Precision) -> None:
        self.model, self.precision = model, precision
        self.optimizer = build_optimizer(model, lr=LR, weight_decay=DECAY, betas=BETAS)
        self.rng = torch.Generator(model.codebook.device).manual_seed(0)

    def sample_all(self, stacks: Tensor) -> None:
        self.model.targets(
            stacks, torch.ones_like(stacks[:, 0, 0]), _gammas(stacks), None, rng=self.rng
        )

    def parts(
        self, stacks: Tensor, rewards: Tensor, bootstrap: Tensor
    ) -> list[Callable[[], object]]:
        def targets() -> None:
            with self._autocast(stacks):
                self.future = self.model.targets(
                    stacks, bootstrap, _gammas(stacks), None, rng=self.rng
                )

        def learn() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            with self._autocast(stacks):
                out = self.model.loss(
                    stacks, self.future, rewards, gammas=_gammas(stacks), actions=None
                )
            out.loss.backward()

        return [targets, learn, self.optimizer.step, self.model.after_step]

    def _autocast(self, stacks: Tensor) -> Any:
        return autocast(stacks.device, self.precision)


class Captured(Foreact):
    """The whole update as one CUDA graph: static shapes, so every row
    is sampled and the unwanted ones are dropped.
    """

    def __init__(
        self, model: VOC, stacks: Tensor, rewards: Tensor, bootstrap: Tensor, precision: Precision
    ) -> None:
        super().__init__(model, precision)
        for group in self.optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.tensor(group["lr"], device=stacks.device)
        self.held = [stacks.clone(), rewards.clone(), bootstrap.clone()]
        self.uniform = torch.rand(len(stacks), 1, model.config.block, device=stacks.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._update()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._update()

    def parts(
        self, stacks: Tensor, rewards: Tensor, bootstrap: Tensor
    ) -> list[Callable[[], object]]:
        def replay() -> None:
            for held, new in zip(self.held, (stacks, rewards, bootstrap), strict=True):
                held.copy_(new)
            self.uniform.uniform_(generator=self.rng)
            self.graph.replay()

        return [replay]

    def _update(self) -> None:
        (stacks, rewards, bootstrap), target = self.held, self.model.target
        gammas = torch.zeros_like(bootstrap)
        with self._autocast(stacks):
            condition = target.condition(gammas, None)[:, None]
            sampled = target.sample(
                stacks[:, 1], condition, self.uniform, top_k=self.model.config.target_top_k
            )[:, 0]
            future = torch.where(bootstrap[:, None].bool(), sampled, stacks[:, 1])
            out = self.model.loss(stacks, future, rewards, gammas=gammas, actions=None)
        self.optimizer.zero_grad(set_to_none=False)
        out.loss.backward()
        self.optimizer.step()
        self.model.after_step()


class Published:
    """The same update the way the published scripts go about it."""

    def __init__(self, ours: VOC) -> None:
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
            from transformers.utils import logging
        except ImportError:
            sys.exit(
                "The comparison needs Hugging Face transformers; install it with: pip "
                "install transformers"
            )
        logging.set_verbosity_error()
        config, device = ours.config, ours.codebook.device
        self.config = config
        self.gpt = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab,
                n_positions=config.gpt.positions,
                n_embd=config.width,
                n_head=config.heads,
                n_layer=config.layers,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.attention_dropout,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        self.gpt.load_state_dict(to_reference(ours.gpt.state_dict()), strict=True)
        self.gpt = self.gpt.to(device).train()
        self.target = copy.deepcopy(self.gpt)
        self.reward, self.features = copy.deepcopy(ours.reward), ours.features
        decaying = [p for p in self.gpt.parameters() if p.ndim >= 2]
        others = [p for p in self.gpt.parameters() if p.ndim < 2]
        groups = [
            {"params": decaying, "weight_decay": DECAY},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizers = [
            torch.optim.AdamW(groups, lr=LR, betas=BETAS),
            torch.optim.AdamW(self.reward.parameters(), lr=LR),
        ]

    @torch.no_grad()
    def sample_all(self, stacks: Tensor) -> Tensor:
        length = self.config.block
        drawn = self.target.generate(
            stacks[:, 1],
            attention_mask=torch.ones_like(stacks[:, 1]),
            max_new_tokens=length,
            do_sample=True,
            top_k=TOP_K,
            pad_token_id=0,
        )
        return drawn[:, -length:]

    def parts(
        self, stacks: Tensor, rewards: Tensor, bootstrap: Tensor
    ) -> list[Callable[[], object]]:
        def targets() -> None:
            self.future = torch.where(
                bootstrap[:, None].bool(), self.sample_all(stacks), stacks[:, 1]
            )

        def learn() -> None:
            sequence = torch.cat([stacks[:, 0], self.future], dim=1)
            loss = self.gpt(sequence, labels=sequence).loss
            loss = loss + functional.mse_loss(self.reward(self.features(stacks[:, 1:])), rewards)
            loss.backward()

        def step() -> None:
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()

        @torch.no_grad()
        def average() -> None:
            decay = self.config.target_decay
            for theirs, new in zip(self.target.parameters(), self.gpt.parameters(), strict=True):
                theirs.copy_(decay * theirs + (1 - decay) * new)

        return [targets, learn, step, average]


def _gammas(stacks: Tensor) -> Tensor:
    return torch.zeros(len(stacks), dtype=torch.int64, device=stacks.device)


def seconds(f: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    f()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = (
        [
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        if Path("/proc/cpuinfo").exists()
        else []
    )
    name = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads"


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--grid", type=int, default=5, help="rows and columns of codes in a frame")
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument(
        "--dropout", type=float, default=0.0, help="published: 0.2; half of it on attention weights"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="updates per side, after one to warm up"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="not wall time, where others use the machine too",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=["fp32", "bf16"],
        help="ours; bf16 by itself where it is fast",
    )
    parser.add_argument(
        "--graph", action="store_true", help="capture our update as a CUDA graph too"
    )
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.graph and device.type != "cuda":
        parser.error("--graph needs --device cuda")
    if args.processor_time and (device.type == "cuda" or args.threads > 1):
        parser.error("--processor-time is the time of the work only with one thread on the CPU")
    clock = time.process_time if args.processor_time else time.perf_counter
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    config = VOCConfig(
        width=args.width,
        heads=args.heads,
        layers=args.layers,
        vocab=args.vocab,
        grid=(args.grid, args.grid),
        frames=args.frames,
        dropout=args.dropout,
        attention_dropout=args.dropout / 2,
        target_top_k=TOP_K,
    )
    model = VOC(config).to(device).train()
    data = torch.Generator(device).manual_seed(1)

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        stacks = torch.randint(
            config.vocab, (args.batch, 2, config.block), generator=data, device=device
        )
        rewards = torch.rand(args.batch, 1, generator=data, device=device)
        return (
            stacks,
            rewards,
            (torch.rand(args.batch, generator=data, device=device) < config.gammas[0]).long(),
        )

    sides: dict[str, Any] = {
        "published": Published(model),
    }
    precisions = args.precision or list(dict.fromkeys(("fp32", choose_precision("auto", device))))
    for precision in precisions:
        sides[f"foreact {precision}"] = Foreact(copy.deepcopy(model), precision)
    if args.graph:
        sides[f"foreact {precisions[-1]}, captured"] = Captured(
            copy.deepcopy(model), *batch(), precisions[-1]
        )
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    alone: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.rounds + 1):
        drawn = batch()
        for name, side in sides.items():
            spent = [seconds(part, device, clock) for part in side.parts(*drawn)]
            sampling = seconds(
                lambda side=side, drawn=drawn: side.sample_all(drawn[0]), device, clock
            )
            if turn:
                times[name].append(spent)
                alone[name].append(sampling)
        print(f"round {turn} of {args.rounds}", file=sys.stderr, flush=True)

    print(
        f"{hardware(device)}; torch {torch.__version__}; commit {commit()}; python "
        f"{' '.join(sys.argv)}"
    )
    print(
        f"batch {args.batch}, 2 x {config.block} codes, {config.layers} layers x {config.width}, "
        f"vocabulary {config.vocab}, dropout {args.dropout}; medians of {args.rounds}"
    )
    print(
        f"\n| | {' | '.join(PARTS)} | update, s | ratio | sampling all rows, s | ratio "
        f"|\n|{'---|' * 9}"
    )
    for name in sides:
        parts = [statistics.median(column) for column in zip(*times[name], strict=True)]
        cells = [f"{p:.2f}" for p in parts] if len(parts) == len(PARTS) else ["", "", "", ""]
        updates = [sum(row) for row in times[name]]
        base = [sum(row) for row in times["published"]]
        cells += [f"{statistics.median(updates):.2f}", _ratio(base, updates)]
        cells += [f"{statistics.median(alone[name]):.2f}", _ratio(alone["published"], alone[name])]
        print(f"| {name} | {' | '.join(cells)} |")


def _ratio(base: list[float], ours: list[float]) -> str:
    """Median, least and greatest of the ratios of the same round."""
    ratios = sorted(b / o for b, o in zip(base, ours, strict=True))
    return f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"


if __name__ == "__main__":
    main()
