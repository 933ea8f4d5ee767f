"""`foreact eval values`: values by an occupancy model against what the episodes earned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from foreact.checkpoints.format import Checkpoint, build, load_checkpoint
from foreact.checkpoints.shipped import resolve
from foreact.checkpoints.tokenizers import LoadedTokenizer, tokenizer_of
from foreact.data.stores.companion import accompanied
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.fingerprint import fingerprint
from foreact.data.stores.opening import open_episodes
from foreact.data.windows.loader import WindowDataset
from foreact.errors import UserError
from foreact.evals.report import write_report
from foreact.families.voc.evals.value_figures import values_section
from foreact.families.voc.evals.values import (
    Accuracy,
    Values,
    contexts,
    known_states,
    mean_value,
    measure_values,
    reach,
)
from foreact.families.voc.model import VOC
from foreact.families.voc.train import normalizer
from foreact.files import write_json
from foreact.progress import Progress
from foreact.runs.command_line import arguments_of
from foreact.runs.results import open_results
from foreact.runs.run import pick_device, say
from foreact.runs.stores import ensure_codes
from foreact.runs.unseen import episodes_to_measure, unseen_episodes
from foreact.seeds import require_seeds
from foreact.types import Estimate


class OpenedOccupancy(NamedTuple):
    """An occupancy model and episodes to hold it against.

    Attributes:
        voc: in evaluation mode.
        checkpoint: where it comes from.
        tokenizer: of its codes.
        store: with codes of that tokenizer.
        training, held_out: episode numbers; both are all of them where the user asked for all.
        split: how they were chosen, in words.
    """

    voc: VOC
    checkpoint: Checkpoint
    tokenizer: LoadedTokenizer
    store: EpisodeStore
    training: np.ndarray
    held_out: np.ndarray
    split: str

    def windows(self) -> WindowDataset:
        """Contexts of the held-out episodes."""
        config = self.voc.config
        return contexts(
            self.store,
            self.held_out,
            config.camera,
            config.frames,
            action_steps=config.action_steps if config.actions else 0,
            normalizer=normalizer(self.store.spec),
        )


def values(
    weights: str,
    data: Path,
    gammas: tuple[float, ...] = (),
    samples: int = 100,
    states: int = 200,
    candidates: int = 32,
    all_episodes: bool = False,
    tokenizer: str | None = None,
    batch_size: int = 8,
    seed: int = 0,
    out: Path = Path("runs/values"),
    device: str | None = None,
) -> list[Values]:
    """Compare estimated values with the returns that followed, on episodes no training saw.

    Correlations, mean squared error and bias with intervals over episodes, a scatter plot, and how
    far ahead the sampled futures lie.

    Args:
        weights: a checkpoint of VOC.
        data: the store or folder of shards that it was trained on: the episodes kept for validation
            are measured.
        gammas: some of the model's; default: all of them.
        samples: futures per state.
        states: states per gamma, spread evenly over those whose true value is known.
        candidates: true later states per state for the estimate from densities.
        all_episodes: measure every episode, such as those of a store that no training saw.
        tokenizer: where the tokenizer lies, if the weights do not embed it.
        batch_size: states per call.
        seed: of the draws.
        out: folder of the results.
        device: where to compute; default CUDA if there is one.
    """
    options = arguments_of(values, locals())
    require_seeds(seed, option="--seed")
    torch_device = pick_device(device)
    opened = open_occupancy(
        weights, data, torch_device, tokenizer=tokenizer, all_episodes=all_episodes
    )
    chosen = choose_gammas(opened.voc, gammas)
    hashes = {"weights": opened.checkpoint.hash, "data": fingerprint(opened.store).digest}
    folder = open_results(out, "eval values", options, **hashes)
    windows, grades = opened.windows(), episode_grades(opened.store)
    measured_states = {gamma: min(states, len(known_states(windows, gamma))) for gamma in chosen}
    facts: dict[str, Any] = {
        "command": folder.command,
        "weights": f"{weights} {opened.checkpoint.hash}",
        "data": str(data),
        "episodes": opened.split,
        "gammas": ", ".join(f"{g:g}" for g in chosen),
        "draws": f"{samples} futures of up to {states} states, seed {seed}",
    }
    if opened.voc.config.actions:
        facts["condition"] = (
            "the actions that were taken, so that values are those of state and action"
        )
    say("Values", **facts, device=torch_device, out=out)
    results = []
    for gamma in chosen:
        with Progress(total=measured_states[gamma], unit="state", desc=f"gamma {gamma:g}") as bar:
            result = measure_values(
                opened.voc,
                windows,
                opened.voc.config.camera,
                gamma=gamma,
                train_mean=mean_value(opened.store, opened.training, gamma),
                states=states,
                samples=samples,
                candidates=candidates,
                batch_size=batch_size,
                seed=seed,
                grades=grades,
                on_states=bar.update,
                device=torch_device,
            )
        results.append(result)
        print("\n".join(lines(result)))
    note = (
        "The truth is the return of whoever acted in the episode, to its end, of states with at "
        "least " + ", ".join(f"{reach(g)} (gamma {g:g})" for g in chosen) + " steps left."
    )
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "values.json",
        {"facts": facts, "note": note, "values": [v.to_json() for v in results]},
    )
    report = write_report(
        out / "report.html",
        title="Values of states",
        sections=[values_section(results)],
        facts=facts | {"truth": note},
    )
    folder.finish()
    print(f"{note}\nNumbers: {out / 'values.json'}\nReport: {report}")
    return results


def open_occupancy(
    weights: str,
    data: Path,
    device: torch.device,
    *,
    tokenizer: str | None = None,
    all_episodes: bool = False,
) -> OpenedOccupancy:
    """Open a checkpoint of VOC with its data, and make the codes that the store lacks.

    Raises:
        UserError: other weights, data of another task or with other codes, or a split that nobody
            knows.
    """
    checkpoint = load_checkpoint(resolve(weights), of="voc")
    store = accompanied(open_episodes(data, checkpoint.spec))
    training, held_out, split = _episodes(checkpoint, store, all_episodes)
    loaded = tokenizer_of(checkpoint, tokenizer, device)
    voc = build(checkpoint, device)
    assert isinstance(voc, VOC)
    ensure_codes(store, voc.config.camera, loaded, device=device)
    return OpenedOccupancy(voc, checkpoint, loaded, store, training, held_out, split)


def _episodes(
    checkpoint: Checkpoint, store: EpisodeStore, all_episodes: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    """Episodes of the training, episodes to measure, and what these are in words."""
    if all_episodes:
        episodes = np.arange(len(store))
        split = f"all {len(episodes)}; what is called the mean of the training data is theirs"
        return episodes, episodes, split
    card = checkpoint.card
    if not isinstance(card.get("data"), list):
        raise UserError(
            f"{checkpoint.path} does not say which episodes it was validated on; use the finished "
            "weights of a run, or say --all-episodes for data that no training saw."
        )
    if unseen_episodes(card, store) is None:
        raise UserError(
            f"{store.label} is not what {checkpoint.path} was trained on; name that, wherever it "
            "lies now, or say --all-episodes for data that no training saw."
        )
    held_out, split = episodes_to_measure(checkpoint.path, store)
    return np.setdiff1d(np.arange(len(store)), held_out), held_out, split


def choose_gammas(voc: VOC, asked: Sequence[float]) -> tuple[float, ...]:
    """The gammas to measure: those asked for, or all of the model's that make a value.

    Raises:
        UserError: one is outside (0, 1) or not the model's, or the model is a plain one-step model.
    """
    if bad := [g for g in asked if not 0.0 < g < 1.0]:
        raise UserError(f"A gamma should lie in (0, 1), found {bad[0]}.")
    valued = tuple(g for g in voc.config.gammas if g > 0)
    if not valued:
        raise UserError(
            "This is a one-step model (gamma 0), which tells no values; name one of a larger gamma."
        )
    for gamma in asked:
        voc.gamma_number(gamma)
    return tuple(asked) or valued


def episode_grades(store: EpisodeStore) -> np.ndarray | None:
    """The grade of behaviour of every episode, where the data says it."""
    return store.info("grade") if "grade" in store.info_names else None


def lines(values: Values) -> list[str]:
    """The table of one gamma, for the terminal."""
    head = f"gamma {values.gamma:g}"
    out = [
        f"{head:<36}{'rank correlation':<24}{'correlation':<24}"
        f"{'mean squared error':<26}{'bias':<26}states, "
        "episodes"
    ]
    named = [
        *values.table.items(),
        *((f"sampled futures, {k}", v) for k, v in values.per_grade.items()),
    ]
    out += [f"  {name:<34}{_cells(row)}{row.states}, {row.mse.n}" for name, row in named]
    delays = values.delays
    out.append(
        f"  mean delay {delays.mean:.1f} steps, by the law {delays.mean_law:.1f}; "
        f"{values.nats.mean():.2f} nats per token; {values.effective.mean():.1f} states decide an "
        "estimate from densities"
    )
    return out


def _cells(row: Accuracy) -> str:
    def cell(e: Estimate | None, width: int) -> str:
        if e is None:
            return f"{'-':<{width}}"
        ends = f"{e.low:.3f}, {e.high:.3f}" if e.has_interval else "no interval"
        return f"{f'{e.mean:.3f} [{ends}]':<{width}}"

    return cell(row.rank, 24) + cell(row.linear, 24) + cell(row.mse, 26) + cell(row.bias, 26)
