"""What a training will take, without starting it: parameters, memory, steps, FLOPs, time.

Formulas, per process unless said otherwise, for N parameters of which T are trained, on R
processes:

    weights 4 N bytes, gradients 4 T, AdamW's moments 8 T, average 4 T (float32); each divided by R
        with fsdp, except that gradients stay whole where several micro-batches are accumulated
        before they are exchanged
    copies  ddp: bfloat16 copies of the matrices, 2 N; fsdp: the two largest blocks and all that
        belongs to no block
    activations: tokens of a micro-batch x the inputs and outputs of every linear layer, in the type
        of autocast. For a transformer with memory-efficient attention that is 32 bytes per layer,
        token and channel in bfloat16, the 34 of Korthikanti et al. (arXiv 2205.05198) without the
        dropout masks; softmax over the vocabulary: its logits in the type of autocast and twice in
        float32
    arithmetic per token: 6 N where weights are trained and 2 N where frozen (Kaplan et al., arXiv
        2001.08361; N with embedding tables, as in Hoffmann et al., arXiv 2203.15556), and for
        attention 12 or 4 per layer, channel and token attended to (Chowdhery et al., arXiv
        2204.02311; causal masks are not deducted)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from foreact.errors import UserError
from foreact.train.config import TrainConfig
from foreact.train.ema import averaged_parameters
from foreact.train.parallel import block_lists


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training will take.

    Attributes:
        trained, frozen: numbers of parameters.
        processes, parallel: who shares the work, and how.
        steps: optimiser steps.
        samples_per_step: global batch.
        tokens_per_step: tokens in it.
        memory: part -> bytes on one process.
        flops_per_step: of all processes together.
        tflops: sustained speed of one process in 10^12 operations per second, None if unknown.
    """

    trained: int
    frozen: int
    processes: int
    parallel: str
    steps: int
    samples_per_step: int
    tokens_per_step: int
    memory: Mapping[str, int]
    flops_per_step: float
    tflops: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.tokens_per_step

    @property
    def hours(self) -> float | None:
        """Hours without data waits, evaluation and saving; None if the speed is unknown."""
        if self.tflops is None:
            return None
        return self.steps * self.flops_per_step / (self.tflops * 1e12 * self.processes) / 3600

    def __str__(self) -> str:
        rows = [
            ("parameters", f"{self.trained:,} trained, {self.frozen:,} frozen"),
            ("processes", f"{self.processes} ({self.parallel})" if self.processes > 1 else "1"),
            ("steps", f"{self.steps:,}"),
            ("per step", f"{self.samples_per_step:,} samples, {self.tokens_per_step:,} tokens"),
            ("in all", f"{self.steps * self.samples_per_step:,} samples, {self.tokens:,} tokens"),
            (
                "arithmetic",
                f"{self.flops_per_step:.3g} FLOP per step, "
                f"{self.steps * self.flops_per_step:.3g} in all",
            ),
            ("memory", f"{_gib(sum(self.memory.values()))} per process"),
            *((f"  {part}", _gib(size)) for part, size in self.memory.items()),
        ]
        if self.hours is not None:
            rows.append(("time", f"{self.hours:.1f} h at {self.tflops:g} TFLOP/s per process"))
        return "\n".join(f"  {name:<16}{value}" for name, value in rows)


def plan(
    model: nn.Module,
    config: TrainConfig,
    *,
    tokens_per_sample: int | Mapping[str, int],
    processes: int,
    vocab: int = 0,
    tflops: float | None = None,
) -> Plan:
    """Work out what training `model` will take; nothing is allocated and nothing runs.

    Args:
        model: a `foreact.types.Trainable`, best built on the device "meta".
        config: how it would be trained.
        tokens_per_sample: length of the sequence that the model reads; where parts of a model read
            sequences of their own, name of the submodule -> length, such as {"vavim": 4608,
            "expert": 48}. A part's attention is taken to look at all of them.
        processes: number of processes.
        vocab: size of the softmax over which the loss of each token is taken; 0: none.
        tflops: sustained speed of one process, 10^12 operations per second.

    Raises:
        UserError: a speed or number of processes that is not positive, or parameters outside the
            named parts.
    """
    if processes < 1 or (tflops is not None and not tflops > 0):
        raise UserError(
            "A plan needs a positive number of processes and speed, found "
            f"{processes} and {tflops}."
        )
    if isinstance(tokens_per_sample, int):
        lengths = {"": tokens_per_sample}  # the whole model as one part
    else:
        lengths = dict(tokens_per_sample)
    parts = {name: model.get_submodule(name) for name in lengths}
    named = {id(p) for part in parts.values() for p in part.parameters()}
    if outside := [name for name, p in model.named_parameters() if id(p) not in named]:
        raise UserError(
            f"'{outside[0]}' lies outside the parts {sorted(lengths)}; give the "
            "tokens that it reads."
        )
    attended = sum(lengths.values())
    samples = config.batch_size * config.accumulate * processes
    trained, frozen = _count(model)
    part_tokens = {name: (parts[name], n) for name, n in lengths.items()}
    flops_per_sample = sum(n * _flops_per_token(part, attended) for part, n in part_tokens.values())
    return Plan(
        trained=trained,
        frozen=frozen,
        processes=processes,
        parallel=config.parallel,
        steps=config.steps,
        samples_per_step=samples,
        tokens_per_step=samples * attended,
        memory=_memory(model, config, part_tokens, processes, vocab),
        flops_per_step=float(samples * flops_per_sample),
        tflops=tflops,
    )


def _count(module: nn.Module) -> tuple[int, int]:
    """Trained and frozen parameters; shared ones count once."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, train in sizes if train), sum(n for n, train in sizes if not train)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for blocks in block_lists(module):
        yield from blocks


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def _flops_per_token(module: nn.Module, attended: int) -> int:
    trained, frozen = _count(module)
    flops = 6 * trained + 2 * frozen
    for block in _blocks(module):
        if linears := _linears(block):
            learns = any(p.requires_grad for p in block.parameters())
            flops += (12 if learns else 4) * linears[0].in_features * attended
    return flops


def _memory(
    model: nn.Module,
    config: TrainConfig,
    parts: Mapping[str, tuple[nn.Module, int]],
    processes: int,
    vocab: int,
) -> dict[str, int]:
    trained, frozen = _count(model)
    element = 4 if config.precision == "fp32" else 2  # bytes in autocast; auto: as GPUs do
    divided = config.parallel == "fsdp" and processes > 1
    share = processes if divided else 1
    averaged = (
        sum(p.numel() for p in averaged_parameters(model).values()) if config.ema.enabled else 0
    )
    memory = {
        "weights": 4 * (trained + frozen) // share,
        "gradients": 4 * trained // (1 if config.accumulate > 1 else share),
        "moments": 8 * trained // share,
        "average": 4 * averaged // share,
    }
    if divided:
        blocks = sorted((sum(_count(block)) for block in _blocks(model)), reverse=True)
        memory["gathered"] = element * sum(blocks[:2]) + 4 * (trained + frozen - sum(blocks))
    elif element == 2:
        memory["bf16 copies"] = 2 * sum(p.numel() for p in model.parameters() if p.ndim > 1)
    activations = 0
    for part, tokens in parts.values():
        if any(p.requires_grad for p in part.parameters()):
            channels = sum(m.in_features + m.out_features for m in _linears(part))
            activations += config.batch_size * tokens * (element * channels + (element + 8) * vocab)
    memory["activations"] = activations
    return memory


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
