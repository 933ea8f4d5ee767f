"""VaViM and VaVAM: forward, loss, generation, velocity, sampling, training steps and muP."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from parity.registry import Case, adapter
from safetensors.torch import load_file
from torch import Tensor, nn

from foreact.families.driving.released.names import expert_names, vavim_names
from foreact.families.driving.vavam import (
    SIZES,
    ExpertConfig,
    VaVAM,
    VaVAMConfig,
    frame_mask,
    sample_mask,
)
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.nn.flow import FlowMatching, stratified
from foreact.nn.gpt import CausalBlock
from foreact.nn.mup import HiddenLinear, param_groups
from foreact.train.optim import build_optimizer, clip_gradients, set_lr
from foreact.train.schedules import lr_factor
from foreact.types import Batch


def video_config(raw: dict[str, Any], base_width: int, grid: Any = None) -> VaViMConfig:
    tokens = raw["nb_tokens_per_timestep"]
    return VaViMConfig(
        width=raw["embedding_dim"],
        heads=raw["embedding_dim"] // raw["dim_heads"],
        layers=raw["nb_layers"],
        mlp_ratio=raw.get("mlp_dim_mult", 4),
        vocab=raw["vocabulary_size"],
        frames=raw["nb_timesteps"],
        grid=tuple(grid) if grid is not None else (1, tokens),
        base_width=base_width,
        init_std=raw.get("init_std", 0.02),
        tied=raw.get("output_tied", True),
        output_scale=raw.get("output_scale", 1.0),
        attention_scale=raw.get("attn_scale", 1.0),
    )


def grid_of(case: Case) -> Any:
    """Rows and columns of tokens, as the case says or as its tokens have them."""
    tokens = next((t for k, t in case.io.items() if k.split(".")[-1] == "visual_tokens"), None)
    return case.config.get("grid_hw") or (None if tokens is None else tokens.shape[-2:])


def load(module: nn.Module, names: dict[str, str], state: dict[str, Tensor], prefix: str) -> None:
    module.load_state_dict(
        {ours: state[prefix + theirs] for ours, theirs in names.items()}, strict=True
    )


def weights(case: Case, default: str) -> dict[str, Tensor]:
    named = re.search(r"(\.\./\S+\.safetensors)", str(case.config.get("weights", "")))
    return load_file(
        case.folder / (named.group(1) if named else f"../{default}/weights.safetensors")
    )


def vavim(case: Case) -> VaViM:
    raw = case.config
    model = VaViM(video_config(raw["network"], raw["mup_base_width"], grid_of(case)))
    load(
        model,
        vavim_names(model.config.layers, tied=model.config.tied),
        weights(case, "weights_gpt"),
        "network.",
    )
    return model.eval()


def vavam_config(raw: dict[str, Any], grid: Any = None) -> VaVAMConfig:
    conf, base = raw["vam_conf"], raw["mup_base_widths"]
    action = conf["action_config"]
    # The reference applies the expert's factor on the scores to the video too, inside the joint
    # model.
    gpt = {**conf["gpt_config"], "attn_scale": action.get("attn_scale", 1.0)}
    return VaVAMConfig(
        vavim=video_config(gpt, base["gpt"], grid),
        expert=ExpertConfig(
            width=action["embedding_dim"],
            mlp_ratio=action.get("mlp_dim_mult", 4),
            horizon=action["action_horizon"],
            action_dim=action["action_dim"],
            commands=action["number_high_level_command"],
            max_period=action.get("max_period", 1e4),
            base_width=base["action_embedding"],
            base_attention=base["action_attention"],
            init_std=action.get("init_std", 0.02),
            output_scale=action.get("output_scale", 1.0),
            attention_scale=action.get("attn_scale", 1.0),
        ),
        action_scale=conf["action_scaling"],
        sigma=conf["flow_sig_min"],
        context=None
        if conf["finetuning_timesteps"] == gpt["nb_timesteps"]
        else conf["finetuning_timesteps"],
        steps=conf["num_inference_steps"],
    )


def vavam(case: Case, raw: dict[str, Any] | None = None) -> VaVAM:
    model = VaVAM(vavam_config(raw or case.config, grid_of(case)))
    layers, state = model.config.vavim.layers, weights(case, "weights_vam")
    load(model.vavim, vavim_names(layers, tied=model.config.vavim.tied), state, "vam.gpt.")
    load(model.expert, expert_names(layers), state, "vam.action_expert.")
    return model.eval()


# --- VaViM ----------------------------------------------------------------------------------------


@adapter("vavam", "gpt_forward")
@torch.no_grad()
def gpt_forward(case: Case) -> None:
    model, io = vavim(case), case.io
    case.check("logits", model.logits(io["visual_tokens"]))
    case.check("logits_last", model.logits(io["visual_tokens"])[:, -1:])
    case.check("short_logits", model.logits(io["short_visual_tokens"]))


@adapter("vavam", "gpt_features")
@torch.no_grad()
def gpt_features(case: Case) -> None:
    model = vavim(case)
    for name in case.io:
        if name.startswith("features_layer"):
            layer = int(name.removeprefix("features_layer"))
            case.check(name, model.features(case.io["visual_tokens"], layer))


@adapter("vavam", "gpt_loss")
@torch.no_grad()
def gpt_loss(case: Case) -> None:
    model, tokens = vavim(case), case.io["visual_tokens"]
    case.check("per_token_loss", model.token_losses(tokens))
    loss = model(Batch(tokens={"front": tokens}), rng=torch.Generator()).loss
    case.check("loss", loss)
    case.check("perplexity", loss.exp())


@adapter("vavam", "gpt_generate")
@torch.no_grad()
def gpt_generate(case: Case) -> None:
    model, io = vavim(case), case.io
    generated = model.generate(io["burnin"], frames=case.meta["number_of_future_frames"])
    case.check("generated", generated)
    tokens = torch.cat([io["burnin"], generated], dim=1)
    first = io["burnin"][0].numel() - 1
    step_logits = model.logits(tokens)[:, first:-1]
    torch.testing.assert_close(
        step_logits, io["step_logits"], atol=case.meta["tolerance"]["step_logits"]["atol"], rtol=0
    )
    sampled = re.search(
        r"manual_seed\((\d+)\), temperature ([\d.]+), topk (\d+)", case.meta["shows"]
    )
    if sampled and "sampled_frame" in io:
        seed, temperature, top_k = int(sampled[1]), float(sampled[2]), int(sampled[3])
        rng = torch.Generator().manual_seed(seed)
        frame = model.generate(
            io["burnin"], frames=1, temperature=temperature, top_k=top_k, rng=rng
        )
        case.check("sampled_frame", frame)


@adapter("vavam", "gpt_sliding")
@torch.no_grad()
def gpt_sliding(case: Case) -> None:
    model, io = vavim(case), case.io
    for prefix in ("", "long_"):
        expected = io[f"{prefix}expected"]
        case.check(
            f"{prefix}expected", model.generate(io[f"{prefix}burnin"], frames=expected.shape[1])
        )


# --- VaVAM ----------------------------------------------------------------------------------------


def full_mask(actions: Tensor, seen: int) -> Tensor:
    """The reference's mask over video and actions from our rows of the actions."""
    n = actions.shape[1]
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask[:seen, :seen] = torch.ones(seen, seen).tril().bool()
    mask[seen:] = actions
    return mask


@adapter("vavam", "vam_velocity")
@torch.no_grad()
def vam_velocity(case: Case) -> None:
    model, io = vavam(case), case.io
    config, per_frame = model.config, model.config.vavim.tokens_per_frame
    tokens, horizon = io["visual_tokens"], config.expert.horizon
    case.check(
        "attn_mask",
        full_mask(frame_mask(tokens.shape[1], per_frame, horizon), tokens.shape[1] * per_frame),
    )
    encoded = model.expert.encoder(io["noisy_actions"], io["high_level_command"], io["t"])
    case.check("action_encoder_out", encoded)
    case.check(
        "velocity", model.velocity(tokens, io["high_level_command"], io["noisy_actions"], io["t"])
    )
    case.check("visual_logits", model.vavim.logits(tokens))

    seen = io["inf_visual_tokens"].shape[1] * per_frame
    mask = sample_mask(1, seen, horizon)
    case.check("inf_attn_mask", full_mask(mask, seen))
    video = model.vavim.watch(io["inf_visual_tokens"])
    for inputs, expected in (("", "inf_velocity"), ("_2", "inf_velocity_2_cached")):
        noisy, t = io[f"inf_noisy_actions{inputs}"], io[f"inf_t{inputs}"]
        case.check(expected, model.expert(noisy, io["inf_high_level_command"], t, video, mask))


@adapter("vavam", "vam_loss")
@torch.no_grad()
def vam_loss(case: Case) -> None:
    model, io = vavam(case), case.io
    x1, t = (
        io["actions"] / model.config.action_scale,
        io["t"][..., None].expand(io["actions"].shape[:-1]),
    )
    case.check("psi_t", model.flow.interpolate(x1, t, io["x0"]))
    case.check("target_velocity", model.flow.velocity(x1, io["x0"]))
    loss = model.loss(
        io["visual_tokens"], io["high_level_command"], io["actions"], io["t"], io["x0"]
    )
    case.check("loss", loss)


@adapter("vavam", "vam_euler")
def vam_euler(case: Case) -> None:
    model, io = vavam(case), case.io
    for run, options in case.meta["runs"].items():
        path: list[Tensor] = []
        clip = options["final_action_clip_value"]
        trajectory = model.act(
            io[f"{run}.visual_tokens"],
            io[f"{run}.high_level_command"][:, 0],
            steps=options["num_inference_steps"],
            clip=math.inf
            if clip is None
            else clip * model.config.action_scale,  # ours is in metres
            noise=io[f"{run}.noise"],
            path=path,
        )
        case.check(f"{run}.trajectory", trajectory)
        case.check(f"{run}.intermediate", torch.stack(path))


@adapter("vavam", "vam_timesteps")
def vam_timesteps(case: Case) -> None:
    io = case.io
    flow = FlowMatching("beta", sigma=case.config["vam_conf"]["flow_sig_min"], time_scale=1.0)
    case.check("t_beta", flow.time_of_beta(io["z"]).view(io["t_beta"].shape))
    case.check("t_uniform", stratified(io["u"][0], tuple(io["t_uniform"].shape)))


# --- training -------------------------------------------------------------------------------------


def train_steps(case: Case, model: nn.Module, losses: Any) -> torch.optim.Optimizer:
    """The reference's optimiser steps: clipped at norm 1, the schedule's first rate is zero."""
    raw, schedule = case.config["optimizer_conf"], case.config["scheduler"]
    optimizer = build_optimizer(
        model, lr=raw["lr"], weight_decay=raw["weight_decay"], betas=tuple(raw["betas"])
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    seen_losses, norms, rates = [], [], []
    for step in range(len(case.io["loss_per_step"])):
        factor = lr_factor(
            "wsd",
            step,
            warmup=schedule["warmup_iter"],
            steps=schedule["end_iter"],
            drop=schedule["drop_iter"],
        )
        set_lr(optimizer, factor)
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.zero_grad()
        loss = losses(step)
        loss.backward()
        norms.append(clip_gradients(parameters, case.config.get("grad_clip", 1.0)))
        optimizer.step()
        seen_losses.append(loss.detach())
    case.check("loss_per_step", torch.stack(seen_losses))
    case.check("grad_norm_per_step", torch.stack(norms))
    if "lr_per_step_group" in case.io:
        case.check("lr_per_step_group", np.array(rates))
    return optimizer


@adapter("vavam", "mup_train")
def mup_train(case: Case) -> None:
    model = vavim(case).train()
    names = vavim_names(model.config.layers, tied=model.config.tied)
    start = {k.removeprefix("start."): v for k, v in case.io.items() if k.startswith("start.")}
    if start:
        load(model, names, start, "network.")
    tokens = case.io["visual_tokens"]
    train_steps(
        case,
        model,
        lambda step: model(Batch(tokens={"front": tokens[step]}), rng=torch.Generator()).loss,
    )
    state = model.state_dict()
    for ours, theirs in names.items():
        case.check(f"final.network.{theirs}", state[ours])


@adapter("vavam", "vam_train")
def vam_train(case: Case) -> None:
    model, io = vavam(case).train(), case.io

    def loss(step: int) -> Tensor:
        parts = (io[k][step] for k in ("visual_tokens", "high_level_command", "actions", "t", "x0"))
        return model.loss(*parts)

    train_steps(case, model, loss)
    state = model.expert.state_dict()
    for ours, theirs in expert_names(model.config.vavim.layers).items():
        case.check(f"final.vam.action_expert.{theirs}", state[ours])


@adapter("vavam", "mup_real_sizes")
def mup_real_sizes(case: Case) -> None:
    for size, expected in case.meta["sizes"].items():
        with torch.device("meta"):
            model = VaVAM(SIZES[size])
        layers = model.config.vavim.layers
        parts = {
            "gpt": (model.vavim, vavim_names(layers, tied=True)),
            "action_expert": (model.expert, expert_names(layers)),
        }
        for part, (module, names) in parts.items():
            wanted = expected[part]
            assert sum(p.numel() for p in module.parameters()) == wanted["n_parameters"]
            assert (
                len(module.state_dict()) + (part == "gpt") == wanted["state_dict_keys"]
            )  # theirs names the head too
            check_multipliers(
                module, names, wanted["parameters_first_layer_only_other_layers_identical"]
            )
        groups = model.requires_grad_(True).param_groups(1.0, 1e-7)
        assert len(groups) == expected["gpt"]["n_groups"] == expected["action_expert"]["n_groups"]
        block = model.vavim.blocks[0]
        assert isinstance(block, CausalBlock)
        assert block.attention.scale == expected["gpt"]["attention_softmax_scale"]
    check_init(case)


def check_multipliers(module: nn.Module, names: dict[str, str], wanted: dict[str, Any]) -> None:
    parameters, modules = dict(module.named_parameters()), dict(module.named_modules())
    rate = {
        id(p): (g["lr"], g["weight_decay"])
        for g in param_groups(module, 1.0, 1e-7)
        for p in g["params"]
    }
    ours = {theirs: name for name, theirs in names.items()}
    for theirs, facts in wanted.items():
        parameter = parameters[ours[theirs]]
        owner = modules[ours[theirs].removesuffix(".weight")]
        assert list(parameter.shape) == facts["shape"], theirs
        lr, weight_decay = rate[id(parameter)]
        assert abs(lr - facts["lr_multiplier"]) < 1e-12, theirs
        assert weight_decay == facts["weight_decay"], theirs
        assert isinstance(owner, HiddenLinear) == (facts["n_inf_dims"] == 2), theirs
        if isinstance(owner, HiddenLinear):
            assert owner.multiplier == facts["width_mult"], theirs


def check_init(case: Case) -> None:
    """Deviations of freshly made weights of width multiplier 4 equal
    the measured ones, up to sampling error.
    """
    made, tolerance = case.meta["init_std_config"], case.meta["tolerance"]["init_std_rtol"]
    torch.manual_seed(0)
    layers, std = made["nb_layers"], made["init_std"]
    model = VaVAM(
        VaVAMConfig(
            vavim=VaViMConfig(width=1024, heads=8, layers=layers, init_std=std),
            expert=ExpertConfig(width=256, init_std=std),
        )
    )
    parts = {
        "gpt": (model.vavim, vavim_names(layers, tied=True)),
        "action_expert": (model.expert, expert_names(layers)),
    }
    for part, entries in case.meta["init_std_measured"].items():
        module, names = parts[part]
        state, ours = module.state_dict(), {theirs: name for name, theirs in names.items()}
        for theirs, facts in entries.items():
            weight = state[ours[theirs]]
            third = weight.shape[0] // 3
            for label, values in (
                ("std", weight),
                ("std_query_third", weight[:third]),
                ("std_key_value", weight[third:]),
            ):
                if facts[label] is not None:
                    allowed = facts[label] * (tolerance + 3.0 / values.numel() ** 0.5)
                    got = values.std(correction=0).item()
                    assert abs(got - facts[label]) <= allowed, (theirs, label, got)
