"""Windows a second and resident memory of reading stored codes: stacks of 3 frames, the next stack,
its reward.

The data have the size of the release of Video Occupancy Models, 600 episodes of 501 steps in 12
HDF5 shards, with random codes; the frames in the shards are holes in sparse files. A native store
of the same size is read beside them.

python benchmarks/reading.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from foreact.data.stores.derived import write_stream
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.opening import open_episodes
from foreact.data.stores.store import StoreWriter
from foreact.data.windows.loader import WindowDataset, batches
from foreact.data.windows.window import Window
from foreact.types import ActionSpec, StreamSpec

SHARDS, EPISODES, STEPS, CODES, VOCAB, ACTIONS = 12, 50, 501, 25, 1024, 6
STACK = 3


def write_shards(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    rows = EPISODES * STEPS
    for number in range(SHARDS):
        with h5py.File(folder / f"{number}_medium_vq_latents.hdf5", "w") as file:
            file["action"] = rng.uniform(-1, 1, (rows, ACTIONS)).astype(np.float32)
            file["reward"] = rng.random(rows, np.float32)
            file["step_type"] = np.tile([0.0] + [1.0] * (STEPS - 2) + [2.0], EPISODES)
            file["vae_latents"] = rng.integers(0, VOCAB, (rows, CODES))
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((rows, 3, 84, 84))
            h5py.h5d.create(file.id, b"observation", h5py.h5t.NATIVE_UINT8, space, plan)


def write_native(path: Path, rng: np.random.Generator) -> None:
    side, steps = int(CODES**0.5), SHARDS * EPISODES * STEPS
    names = tuple(f"a{i}" for i in range(ACTIONS))
    action = ActionSpec(
        names=names, units=("unitless",) * ACTIONS, frame="actuators", mode="absolute", rate_hz=50.0
    )
    with StoreWriter(
        path, StreamSpec(cameras={}, fps=50.0, action=action, has_reward=True)
    ) as writer:
        for _ in range(SHARDS * EPISODES):
            writer.append(
                {"action": rng.uniform(-1, 1, (STEPS, ACTIONS)), "reward": rng.random((STEPS, 1))}
            )
    write_stream(
        path,
        "tokens_pixels",
        rng.integers(0, VOCAB, (steps, side, side)).astype(np.uint16),
        attrs={},
    )


def resident_mb() -> float:
    """Of this process and its workers; pages that they share count in each."""
    total = 0.0
    for process in ("self", *(child.pid for child in multiprocessing.active_children())):
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines()
        )
        total += int(fields["VmRSS"].split()[0]) / 1024
    return total


def measure(
    store: EpisodeStore, window: Window, windows: int, batch_size: int, workers: int
) -> str:
    dataset = WindowDataset(store, window, np.arange(len(store)), None)
    stream = batches(dataset, batch_size=batch_size, seed=0, workers=workers)
    for _ in range(20):  # workers start, codes are read
        next(stream)
    memory = [resident_mb()]
    seconds = 0.0
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(max(1, windows // (10 * batch_size))):
            next(stream)
        seconds += time.perf_counter() - start
        memory.append(resident_mb())
    rate = 10 * max(1, windows // (10 * batch_size)) * batch_size / seconds
    return (
        f"{rate:10.0f} windows/s   resident {memory[0]:6.0f} MB at first, "
        f"{memory[1]:6.0f} .. {memory[-1]:6.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    offsets = tuple(range(1 - STACK, 2))
    codes = Window(tokens={"pixels": offsets}, rewards=(1,), pad_before=STACK - 1)
    pixels = Window(video={"pixels": offsets}, rewards=(1,), pad_before=STACK - 1)
    with tempfile.TemporaryDirectory() as folder:
        shards, native = Path(folder) / "cheetah_train" / "vq_latents", Path(folder) / "native.zarr"
        write_shards(shards, np.random.default_rng(0))
        write_native(native, np.random.default_rng(0))
        print(
            f"{SHARDS * EPISODES} episodes of {STEPS} steps, {args.windows} windows (frames: a "
            f"tenth) in batches of {args.batch_size}; {resident_mb():.0f} MB before"
        )
        for label, path, window, share in (
            ("codes, shards", shards, codes, 1),
            ("codes, native store", native, codes, 1),
            ("frames, shards", shards, pixels, 10),
        ):
            for workers in args.workers:
                start = time.perf_counter()
                store = open_episodes(path)
                opening = time.perf_counter() - start
                found = measure(store, window, args.windows // share, args.batch_size, workers)
                print(
                    f"{label:<21} {workers} workers  opened in {opening:5.2f} s {found}", flush=True
                )


if __name__ == "__main__":
    main()
