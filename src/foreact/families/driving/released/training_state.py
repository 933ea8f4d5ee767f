"""A VaViM or VaVAM checkpoint's training state: AdamW's moments, counters, schedule, data order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foreact.checkpoints.format import difference
from foreact.errors import UserError
from foreact.families.driving.released.names import expert_names, vavim_names
from foreact.families.driving.released.read import (
    VaVAMReference,
    module_names,
    read_vavam_checkpoint,
)
from foreact.families.driving.vavam import VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViM
from foreact.nn.mup import param_groups
from foreact.released.content import read_content
from foreact.released.zero import is_zero_directory, read_zero_moments


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What it takes to train a released checkpoint further as if it had never stopped.

    Attributes:
        reference: model config and weights.
        first, second: our parameter name -> AdamW's running mean of the gradient and of its square,
            float32. Only the parameters that were trained are there: of a VaVAM with a frozen video
            model, those of the expert.
        step: optimiser steps that went into them.
        global_step: optimiser steps of the run, where its learning-rate schedule stood.
        epoch: passes over the data begun before.
        groups: per group of the optimiser its parameters' names and its settings (lr, weight_decay,
            betas, eps).
        schedule: state of the learning-rate schedule as the file has it, or None.
        loader_seeds: seeds of the shuffles of the data, one per process; see `first_epoch`. Empty
            where the file holds none, as with distributed samplers, whose order follows from the
            seed of the run.
    """

    reference: VaVAMReference
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    step: int
    global_step: int
    epoch: int
    groups: list[tuple[list[str], dict[str, Any]]]
    schedule: dict[str, Any] | None
    loader_seeds: tuple[int, ...]

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """AdamW's state by parameter name: step, exp_avg and exp_avg_sq, as torch calls them."""
        step = torch.tensor(float(self.step))
        return {
            name: {
                "step": step.clone(),
                "exp_avg": self.first[name],
                "exp_avg_sq": self.second[name],
            }
            for name in self.first
        }


def read_training_state(
    path: Path, *, grid: tuple[int, int] | None = None, camera: str = "front", payload: Any = None
) -> TrainingState:
    """Read weights and training state of a Lightning .ckpt or a DeepSpeed directory.

    Args:
        path, grid, camera, payload: as in `read_vavam_checkpoint`.

    Raises:
        UserError: as in `read_vavam_checkpoint`; or the file has no training state, as fused and
            weights-only files, or one of another optimiser or other groups than muP's.
    """
    path = Path(path)
    payload = read_content(path) if payload is None else payload
    reference = read_vavam_checkpoint(path, grid=grid, camera=camera, payload=payload)
    moments = (
        _from_zero(path, reference)
        if is_zero_directory(path)
        else _from_lightning(path, payload, reference)
    )
    schedulers = payload.get("lr_schedulers")
    return TrainingState(
        reference=reference,
        **moments,
        global_step=int(payload.get("global_step", 0)),
        epoch=int(payload.get("epoch", 0)),
        schedule=dict(schedulers[0]) if isinstance(schedulers, list) and schedulers else None,
        loader_seeds=_loader_seeds(payload),
    )


def first_epoch(seed: int, windows: int) -> Tensor:
    """The order of the first epoch of a single process's loader: int64 (windows,)."""
    return torch.randperm(windows, generator=torch.Generator().manual_seed(seed))


def _from_lightning(
    path: Path, payload: Mapping[str, Any], reference: VaVAMReference
) -> dict[str, Any]:
    states = payload.get("optimizer_states")
    if not isinstance(states, list) or not states or not isinstance(states[0], Mapping):
        raise UserError(
            f"{path} holds weights but no state of an optimiser; start from its weights, or take "
            "a file that a training saved to go on from."
        )
    try:
        groups, state = states[0]["param_groups"], states[0]["state"]
        counts = [len(group["params"]) for group in groups]
        shapes, grouped_names = _trained(reference, sum(counts), path)
        mup_counts = [len(names) for names in grouped_names]
        if counts != mup_counts:
            raise UserError(
                f"{path} groups its parameters {counts}, muP groups them {mup_counts}; its "
                "training state is of another optimiser."
            )
        # The k-th parameter of a group in the file is the k-th of that group here.
        index = {
            name: i
            for group, names in zip(groups, grouped_names, strict=True)
            for i, name in zip(group["params"], names, strict=True)
        }
        first = {name: state[i]["exp_avg"] for name, i in index.items()}
        second = {name: state[i]["exp_avg_sq"] for name, i in index.items()}
        steps = {int(state[i]["step"]) for i in index.values()}
        settings = [{k: g[k] for k in ("lr", "weight_decay", "betas", "eps")} for g in groups]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} holds no whole state of AdamW ({type(error).__name__}: {error})."
        ) from None
    for moment in (first, second):
        if problem := difference(shapes, {k: tuple(v.shape) for k, v in moment.items()}):
            raise UserError(
                f"{path} holds moments that are not those of its parameters: {problem}."
            )
    if len(steps) != 1:
        raise UserError(f"{path} holds moments of different numbers of steps {sorted(steps)}.")
    return {
        "first": first,
        "second": second,
        "step": steps.pop(),
        "groups": list(zip(grouped_names, settings, strict=True)),
    }


def _from_zero(path: Path, reference: VaVAMReference) -> dict[str, Any]:
    moments = read_zero_moments(path)
    layers, tied = reference.video.layers, reference.video.tied
    video = vavim_names(layers, tied=tied)
    if reference.family == "vavim":
        names = {theirs: ours for ours, theirs in video.items()}
    else:
        expert = expert_names(layers)
        names = {f"gpt.{theirs}": f"vavim.{ours}" for ours, theirs in video.items()}
        names |= {f"action_expert.{theirs}": f"expert.{ours}" for ours, theirs in expert.items()}
    plain = module_names(moments.first)

    def renamed(moment: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := [k for k in moment if plain.get(k) not in names]:
            raise UserError(
                f"{path} holds moments of no known parameter: {', '.join(unknown[:5])}."
            )
        return {names[plain[k]]: v for k, v in moment.items()}

    return {
        "first": renamed(moments.first),
        "second": renamed(moments.second),
        "step": moments.step,
        "groups": [
            (list(renamed(dict.fromkeys(group))), settings)
            for group, settings in zip(moments.groups, moments.settings, strict=True)
        ],
    }


def _trained(
    reference: VaVAMReference, count: int, path: Path
) -> tuple[dict[str, tuple[int, ...]], list[list[str]]]:
    """Shapes, and names by optimiser group, of the parameters of a training that had `count`."""
    config = reference.config
    with torch.device("meta"):
        module: nn.Module = VaVAM(config) if isinstance(config, VaVAMConfig) else VaViM(config)
    for prefix, part in {"": module, "expert.": getattr(module, "expert", module)}.items():
        named = {f"{prefix}{name}": p for name, p in part.named_parameters()}
        if len(named) == count:
            names = {id(p): name for name, p in named.items()}
            groups = param_groups(part, 1.0, 0.0)
            grouped_names = [[names[id(p)] for p in group["params"]] for group in groups]
            return {name: tuple(p.shape) for name, p in named.items()}, grouped_names
    raise UserError(
        f"{path} trained {count} parameters, which is neither all of the model nor "
        "its expert alone."
    )


def _loader_seeds(payload: Mapping[str, Any]) -> tuple[int, ...]:
    """Seeds in the states of the shuffling samplers: of one loader, or of one per process."""
    value: Any = payload
    for key in ("loops", "fit_loop", "state_dict", "combined_loader"):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    seeds: list[int] = []
    for loader in value if isinstance(value, list) else ():
        state: Any = loader
        for key in ("_sampler_iter_state", "sampler_iter_state", "generator"):
            state = state.get(key) if isinstance(state, Mapping) else None
        if isinstance(state, Tensor) and state.dtype == torch.uint8:
            generator = torch.Generator()
            try:
                generator.set_state(state.clone())
            except RuntimeError:  # of another kind of generator
                continue
            seeds.append(generator.initial_seed())
    return tuple(seeds)
