"""Windows per second of a UMI file, the memory of a process that reads it, and of four that do.

The yardstick decodes the eight frames of a window one after another through zarr, in one process.
Without --data a file of drawn frames is made, of the size and compression of the published ones.

    python benchmarks/umi.py --windows 10000 --workers 2
    python benchmarks/umi.py --frames /dev/shm/frames        # decoded once for all processes
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr
from imagecodecs.numcodecs import Jpegxl, register_codecs
from zarr.storage import ZipStore

from foreact.data.stores.shared_frames import VARIABLE
from foreact.data.stores.store import open_store
from foreact.data.windows.hand_poses import umi_hands
from foreact.data.windows.hand_windows import HandWindows
from foreact.data.windows.loader import batches, ordered_batches
from foreact.data.windows.window import Window
from foreact.tasks.umi import TASK
from foreact.types import Batch

CAMERA, FRAMES, LOW = TASK.camera, tuple(range(-12, 17, 4)), tuple(range(-15, 17))
BATCH = 32
SIZE = 224
MIB = 2**20


def make(folder: Path, episodes: int, length: int) -> Path:
    """A file as UMI's script writes it; frames are smooth noise."""
    register_codecs()
    rng, rows = np.random.default_rng(0), episodes * length
    path = folder / "drawn.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    array = group.create_array(
        f"data/{CAMERA}",
        shape=(rows, SIZE, SIZE, 3),
        chunks=(1, SIZE, SIZE, 3),
        dtype="uint8",
        compressors=Jpegxl(level=99, numthreads=1),
    )
    for row in range(rows):
        coarse = rng.integers(0, 256, (SIZE // 8, SIZE // 8, 3)).repeat(8, 0).repeat(8, 1)
        array[row] = sum(np.roll(coarse, (i, j), (0, 1)) for i in range(8) for j in range(8)) // 64
    for name, names in TASK.spec.state.items():
        values = rng.normal(scale=0.1, size=(rows, len(names))).astype(np.float32)
        group.create_array(f"data/{name}", data=values, chunks=(length, len(names)))
    group.create_array("meta/episode_ends", data=length * (1 + np.arange(episodes)))
    target = folder / "drawn.zarr.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for file in path.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(path))
    return target


def open_windows(path: Path) -> HandWindows:
    store, hands = open_store(path, TASK.spec), umi_hands()
    window = Window(
        video={CAMERA: FRAMES}, state=dict.fromkeys(hands.state, LOW), actions=tuple(range(1, 17))
    )
    return HandWindows(store, hands, window, np.arange(len(store)))


def one_by_one(path: Path, frames: int) -> float:
    """Windows per second where each of their frames is decoded alone, by zarr."""
    windows = open_windows(path)
    array = zarr.open_group(ZipStore(path, mode="r"), mode="r")[f"data/{CAMERA}"]
    assert isinstance(array, zarr.Array)
    rows = np.random.default_rng(0).integers(0, int(windows.store.lengths.sum()), frames)
    start = time.perf_counter()
    for row in rows.tolist():
        array[row]
    return frames / len(FRAMES) / (time.perf_counter() - start)


def rate(stream: Iterator[Batch], windows: int) -> float:
    """Windows per second, after the first batch."""
    next(stream)
    start, done = time.perf_counter(), 0
    for batch in stream:
        done += len(batch)
        if done >= windows:
            break
    return done / (time.perf_counter() - start)


def memory(pid: int | str = "self", kind: str = "Pss:") -> float:
    """MiB of a process: "Rss:", or "Pss:", where shared pages count in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    raise ValueError(kind)


def growth(path: Path, windows: int) -> list[float]:
    """Resident MiB of this process after each tenth of so many windows."""
    data, seen = batches(open_windows(path), batch_size=BATCH, seed=1), []
    for tenth in range(10):
        for _ in range(max(1, windows // 10 // BATCH)):
            next(data)
        seen.append(memory(kind="Rss:"))
        print(f"  {(tenth + 1) * windows // 10:6} windows: {seen[-1]:7.0f} MiB resident")
    return seen


def rank(path: Path, number: int, workers: int, results: multiprocessing.Queue) -> None:
    data = batches(
        open_windows(path), batch_size=BATCH, seed=1, workers=workers, rank=number, world=2
    )
    for _ in range(4 * max(1, workers)):
        next(data)
    family = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    results.put([(memory(pid or 0), memory(pid or 0, "Rss:")) for pid in family])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--length", type=int, default=300)
    parser.add_argument("--frames", type=Path, help="folder of decoded frames")
    args = parser.parse_args()
    if args.frames is not None:
        os.environ[VARIABLE] = str(args.frames)
    with tempfile.TemporaryDirectory() as folder:
        path = args.data or make(Path(folder), args.episodes, args.length)
        data = open_windows(path)
        frames = int(data.store.lengths.sum())
        print(f"{path}: {frames} frames, {path.stat().st_size / frames / 1024:.0f} KiB each")
        single = one_by_one(path, 400)
        print(f"one by one:           {single:8.1f} windows/s")
        few = max(256, args.windows // 10)
        runs = {
            "in order": ordered_batches(data, batch_size=BATCH),
            "shuffled": batches(data, batch_size=BATCH, seed=0),
            "shuffled again": batches(open_windows(path), batch_size=BATCH, seed=1),
            f"shuffled, {args.workers} workers": batches(
                data, batch_size=BATCH, seed=0, workers=args.workers
            ),
        }
        for name, stream in runs.items():
            got = rate(stream, few)
            print(f"{name + ':':<22}{got:8.1f} windows/s, {got / single:.1f} times as many")
        print("one process:")
        seen = growth(path, args.windows)
        print(f"  from the second tenth on {seen[-1] - seen[1]:+.0f} MiB")
        results: multiprocessing.Queue = multiprocessing.Queue()
        ranks = [
            multiprocessing.Process(target=rank, args=(path, number, args.workers, results))
            for number in range(2)
        ]
        for process in ranks:
            process.start()
        for number in range(2):
            rows = results.get()
            shares = ", ".join(f"{pss:.0f} of {rss:.0f}" for pss, rss in rows)
            print(f"rank {number} and its workers, MiB in proportion (PSS) of resident: {shares}")
        for process in ranks:
            process.join()


if __name__ == "__main__":
    main()
