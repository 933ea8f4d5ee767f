"""Miniature shards in the layouts of V-D4RL and of Video Occupancy Models; importable by other
tests.

Every number says where it comes from: row r of a shard has reward r + 0.5, actions r / 1000 and on,
    codes that
count up, and random pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SIZE, ACTIONS = 12, 6


def shard_arrays(
    lengths: Sequence[int] = (5, 7),
    *,
    size: int = SIZE,
    codes: int | None = 4,
    vocab: int = 1024,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Arrays of one shard with episodes of the given lengths;
    `codes` a frame, or None for a shard without.
    """
    n, rng = sum(lengths), np.random.default_rng(seed)
    kinds = np.concatenate([[0.0] + [1.0] * (t - 2) + [2.0] * (t > 1) for t in lengths])
    arrays: dict[str, np.ndarray] = {
        "action": (np.arange(n)[:, None] / 1000 + np.arange(ACTIONS) / 10).astype(np.float32),
        "discount": np.ones(n, np.float32),
        "observation": rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8),
        "reward": np.arange(n, dtype=np.float32) + 0.5,
        "step_type": kinds,
    }
    if codes is not None:
        arrays["vae_latents"] = (np.arange(n * codes).reshape(n, codes) + 10 * seed) % vocab
    return arrays


def write_shard(path: Path, arrays: dict[str, np.ndarray], **options: Any) -> Path:
    """Write arrays as they are; `options` such as chunks and compression apply to the frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, **(options if key == "observation" else {}))
    return path


def write_shards(
    folder: Path,
    lengths: Sequence[Sequence[int]] = ((5, 7), (6,)),
    *,
    grades: Sequence[str] = ("expert", "random", "medium"),
    **kwargs: Any,
) -> Path:
    """A folder of shards named as those of the VOC release; returns it."""
    for number, episodes in enumerate(lengths):
        arrays = shard_arrays(episodes, seed=number, **kwargs)
        write_shard(folder / f"{number}_{grades[number % len(grades)]}_vq_latents.hdf5", arrays)
    return folder


def write_npz_episode(
    path: Path, length: int = 6, *, size: int = 8, seed: int = 0
) -> dict[str, np.ndarray]:
    """One episode in the layout of V-D4RL's 64-pixel files; returns its arrays."""
    arrays = shard_arrays((length,), size=size, codes=None, seed=seed)
    episode = {
        "image": np.moveaxis(arrays["observation"], 1, -1),
        "action": arrays["action"],
        "reward": arrays["reward"],
        "discount": arrays["discount"],
        "is_first": arrays["step_type"] == 0,
        "is_last": arrays["step_type"] == 2,
        "is_terminal": np.zeros(length, bool),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **episode)
    return episode
