"""A small world for occupancy models, in the pictures and actions of
cheetah-run: a square that actions push along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from foreact.checkpoints.format import save_checkpoint
from foreact.data.stores.store import StoreWriter
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.model import VOC
from foreact.tasks import find_task
from foreact.tokenizers.vq import VQConfig, VQTokenizer

TOKENIZER = VQConfig(
    channels=8,
    multipliers=(1, 2, 2, 2),
    blocks=1,
    features=8,
    codes=16,
    code_dim=4,
    norm_groups=4,
    normalized=False,
    image_size=(24, 24),
)
MODEL: dict[str, Any] = {
    "width": 16,
    "heads": 2,
    "layers": 1,
    "dropout": 0.0,
    "reward_hidden": 8,
    "frames": 2,
}
GRADES = ("random", "medium", "expert")


def write_pushes(
    path: Path, *, episodes: int = 6, steps: int = 12, task: str = "cheetah-run"
) -> Path:
    """A store of the task's spec; the reward is how far to the right the square is."""
    spec = find_task(task).spec
    assert spec.action is not None
    rng = np.random.default_rng(0)
    with StoreWriter(path, spec) as writer:
        for episode in range(episodes):
            actions = rng.uniform(-1, 1, (steps, spec.action.dim)).astype(np.float32)
            actions[-1] = 0.0
            places = np.clip(np.cumsum(np.concatenate([[20.0], 8.0 * actions[:-1, 0]])), 0, 60)
            video = np.full((steps, 84, 84, 3), 40, np.uint8)
            for t, place in enumerate(places.astype(int)):
                video[t, 30:54, place : place + 24] = (220, 120, 30)
            reward = np.concatenate([[0.0], places[1:] / 60.0]).astype(np.float32)
            writer.append(
                {"pixels": video, "action": actions, "reward": reward[:, None]},
                seed=episode,
                grade=GRADES[episode % 3],
                score=float(reward.sum()),
            )
    return path


def write_tokenizer(path: Path, config: VQConfig = TOKENIZER) -> Path:
    """An untrained tokenizer, always the same."""
    torch.manual_seed(0)
    tokenizer = VQTokenizer(config)
    save_checkpoint(path, family="vq", config=config, state=tokenizer.state_dict())
    return path


def write_voc(path: Path, tokenizer: Path, *, task: str = "cheetah-run", **options: Any) -> Path:
    """An untrained occupancy model with its tokenizer."""
    torch.manual_seed(0)
    fixed = {"vocab": TOKENIZER.codes, "code_dim": TOKENIZER.code_dim, "grid": TOKENIZER.grid}
    model = VOC(VOCConfig(**{**MODEL, **fixed, **options}))
    model.set_codebook(torch.randn(TOKENIZER.codes, TOKENIZER.code_dim))
    save_checkpoint(
        path,
        family="voc",
        config=model.config,
        state=model.state_dict(),
        spec=find_task(task).spec,
        tokenizer=tokenizer,
        card={"val_ratio": 0.3, "seed": 42},
    )
    return path
