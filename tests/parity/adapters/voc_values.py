"""Cases about values from an occupancy model: by sampled
futures, and by the densities of given ones.
"""

from __future__ import annotations

import torch
from parity.registry import Case, adapter
from torch import Tensor
from torch.nn import functional

from foreact.families.voc.config import VOCConfig
from foreact.families.voc.evals.value_estimates import legacy_density, sampled_value
from foreact.families.voc.model import VOC
from foreact.families.voc.released.gpt2 import to_native


def occupancy_model(case: Case, **config: object) -> VOC:
    """A model whose codebook and, where the case has the three
    layers, reward head are those of the case.
    """
    codebook = case.weights["codebook.weight"]
    names = {"l1": "first", "l2": "second", "l3": "last"}
    head = {
        f"{names[layer]}.{kind}": tensor
        for name, tensor in case.weights.items()
        if (parts := name.removeprefix("reward_predictor.").split("."))[0] in names
        for layer, kind in [parts]
    }
    hidden = len(head["first.bias"]) if head else 1
    shape = {
        "vocab": codebook.shape[0],
        "code_dim": codebook.shape[1],
        "gammas": (case.config["discount"],),
    }
    voc = VOC(
        VOCConfig(
            **{"width": 8, "heads": 1, "layers": 1, "reward_hidden": hidden, **shape, **config}
        )
    ).eval()
    voc.set_codebook(codebook)
    if head:
        voc.reward.load_state_dict(head)
    return voc


def check_sampled(case: Case, voc: VOC) -> Tensor:
    """Values of the given samples; returns these, (B, S, T, h, w)."""
    config = voc.config
    samples = case.io["in.samples"].unflatten(-1, (config.frames, *config.grid)).transpose(0, 1)
    values, _ = sampled_value(voc.predicted_reward(samples), config.gammas[0])
    case.check("out.values", values)
    case.check("out.mse", (values - case.io["in.true_values"][:, 0]).square().mean())
    return samples


@adapter("voc", "value_estimate")
@torch.no_grad()
def value_estimate(case: Case) -> None:
    check_sampled(
        case, occupancy_model(case, frames=case.config["frames"], grid=tuple(case.config["grid"]))
    )


@adapter("voc", "dino_value_estimate")
@torch.no_grad()
def dino_value_estimate(case: Case) -> None:
    # The order of features is by token, so that the shape of the grid plays no part.
    grid = (1, case.config["tokens_per_frame"])
    voc = occupancy_model(
        case, frames=case.config["frames"], grid=grid, feature_order="tokens_first"
    )
    samples = check_sampled(case, voc)
    case.check("out.features_of_first_sample", voc.features(samples[:, 0].flatten(1)))


@adapter("voc", "density_value_estimate")
@torch.no_grad()
def density_value_estimate(case: Case) -> None:
    raw, gamma = case.config["gpt2"], case.config["discount"]
    voc = occupancy_model(
        case,
        frames=case.config["frames"],
        grid=tuple(case.config["grid"]),
        width=raw["n_embd"],
        heads=raw["n_head"],
        layers=raw["n_layer"],
        positions=raw["n_positions"],
        dropout=0.0,
        attention_dropout=0.0,
    )
    theirs = {
        name.removeprefix("gpt."): t for name, t in case.weights.items() if name.startswith("gpt.")
    }
    voc.gpt.load_state_dict(to_native(theirs))
    future = (
        case.io["in.future"][1 : case.config["horizon"] + 1].long().transpose(0, 1)
    )  # (B, J, L)
    context = case.io["in.context"][:, None].expand_as(future)
    stack = (voc.config.frames, *voc.config.grid)
    logits = voc.future_logits(
        context.flatten(0, 1).unflatten(-1, stack),
        future.flatten(0, 1).unflatten(-1, stack),
        online=True,
    ).unflatten(0, future.shape[:2])
    linear = (case.weights["reward_predictor.weight"], case.weights["reward_predictor.bias"])
    rewards = functional.linear(voc.features(future), *linear)[..., 0]
    found = legacy_density(logits, future, rewards)
    discounted = (rewards * gamma ** torch.arange(rewards.shape[1])).sum(1)
    per_step = {
        "predicted_reward": rewards,
        "sum_logprob": found.log_probs,
        "output_length": found.lengths,
        "weights_per_step": found.weights,
    }
    for name, values in per_step.items():
        case.check(f"out.{name}", values.T)  # step by step, (J, B)
    case.check("out.values_density", found.value)
    case.check("out.values_discounted_predicted", discounted)
    case.check("out.mse", (found.value - discounted).square().mean())
