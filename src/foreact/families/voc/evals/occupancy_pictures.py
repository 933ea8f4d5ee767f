"""Sampled futures as pictures: for every gamma, true frames at random delays above samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from foreact.data.stores.episodes import EpisodeStore
from foreact.data.windows.loader import WindowDataset
from foreact.families.voc.evals.delays import geometric_law, nearest_delays
from foreact.families.voc.evals.values import OccupancyModel, TrueFutures, reach
from foreact.types import Tokenizer, to_uint8

ToPictures = Callable[[Tensor], np.ndarray]
"""Stacks int64 (N, T, h, w) -> pictures of their last frames, uint8 (N, H, W, 3)."""

SEARCH_ROWS = 4096
"""Frames of the data compared at once."""
CELL, LABEL, GAP, MARGIN = 96, 16, 6, 132
"""Pixels of the sheet: height of a picture, height of its title, gap, left margin."""


@dataclass(frozen=True)
class Futures:
    """Futures of one state at one gamma, in the order of their delays.

    Attributes:
        gamma: discount.
        delays: steps to each true state, drawn from the geometric law, int64 (S,).
        true: pictures of them, uint8 (S, H, W, 3).
        nearest: steps to the true state that is nearest to each sample, int64 (S,).
        sampled: pictures of the samples, uint8 (S, H', W', 3).
    """

    gamma: float
    delays: np.ndarray
    true: np.ndarray
    nearest: np.ndarray
    sampled: np.ndarray


@dataclass(frozen=True)
class ImaginedState:
    """One state with its futures.

    Attributes:
        episode, step: where it lies.
        context: the frames that the model saw, uint8 (T, H, W, 3).
        futures: one entry per gamma.
    """

    episode: int
    step: int
    context: np.ndarray
    futures: Sequence[Futures]


def decoded(tokenizer: Tokenizer) -> ToPictures:
    """Pictures by the tokenizer that made the codes."""

    @torch.no_grad()
    def show(stacks: Tensor) -> np.ndarray:
        frames = tokenizer.decode(stacks[:, -1:])[:, 0]
        return to_uint8(frames).permute(0, 2, 3, 1).cpu().numpy()

    return show


def nearest_frames(store: EpisodeStore, camera: str) -> ToPictures:
    """For codes without a way back to pixels: the frame of the data that shares most codes."""
    rows = np.arange(int(store.lengths.sum()))

    def show(stacks: Tensor) -> np.ndarray:
        targets = stacks[:, -1].flatten(1).cpu().numpy()
        least, best = np.full(len(targets), np.inf), np.zeros(len(targets), np.int64)
        for part in np.array_split(rows, -(-len(rows) // SEARCH_ROWS)):
            codes = store.gather(f"tokens_{camera}", part).reshape(len(part), -1)
            for i, target in enumerate(targets):
                differing = (codes != target).sum(axis=1)
                best_in_part = int(differing.argmin())
                if differing[best_in_part] < least[i]:
                    least[i], best[i] = differing[best_in_part], part[best_in_part]
        return store.gather(camera, best)

    return show


@torch.no_grad()
def imagine(
    model: OccupancyModel,
    windows: WindowDataset,
    camera: str,
    row: int,
    *,
    gammas: Sequence[float],
    samples: int,
    to_pictures: ToPictures,
    rng: torch.Generator,
    device: torch.device | str = "cpu",
) -> ImaginedState:
    """Draw futures of one state.

    Args:
        model: in evaluation mode.
        windows: contexts, see `values.contexts`.
        camera: whose tokens; true frames are its pictures where the store has them, else
            `to_pictures` makes them.
        row: which of the windows.
        gammas: of the model.
        samples: S, for each gamma.
        to_pictures: makes pictures of sampled states.
        rng: of the delays and the samples.
        device: where the model computes.
    """
    store = windows.store
    episode, step = windows.anchors.at([row])[0].tolist()
    batch = windows.batch(np.array([row]))
    context = batch.tokens[camera].to(device)
    actions = None if batch.actions is None else batch.actions.to(device)
    futures = TrueFutures(windows, camera)
    first_row = int(store.starts[episode])

    def true(steps: np.ndarray, stacks: Tensor) -> np.ndarray:
        return store.gather(camera, first_row + steps) if store.has(camera) else to_pictures(stacks)

    futures_by_gamma = []
    for gamma in gammas:
        future = futures.after(episode, step, reach(gamma)).to(device)
        law = torch.from_numpy(geometric_law(gamma, len(future))).to(rng.device)
        ahead = torch.multinomial(law, samples, replacement=True, generator=rng)
        ahead = ahead.sort().values.to(device)
        drawn = model.sample(context, samples=samples, gamma=gamma, actions=actions, rng=rng)[0]
        nearest = torch.stack(
            [nearest_delays(sample[None], future)[0].argmax() for sample in drawn]
        )
        order = nearest.argsort(stable=True)
        futures_by_gamma.append(
            Futures(
                gamma=gamma,
                delays=1 + ahead.cpu().numpy(),
                true=true(step + 1 + ahead.cpu().numpy(), future[ahead]),
                nearest=1 + nearest[order].cpu().numpy(),
                sampled=to_pictures(drawn[order]),
            )
        )
    frames = np.maximum(step + np.array(windows.window.tokens[camera]), 0)
    seen = context[0][:, None].expand(-1, len(frames), -1, -1)  # each frame as a stack of itself
    return ImaginedState(episode, step, true(frames, seen), futures_by_gamma)


def futures_picture(state: ImaginedState) -> Image.Image:
    """The context; below it, for every gamma, true frames above samples, with their delays."""
    past = range(1 - len(state.context), 1)
    lines: list[tuple[str, np.ndarray, list[str]]] = [
        ("seen", state.context, [f"{k}" if k else "now" for k in past])
    ]
    for f in state.futures:
        lines.append((f"gamma {f.gamma:g}: true", f.true, [f"+{k}" for k in f.delays]))
        lines.append(
            (f"gamma {f.gamma:g}: sampled", f.sampled, [f"nearest +{k}" for k in f.nearest])
        )
    columns = max(len(pictures) for _, pictures, _ in lines)
    height, width = state.context.shape[1:3]
    cell = (round(CELL * width / height), CELL)
    sheet = Image.new(
        "RGB", (MARGIN + columns * (cell[0] + GAP), len(lines) * (CELL + LABEL + GAP)), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for row, (label, pictures, titles) in enumerate(lines):
        top = row * (CELL + LABEL + GAP)
        draw.text(
            (MARGIN - 8, top + LABEL + CELL // 2), label, fill="black", font=font, anchor="rm"
        )
        for column, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
            left = MARGIN + column * (cell[0] + GAP)
            draw.text(
                (left + cell[0] // 2, top + LABEL - 2), title, fill="black", font=font, anchor="mb"
            )
            sheet.paste(
                Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST), (left, top + LABEL)
            )
    return sheet
