"""Windows a second of random access to a LeRobot set, and to our own store of the same frames.

Both hold the same frames, as the videos of the set show them, and are read in one run by one
process; the store keeps them as compressed chunks of pixels, once decoded from disk as they are
asked for and once held in memory. The set is written by `foreact data export-lerobot`.

    python benchmarks/lerobot.py --size 96 --episodes 40 --steps 150
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from foreact.data.formats.lerobot.export import export_lerobot
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.opening import open_episodes
from foreact.data.stores.store import open_store
from foreact.data.stores.writer import StoreWriter
from foreact.data.windows.loader import WindowDataset, batches
from foreact.data.windows.window import Window
from foreact.types import StreamSpec

FRAMES, BATCH = 8, 16


def moving_frames(episode: int, steps: int, size: int) -> np.ndarray:
    """A textured picture that slides, with some noise of a sensor: uint8 (T, S, S, 3)."""
    rng = np.random.default_rng(episode)
    coarse = rng.integers(0, 256, (size // 8 + 2, 2 * size // 8 + 2, 3)).astype(np.uint8)
    ground = coarse.repeat(8, axis=0).repeat(8, axis=1)
    frames = np.stack([np.roll(ground, -t, axis=1)[:size, :size] for t in range(steps)]).astype(
        np.int16
    )
    frames += rng.integers(-3, 4, frames.shape, np.int16)
    return frames.clip(0, 255).astype(np.uint8)


def windows_per_second(store: EpisodeStore, seconds: float) -> float:
    window = Window(video={"video": tuple(range(FRAMES))})
    stream = batches(WindowDataset(store, window, np.arange(len(store))), batch_size=BATCH, seed=0)
    next(stream)  # files are opened and scanned
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(stream)
        count += BATCH
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=96, help="height and width of the frames")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--steps", type=int, default=150, help="of an episode")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--codecs", nargs="+", default=["h264", "av1"])
    args = parser.parse_args()
    spec = StreamSpec(cameras={"video": (args.size, args.size)}, fps=30.0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with StoreWriter(root / "drawn.zarr", spec) as writer:
            for episode in range(args.episodes):
                writer.append({"video": moving_frames(episode, args.steps, args.size)})
        for codec in args.codecs:
            path = root / codec
            export_lerobot(
                open_store(root / "drawn.zarr"), path, codec=codec, task_text="none", progress=False
            )
            lerobot = open_episodes(path)
            with StoreWriter(root / f"{codec}.zarr", spec) as writer:
                for episode in range(args.episodes):
                    writer.append(lerobot.read(episode, 0, args.steps, ["video"]))
            on_disk = open_store(root / f"{codec}.zarr", memory_limit=0)
            in_memory = open_store(root / f"{codec}.zarr")
            rates = {
                "set": windows_per_second(lerobot, args.seconds),
                "store on disk": windows_per_second(on_disk, args.seconds),
                "store in memory": windows_per_second(in_memory, args.seconds),
            }
            sizes = [
                sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) / 1e6
                for p in (path, root / f"{codec}.zarr")
            ]
            print(f"{codec}: set {sizes[0]:.1f} MB, store {sizes[1]:.1f} MB")
            for name, rate in rates.items():
                print(f"  {name:<16}{rate:8.0f} windows/s  set / this {rates['set'] / rate:6.2f}")


if __name__ == "__main__":
    main()
