"""`foreact generate` for occupancy models: sampled futures per gamma, beside true ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from foreact.data.formats.video import save_image
from foreact.data.stores.fingerprint import fingerprint
from foreact.data.windows.loader import WindowDataset, spread
from foreact.errors import UserError
from foreact.evals.report import Media, write_report
from foreact.families.voc.evals.occupancy_pictures import (
    ToPictures,
    decoded,
    futures_picture,
    imagine,
    nearest_frames,
)
from foreact.families.voc.evaluate_values import (
    OpenedOccupancy,
    choose_gammas,
    episode_grades,
    open_occupancy,
)
from foreact.progress import Progress
from foreact.runs.command_line import arguments_of
from foreact.runs.results import open_results
from foreact.runs.run import pick_device, say
from foreact.seeds import require_seeds
from foreact.types import Tokenizer

DRAWN = "Sampled states are drawn by the tokenizer's decoder."
LOOKED_UP = (
    "The codes know no way back to pixels: a sampled state is shown as the frame of the data "
    "whose codes are nearest."
)


def generate(
    weights: str,
    data: Path,
    gammas: tuple[float, ...] = (),
    states: int = 4,
    samples: int = 8,
    all_episodes: bool = False,
    tokenizer: str | None = None,
    seed: int = 0,
    out: Path = Path("runs/generate"),
    device: str | None = None,
) -> list[Media]:
    """Sample futures of held-out states; each state gives a PNG, and all of them a page.

    For every gamma, true frames at delays drawn from the geometric law stand above sampled states,
    which are in the order of the true states nearest to them.

    Args:
        weights: a checkpoint of VOC.
        data: the store or folder of shards that it was trained on: states are those of its
            validation episodes.
        gammas: some of the model's; default: all of them.
        states: how many, each of another episode as far as there are episodes.
        samples: futures per state and gamma.
        all_episodes: take states of every episode, such as those of a store that no training saw.
        tokenizer: where the tokenizer lies, if the weights do not embed it.
        seed: of states and draws.
        out: folder of the pictures.
        device: where to compute; default CUDA if there is one.
    """
    options = arguments_of(generate, locals())
    if states < 1 or samples < 1:
        raise UserError(
            f"--states and --samples should be at least 1, found {states} and {samples}."
        )
    require_seeds(seed, option="--seed")
    torch_device = pick_device(device)
    opened = open_occupancy(
        weights, data, torch_device, tokenizer=tokenizer, all_episodes=all_episodes
    )
    chosen = choose_gammas(opened.voc, gammas)
    hashes = {"weights": opened.checkpoint.hash, "data": fingerprint(opened.store).digest}
    folder = open_results(out, "generate", options, **hashes)
    windows, camera = opened.windows(), opened.voc.config.camera
    say(
        "Sampling futures",
        weights=f"{weights} {opened.checkpoint.hash[:19]}",
        data=data,
        episodes=opened.split,
        gammas=", ".join(f"{g:g}" for g in chosen),
        draws=f"{samples} futures of {states} states, seed {seed}",
        device=torch_device,
        out=out,
    )
    to_pictures, caption = _to_pictures(opened)
    grades = episode_grades(opened.store)
    rng = torch.Generator(torch_device).manual_seed(seed)
    pictures = []
    for row in Progress(_early_states(windows, states, seed), unit="state", desc="sample"):
        state = imagine(
            opened.voc,
            windows,
            camera,
            row,
            gammas=chosen,
            samples=samples,
            to_pictures=to_pictures,
            rng=rng,
            device=torch_device,
        )
        path = out / f"futures-episode-{state.episode}-step-{state.step}.png"
        save_image(path, futures_picture(state))
        grade = "" if grades is None else f" ({grades[state.episode]})"
        pictures.append(
            Media(path, f"Episode {state.episode}{grade}, step {state.step}. {caption}")
        )
        print(path)
    facts = {
        "command": folder.command,
        "weights": f"{weights} {opened.checkpoint.hash}",
        "data": str(data),
        "episodes": opened.split,
    }
    facts["draws"] = f"{samples} futures for each gamma, seed {seed}"
    report = write_report(
        out / "report.html", title="Sampled futures", futures=pictures, facts=facts
    )
    folder.finish()
    print(f"{caption}\nReport: {report}")
    return pictures


def _to_pictures(opened: OpenedOccupancy) -> tuple[ToPictures, str]:
    """How sampled states become pictures, and a sentence about it."""
    tokenizer, camera = opened.tokenizer.tokenizer, opened.voc.config.camera
    if isinstance(tokenizer, Tokenizer):
        return decoded(tokenizer), DRAWN
    if not opened.store.has(camera):
        raise UserError(
            f"The tokenizer of {opened.checkpoint.path} cannot draw its codes and "
            f"{opened.store.path} has no pictures to show instead; use data with pictures."
        )
    return nearest_frames(opened.store, camera), LOOKED_UP


def _early_states(windows: WindowDataset, count: int, seed: int) -> list[int]:
    """Rows of the windows: one in the first half of each of `count` episodes.

    Where there are fewer episodes, more of each.
    """
    draw = np.random.default_rng(seed)
    episode_of = windows.index[:, 0]
    episodes = np.unique(episode_of)
    chosen = []
    enough = count <= len(episodes)
    numbers = spread(len(episodes), count) if enough else np.arange(count) % len(episodes)
    for episode in episodes[numbers]:
        rows = np.flatnonzero(episode_of == episode)
        chosen.append(int(rows[draw.integers(0, (len(rows) + 1) // 2)]))
    return chosen
