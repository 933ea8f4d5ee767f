"""`foreact generate`: what a model foresees for a window of an episode, next to what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from foreact.data.episodes import RowStore
from foreact.evals.figures import actions_figure
from foreact.evals.video import read_states, save_examples, video_quality
from foreact.policies.uva import UVAPolicy
from foreact.recipes.evaluate import open_imagining
from foreact.recipes.runs import say
from foreact.recipes.stores import open_held_out_store
from foreact.recipes.tasks import find_task
from foreact.types import UserError


def generate(
    weights: str = "uva-pusht",
    task: str = "pusht",
    mode: Literal["video", "dynamics", "inverse"] = "video",
    data: Path | None = None,
    windows: int = 4,
    seed: int = 0,
    out: Path = Path("runs/generate"),
    device: str | None = None,
) -> None:
    """Imagine futures from held-out episodes and write them next to the true ones.

    "video" foresees frames from frames, "dynamics" from frames and the true actions; each window gives a PNG strip and
    an mp4, with PSNR and SSIM over all windows. "inverse" finds the actions between true frames; each window gives a
    plot of the true and the found actions, with their mean distance.

    Args:
        weights: a checkpoint folder or a shipped name.
        task: whose data to use.
        mode: the question.
        data: a store; default: fresh held-out episodes by the task's expert.
        windows: how many, each from another episode.
        seed: decides windows and draws.
        out: folder of the pictures.
        device: where to compute; default CUDA if there is one.
    """
    found = find_task(task)
    policy = open_imagining(weights, found, device)
    store = open_held_out_store(found, data)
    episodes = range(min(windows, len(store.lengths)))
    say("Generating", mode=mode, weights=weights, data=store.path, windows=len(episodes), seed=seed, out=out)
    if mode == "inverse":
        _inverse(policy, store, episodes, seed, out)
        return
    quality = video_quality(policy, store, episodes, mode=mode, windows_per_episode=1, seed=seed, examples=windows)
    for name, value in quality.estimates.items():
        print(f"  {name:<12}{value}")
    for path in save_examples(quality, out, fps=found.spec.fps):
        print(path)


def _inverse(policy: UVAPolicy, store: RowStore, episodes: range, seed: int, out: Path) -> None:
    rng = np.random.default_rng(seed)
    draws = torch.Generator().manual_seed(seed)
    ahead = [(i + 1) * policy.context_stride for i in range(policy.frames)]
    for episode in episodes:
        last = int(store.lengths[episode]) - 1 - max(ahead[-1], policy.horizon)
        if last < 0:
            raise UserError(f"Episode {episode} of {store.path} is shorter than a window; name longer episodes.")
        now = int(rng.integers(0, last + 1))
        past = np.maximum(np.array(policy.offsets) + now, 0)
        steps = np.concatenate([past, now + np.array(ahead)])
        frames = store.gather(policy.camera, store.starts[episode] + steps)
        context, future = np.split(frames, [policy.frames])
        true = store.read(episode, now, now + policy.horizon, ["action"])["action"]
        state = read_states(store, [(episode, now)], policy.state_offsets)
        found = policy.predict_inverse(context[None], future[None], rng=draws, state=state)[0]
        distance = float(np.linalg.norm(found - true, axis=-1).mean())
        path = out / f"inverse-episode-{episode}-step-{now}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(actions_figure(policy.action, {"true": true, "found": found}))
        print(f"{path}: mean distance {distance:.1f} {policy.action.units[0]}")
