"""Video Occupancy Models: targets, the moving average, and training steps on stored codes."""

from __future__ import annotations

from typing import Any

import torch
from parity.registry import Case, adapter
from torch import Tensor, nn

from foreact.families.voc.config import VOCConfig
from foreact.families.voc.model import VOC, RewardHead
from foreact.families.voc.released.gpt2 import to_native, to_reference
from foreact.nn.gpt2 import GPT2
from foreact.train.config import TrainConfig
from foreact.train.ema import EMA, EMAConfig
from foreact.train.optim import build_optimizer, set_lr
from foreact.train.schedules import lr_factor

REWARD_NAMES = {"first": "l1", "second": "l2", "last": "l3"}


def occupancy(raw: dict[str, Any], **options: Any) -> VOC:
    """The model of a case's config."""
    gpt = raw["gpt2"]
    sizes: dict[str, Any] = {
        "width": gpt["n_embd"],
        "heads": gpt["n_head"],
        "layers": gpt["n_layer"],
        "positions": gpt["n_positions"],
        "vocab": gpt["vocab_size"],
        "code_dim": raw["embed_dim"],
        "grid": tuple(raw["grid"]),
        "frames": raw["frames"],
        "gammas": (raw["discount"],),
        "dropout": gpt.get("resid_pdrop", gpt.get("dropout", 0.0)),
        "attention_dropout": gpt.get("attn_pdrop", gpt.get("dropout", 0.0)),
        "reward_hidden": raw.get("reward_hidden", 256),
        "target_decay": raw.get("ema", 0.9),
    }
    return VOC(VOCConfig(**{**sizes, **options}))


def load_gpt(module: GPT2, state: dict[str, Tensor], prefix: str) -> None:
    theirs = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    module.load_state_dict(to_native(theirs), strict=True)


def load_reward(head: nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    """The three layers of the reference, or the stand-in of
    one, which then takes the head's place.
    """
    ours = {v: k for k, v in REWARD_NAMES.items()}
    theirs = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    renamed = {".".join([ours[k.split(".")[0]], k.split(".")[1]]): t for k, t in theirs.items()}
    assert isinstance(head, RewardHead)
    head.load_state_dict(renamed, strict=True)


def draws_instead(model: VOC, samples: Tensor, bootstrapped: Tensor) -> None:
    """Let the target network "draw" the recorded samples of the rows that take one."""
    model.target.sample = lambda *_, **__: samples[bootstrapped.bool()][:, None]


@adapter("voc", "gamma_target")
def gamma_target(case: Case) -> None:
    following, samples = case.io["in.next"], case.io["in.model_sample"]
    bootstrapped = case.io["draw.bernoulli"]
    vocab = int(max(following.max(), samples.max())) + 1
    model = VOC(
        VOCConfig(
            width=4,
            heads=1,
            layers=1,
            vocab=vocab,
            code_dim=1,
            grid=(1, following.shape[1]),
            frames=1,
            gammas=(case.config["discount"],),
        )
    )
    draws_instead(model, samples, bootstrapped)
    stacks = torch.stack([torch.zeros_like(following), following], dim=1)
    gammas = torch.zeros(len(following), dtype=torch.int64)
    case.check(
        "out.target",
        model.targets(stacks, bootstrapped.long(), gammas, None, rng=torch.Generator()),
    )


@adapter("voc", "ema_update")
def ema_update(case: Case) -> None:
    beta = case.config["beta"]

    class Network(nn.Module):
        def __init__(self, side: str) -> None:
            super().__init__()
            for name, tensor in case.io.items():
                if name.startswith(f"in.{side}."):
                    key = name.removeprefix(f"in.{side}.").replace(".", "_")
                    if tensor.is_floating_point() and not key.endswith(
                        ("running_mean", "running_var")
                    ):
                        self.register_parameter(key, nn.Parameter(tensor.clone()))
                    else:
                        self.register_buffer(key, tensor.clone())

    online, target = Network("online"), Network("target")
    pair: Any = _Pair(online, target, beta)
    VOC.after_step(pair)
    average = EMA(Network("target"), EMAConfig(min=beta, max=beta))
    average.step = 2  # past the first updates, which copy
    average.update(online)
    for name in (n for n in case.io if n.startswith("out.target.")):
        key = name.removeprefix("out.target.").replace(".", "_")
        case.check(name, {**dict(target.named_parameters()), **dict(target.named_buffers())}[key])
        if key in average.shadow:
            case.check(name, average.shadow[key])


class _Pair:
    """What `VOC.after_step` needs."""

    def __init__(self, gpt: nn.Module, target: nn.Module, decay: float) -> None:
        self.gpt, self.target = gpt, target
        self.config = VOCConfig(target_decay=decay)


@adapter("voc", "voc_latent_update")
def voc_latent_update(case: Case) -> None:
    raw = case.config
    model = occupancy(raw)
    load_gpt(model.gpt, case.weights, "gpt.")
    load_gpt(model.target, case.weights, "gpt_target.")
    load_reward(model.reward, case.weights, "reward_predictor.")
    model.set_codebook(case.weights["codebook.weight"])
    model.train()
    decay, schedule = raw["weight_decay"], raw["schedule"]
    assert decay["gpt_no_decay"] == 0.0
    optimizer = build_optimizer(
        model, lr=raw["lr"], weight_decay=decay["gpt_decay"], betas=tuple(raw["betas"])
    )
    calls = sum(name.startswith("in.context") for name in case.io)
    config = TrainConfig(
        accumulate=2,
        accumulation="sum_first_alone",
        steps=schedule["num_training_steps"],
        warmup=schedule["warmup"],
    )
    rates, done = [], 0
    for step in range((calls + 1) // 2):
        rate = set_lr(optimizer, factor(step, config))
        optimizer.zero_grad()
        for call in config.micro_batches(step):
            assert call == done
            one_call(case, model, call).backward()
            done += 1
            rates.append(rate)
        optimizer.step()
        model.after_step()
        rates[-1] = raw["lr"] * factor(step + 1, config)
    assert done == calls
    case.check("out.lr_after_each_update", torch.tensor(rates, dtype=torch.float64))
    for label, net in (("gpt_final", model.gpt), ("gpt_target_final", model.target)):
        for name, tensor in to_reference(net.state_dict()).items():
            if f"out.{label}.{name}" in case.io:
                case.check(f"out.{label}.{name}", tensor)
    for ours, theirs in REWARD_NAMES.items():
        for part in ("weight", "bias"):
            if (name := f"out.reward_predictor_final.{theirs}.{part}") in case.io:
                case.check(name, model.reward.state_dict()[f"{ours}.{part}"])


def factor(step: int, config: TrainConfig) -> float:
    return lr_factor("cosine", step, warmup=config.warmup, steps=config.steps)


def one_call(case: Case, model: VOC, call: int) -> Tensor:
    io = case.io
    bootstrapped = io[f"draw.bernoulli{call}"]
    draws_instead(model, io[f"draw.model_sample{call}"], bootstrapped)
    stacks = torch.stack([io[f"in.context{call}"], io[f"in.next{call}"]], dim=1)
    gammas = torch.zeros(len(stacks), dtype=torch.int64)
    future = model.targets(stacks, bootstrapped.long(), gammas, None, rng=torch.Generator())
    case.check(f"out.gpt_input_target{call}", future)
    out = model.loss(stacks, future, io[f"in.reward{call}"], gammas=gammas, actions=None)
    case.check(f"out.gpt_loss{call}", out.logs["nats_per_code"])
    case.check(f"out.reward_loss{call}", out.logs["reward_mse"])
    return out.loss
