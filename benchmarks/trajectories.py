"""Cost of k plans against one, for the same context: the video is read once, whatever k.

python benchmarks/trajectories.py --size S --frames 8
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from foreact.families.driving.vavam import SIZES, VaVAM


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--steps", type=int, default=10, help="Euler steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = VaVAM(SIZES[args.size]).eval()
    grid = model.config.vavim.grid
    tokens = torch.randint(0, model.config.vavim.vocab, (1, args.frames, *grid))
    commands = torch.tensor([2])
    print(
        f"VaVAM-{args.size}, {args.frames} frames of {grid[0]} x {grid[1]} tokens, {args.steps} "
        f"steps, {args.threads} threads, float32"
    )
    base = None
    for k in args.samples:
        times = []
        for _ in range(args.repeats + 1):
            start = time.perf_counter()
            model.act(
                tokens, commands, samples=k, steps=args.steps, rng=torch.Generator().manual_seed(0)
            )
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times[1:])
        base = base or seconds
        print(f"  k = {k:<4} {seconds:8.2f} s   x{seconds / base:.2f}")


if __name__ == "__main__":
    main()
