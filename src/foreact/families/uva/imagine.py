"""`foreact generate` and `foreact eval video` for UVA: what it foresees, beside what happened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from foreact.checkpoints.shipped import resolve
from foreact.data.stores.fingerprint import fingerprint
from foreact.errors import UserError
from foreact.evals.figures import actions_figure
from foreact.evals.report import Media, write_report
from foreact.evals.seen import Recordings, read_seen
from foreact.evals.video import VideoQuality, save_examples, video_quality
from foreact.families.uva.opening import open_imagining
from foreact.families.uva.policy import UVAPolicy
from foreact.files import write_json
from foreact.runs.command_line import arguments_of
from foreact.runs.results import open_results
from foreact.runs.run import pick_device, say
from foreact.runs.stores import hands_of, open_held_out_store, policy_spec, task_of_weights
from foreact.runs.unseen import episodes_to_measure
from foreact.seeds import require_seeds
from foreact.worlds import Task


def generate(
    weights: str = "uva-pusht",
    task: str | None = None,
    mode: Literal["video", "dynamics", "inverse"] = "video",
    data: Path | None = None,
    windows: int = 4,
    seed: int = 0,
    out: Path = Path("runs/generate"),
    device: str | None = None,
) -> None:
    """Imagine futures from held-out episodes and write them next to the true ones.

    "video" foresees frames from frames, "dynamics" from frames and the true actions; each window
    gives a PNG strip and an mp4, with PSNR and SSIM over all windows. "inverse" finds the actions
    between true frames; each window gives a plot of the true and the found actions, with their mean
    distance.

    Args:
        weights: a checkpoint folder or a shipped name.
        task: whose data to use; None: what the weights are for.
        mode: the question.
        data: a store; default: fresh held-out episodes by the task's expert.
        windows: how many, each from another episode.
        seed: decides windows and draws.
        out: folder of the pictures.
        device: where to compute; default CUDA if there is one.
    """
    options = arguments_of(generate, locals())
    require_seeds(seed, option="--seed")
    policy, loaded_task = _open_for_task(weights, task, device)
    store = open_held_out_store(loaded_task, data)
    content = fingerprint(store).digest
    folder = open_results(out, "generate", options, weights=policy.weights, data=content)
    measured, about = episodes_to_measure(resolve(weights), store)
    episodes = measured[:windows].tolist()
    say(
        "Generating",
        mode=mode,
        weights=weights,
        data=store.path,
        episodes=about,
        windows=len(episodes),
        seed=seed,
        out=out,
    )
    recordings = Recordings(store, hands_of(loaded_task))
    if mode == "inverse":
        _inverse(policy, recordings, episodes, seed, out)
        folder.finish()
        return
    qualities = video_quality(
        policy, recordings, episodes, mode=mode, windows_per_episode=1, seed=seed, examples=windows
    )
    for quality in qualities:
        print(f"  camera {quality.camera}")
        for name, value in quality.estimates.items():
            print(f"  {name:<12}{value}")
        for path in save_examples(quality, out, fps=policy.spec.fps):
            print(path)
    folder.finish()


def video(
    weights: str = "uva-pusht",
    task: str | None = None,
    data: Path | None = None,
    windows_per_episode: int = 4,
    episodes: int = 16,
    seed: int = 0,
    examples: int = 4,
    out: Path = Path("runs/video"),
    device: str | None = None,
) -> None:
    """PSNR and SSIM of imagined futures, with and without the true actions, and of copying.

    Args:
        weights: a checkpoint folder or a shipped name.
        task: whose data to use; None: what the weights are for.
        data: a store of episodes that training has not seen; default: fresh ones, shown by the
            task's expert on seeds that no training uses.
        windows_per_episode: windows drawn from each episode.
        episodes: at most so many.
        seed: decides windows and draws.
        examples: windows to draw side by side.
        out: folder of the results.
        device: where to compute; default CUDA if there is one.
    """
    options = arguments_of(video, locals())
    require_seeds(seed, option="--seed")
    policy, loaded_task = _open_for_task(weights, task, device)
    store = open_held_out_store(loaded_task, data)
    content = fingerprint(store).digest
    folder = open_results(out, "eval video", options, weights=policy.weights, data=content)
    measured, about = episodes_to_measure(resolve(weights), store)
    held_out = measured[:episodes].tolist()
    say(
        "Video quality",
        task=loaded_task.name,
        weights=weights,
        data=store.path,
        episodes=f"{len(held_out)} ({about})",
        out=out,
    )
    qualities: list[VideoQuality] = []
    futures: list[Media] = []
    for mode in ("video", "dynamics"):
        of_cameras = video_quality(
            policy,
            Recordings(store, hands_of(loaded_task)),
            held_out,
            mode=mode,
            windows_per_episode=windows_per_episode,
            seed=seed,
            examples=examples,
        )
        qualities += of_cameras
        for quality in of_cameras:
            estimates = ", ".join(f"{name} {value}" for name, value in quality.estimates.items())
            print(f"{mode}, camera {quality.camera}: {estimates}")
            for path in save_examples(quality, out / mode, fps=policy.spec.fps):
                futures.append(Media(path, f"{mode}: {path.stem}"))
        write_json(out / f"{mode}.json", {q.camera: q.to_json() for q in of_cameras})
    report = write_report(
        out / "report.html",
        title=f"Imagined futures on {loaded_task.name}",
        quality=qualities,
        futures=futures,
        facts={
            "command": folder.command,
            "weights": f"{weights} {policy.weights}",
            "data": store.label,
            "episodes": f"{len(held_out)} ({about})",
        },
    )
    folder.finish()
    print(f"Report: {report}")


def _open_for_task(weights: str, name: str | None, device: str | None) -> tuple[UVAPolicy, Task]:
    """The model, and the task that it is for."""
    policy = open_imagining(resolve(weights), device=pick_device(device))
    task = task_of_weights(name, policy.spec)
    policy_spec(task).require_equal(policy.spec, f"task '{task.name}'", f"weights '{weights}'")
    return policy, task


def _inverse(
    policy: UVAPolicy, recordings: Recordings, episodes: Sequence[int], seed: int, out: Path
) -> None:
    """Plot the actions predicted between true frames beside the true ones, per episode."""
    rng = np.random.default_rng(seed)
    torch_rng = torch.Generator().manual_seed(seed)
    ahead = [(i + 1) * policy.context_stride for i in range(policy.frames)]
    for episode in episodes:
        last = int(recordings.lengths[episode]) - 1 - max(ahead[-1], policy.action_offsets[-1])
        if last < 0:
            raise UserError(
                f"Episode {episode} of {recordings.store.path} is shorter than a window; name "
                "longer episodes."
            )
        now = int(rng.integers(0, last + 1))
        moments = [(episode, now)]
        seen = read_seen(policy, recordings, moments)
        future = {camera: recordings.frames(camera, moments, ahead) for camera in policy.foreseen}
        actions = recordings.actions(moments, policy.action_offsets)[0]
        predicted = policy.predict_inverse(seen, future, rng=torch_rng)[0]
        distance = float(np.linalg.norm(predicted - actions, axis=-1).mean())
        path = out / f"inverse-episode-{episode}-step-{now}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(actions_figure(policy.action, {"true": actions, "found": predicted}))
        print(f"{path}: mean distance {distance:.1f} {policy.action.units[0]}")
