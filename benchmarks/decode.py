"""Speed of token-by-token decoding at batch 1, against what reading the weights alone would take.

Two floors are measured in the same run with the same threads, both for all weights that a step
multiplies, once over: the time to sum them (memory bandwidth in practice), and the time of the
faster of torch's and numpy's products with a row. Bfloat16 and int8 are compared with a half and a
quarter of the first.

    python benchmarks/decode.py --width 768 --layers 24 --threads 2
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.machine import choose_precision
from foreact.nn.gpt import KVCache
from foreact.nn.mup import HiddenLinear
from foreact.nn.products import rows_by_numpy
from foreact.nn.weight_only import reduce_weights


def milliseconds(f: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call after two calls to warm up."""
    for _ in range(2):
        f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def step_time(model: VaViM, seen: int, repeats: int) -> float:
    """One decoding step after `seen` tokens."""
    caches = [KVCache(seen + 1) for _ in model.blocks]
    context = torch.randint(0, model.config.vocab, (1, seen))
    model._step(context, caches)
    token = context[:, :1]

    def step() -> None:
        for cache in caches:
            cache.length = seen
        model._step(token, caches)

    with rows_by_numpy(context, model.token_embedding.weight):
        return milliseconds(step, repeats)


def multiplied(model: VaViM) -> list[Tensor]:
    """Every matrix that a step multiplies with a row."""
    return [m.weight for m in model.modules() if isinstance(m, HiddenLinear)] + [
        model.token_embedding.weight
    ]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument(
        "--seen", type=int, nargs="+", default=[16, 576], help="tokens in the cache"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=["fp32", "bf16", "int8"],
        help="bf16 by itself where it is fast",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Both compute on bfloat16 activations, which takes minutes to read a context where that is
    # emulated.
    usual = (
        ["fp32", "bf16", "int8"]
        if choose_precision("auto", torch.device("cpu")) == "bf16"
        else ["fp32"]
    )

    model = VaViM(VaViMConfig(width=args.width, heads=args.width // 128, layers=args.layers)).eval()
    weights = multiplied(model)
    flat = torch.cat([w.flatten() for w in weights])
    rows = [torch.randn(1, w.shape[1]) for w in weights]
    arrays = [(w.numpy(), row[0].numpy()) for w, row in zip(weights, rows, strict=True)]
    reading = milliseconds(flat.sum, args.repeats)
    products = {
        "torch": lambda: [functional.linear(row, w) for row, w in zip(rows, weights, strict=True)],
        "numpy": lambda: [w @ row for w, row in arrays],
    }
    print(
        f"width {args.width}, {args.layers} layers, {args.threads} threads, "
        f"{flat.nbytes / 1e6:.0f} MB of weights"
    )
    print(f"  reading them once      {reading:8.2f} ms   {flat.nbytes / reading / 1e6:6.1f} GB/s")
    floors = {"reading": reading}
    for name, product in products.items():
        floors[name] = milliseconds(product, args.repeats)
        print(f"  {name} products         {floors[name]:8.2f} ms")
    best = min(floors["torch"], floors["numpy"])
    print(
        f"{'weights':<8}{'tokens seen':>12}{'ms/token':>10}{'tokens/s':>10}"
        f"{'of reading':>12}{'of products':>12}"
    )
    for precision in args.weights or usual:
        reduced = reduce_weights(copy.deepcopy(model), precision)
        for seen in args.seen:
            ms = step_time(reduced, seen, args.repeats)
            share = {"fp32": 1.0, "bf16": 0.5, "int8": 0.25}[precision]
            of_products = f"{best / ms:.0%}" if precision == "fp32" else ""
            print(
                f"{precision:<8}{seen:>12}{ms:>10.2f}{1e3 / ms:>10.1f}"
                f"{share * reading / ms:>12.0%}{of_products:>12}"
            )


if __name__ == "__main__":
    main()
