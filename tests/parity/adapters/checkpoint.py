"""A checkpoint in UVA's own file format: read, converted, one training step and one prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from parity.adapters.uva_model import MODES, Recorded, draws_of
from parity.registry import Case, adapter
from torch import Tensor

from foreact.families.uva.model import UVA, Question, Sampling
from foreact.families.uva.released.names import reference_names
from foreact.families.uva.released.read import UVAReference, read_uva_checkpoint
from foreact.families.uva.timing import (
    action_offsets,
    context_offsets,
    frame_stride,
    future_offsets,
)
from foreact.released.pickles import read_torch_file
from foreact.tokenizers.images import resize_video
from foreact.tokenizers.kl_vae import KLVAE, Posterior
from foreact.types import Batch, to_model_range


@adapter("uva", "checkpoint_pusht")
def checkpoint_pusht(case: Case) -> None:
    file, size = case.folder / case.meta["file"], case.meta["registered_size"]
    heads = size["columns"].index("num_heads")
    payload = read_torch_file(file)
    assert sorted(payload) == sorted(case.meta["top_level_keys"])
    assert sorted(payload["state_dicts"]["ema_model"]) == sorted(case.meta["ema_model_keys"])
    assert payload["cfg"] == case.meta["cfg_resolved"]

    def read(ema: bool) -> UVAReference:
        return read_uva_checkpoint(
            file, ema=ema, heads=(size["encoder"][heads], size["decoder"][heads])
        )

    account(case, read(ema=True), file)
    if "model" in case.meta["state_dict_names"]:
        training_step(case, read(ema=False), payload["state_dicts"])
    prediction(case, read(ema=True))


def account(case: Case, reference: UVAReference, file: Path) -> None:
    """Every tensor of the file is used, or named in the report."""
    used = len(reference.uva_state) + len(reference.vae_state)
    assert reference.normalizer is not None
    used += 6 * len(reference.normalizer.streams)
    left_out = [line for line in reference.report.splitlines() if "left out:" in line]
    assert used + len(left_out) == len(case.meta["ema_model_keys"])
    for name in ("global_step", "epoch"):
        assert f"{name}: {case.meta['pickled_values'][name]}" in reference.report


def modules(reference: UVAReference) -> tuple[UVA, KLVAE]:
    model, vae = UVA(reference.uva), KLVAE(reference.vae)
    model.load_state_dict(reference.uva_state)
    vae.load_state_dict(reference.vae_state)
    return model, vae.eval()


@torch.no_grad()
def encode(vae: KLVAE, images: Tensor, noise: Tensor) -> Tensor:
    """uint8 (B, T, 3, H, W) -> latents (B, T, c, h, w) with the recorded draw of the posterior."""
    video = resize_video(to_model_range(images), vae.config.image_size)
    values = Posterior.from_moments(vae.moments(video.flatten(0, 1))).sample(noise)
    return values.unflatten(0, images.shape[:2]) * vae.config.scale


def training_step(case: Case, reference: UVAReference, states: dict[str, Any]) -> None:
    model, vae = modules(reference)
    config, io, normalizer = reference.uva, case.io, reference.normalizer
    assert normalizer is not None
    stride, now = frame_stride(config.horizon, config.frames), config.horizon - 1
    past = torch.tensor(context_offsets(config.frames, stride)) + now
    future = torch.tensor(future_offsets(config.frames, stride)) + now
    actions = (
        torch.tensor(action_offsets(config.horizon, first_now=reference.facts.first_action_now))
        + now
    )

    images = io["in/train/obs/image"]
    draws = recorded_tensors(case, "train")
    (_, future_noise), (_, past_noise), *rest = draws
    latents = [
        encode(vae, images[:, past], past_noise),
        encode(vae, images[:, future], future_noise),
    ]
    batch = Batch(
        latents={config.camera: torch.cat(latents, dim=1)},
        actions=normalizer.encode(io["in/train/action"], "action")[:, actions],
    )
    (mode,) = [d["value"] for d in case.meta["draws"]["train"] if d["kind"] == "py_choice"]
    options = {"action_mask_ratio": config.past_action_keep, "label_drop_prob": config.text_drop}
    result = model.train().loss(batch, draws_of(model, MODES[mode], rest, len(batch), options))
    case.check("train/out/loss", result.loss)
    case.check("train/out/video_loss", result.logs["video_loss"])
    case.check("train/out/act_loss", result.logs["action_loss"])
    result.loss.backward()
    gradient = model.transformer.join.weight.grad
    assert gradient is not None
    case.check("train/out/grad/proj_cond_x_layer.weight", gradient)

    saved, schedule = states["optimizer"], states.get("lr_scheduler")
    settings = saved["param_groups"][0]
    lr = settings["lr"]
    if (
        schedule and schedule["last_epoch"]
    ):  # it has moved on since: the step was taken one warmup step earlier
        lr *= (schedule["last_epoch"] - 1) / schedule["last_epoch"]
    groups = model.param_groups(
        lr, case.meta["cfg_resolved"]["model"]["policy"]["optimizer"]["weight_decay"]
    )
    assert sorted((g["weight_decay"], len(g["params"])) for g in groups) == sorted(
        (g["weight_decay"], g["n_tensors"]) for g in case.meta["optimizer_groups"]
    )
    optimizer = torch.optim.AdamW(groups, betas=settings["betas"], eps=settings["eps"])
    optimizer.step()
    case.check("train/out/after_step/proj_cond_x_layer.weight", model.transformer.join.weight)
    case.check("train/out/after_step/proj_cond_x_layer.bias", model.transformer.join.bias)

    # Every parameter's decay, and its gradient by way of the moments that the file keeps.
    theirs = [k.removeprefix("model.") for k in states["model"] if k.startswith("model.")]
    decayed = case.meta["decay_parameters"]
    order = [k for k in theirs if k not in decayed] + [k for k in theirs if k in decayed]
    ours = {there: here for here, there in reference_names(config).items()}
    parameters = dict(model.named_parameters())
    decays = {id(p): g["weight_decay"] > 0 for g in groups for p in g["params"]}
    assert len(order) == len(parameters) == len(saved["state"])
    for i, name in enumerate(order):
        parameter = parameters[ours[name]]
        assert decays[id(parameter)] == (name in decayed), name
        for moment in ("exp_avg", "exp_avg_sq"):
            # The reference hands zero gradients to parameters that the mode leaves out (D15), we
            # hand none.
            got = optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
            case.check_value(got, saved["state"][i][moment], f"{name}: {moment}")


def prediction(case: Case, reference: UVAReference) -> None:
    # The reference samples actions from 1000 training steps, whatever it trained on (D9).
    reference = replace(reference, uva=replace(reference.uva, action_diffusion_steps=1000))
    model, vae = modules(reference)
    config, facts, images = reference.uva, reference.facts, case.io["in/obs/image"]
    stride = frame_stride(config.horizon, config.frames)
    past = torch.tensor(context_offsets(config.frames, stride)) + images.shape[1] - 1
    (_, noise), *rest = recorded_tensors(case, "predict")
    context = encode(vae, images[:, past], noise)
    source = Recorded(rest, len(images))
    question, sampling = (
        Question(mode="policy", context=context),
        Sampling(temperature=facts.temperature),
    )
    got = model.eval().sample(question, sampling, rng=source)
    source.require_spent()
    assert got.actions is not None
    assert reference.normalizer is not None
    actions = reference.normalizer.decode(got.actions, "action")
    case.check("predict/out/action_pred", actions)
    case.check("predict/out/action", actions[:, : facts.execute])


def recorded_tensors(case: Case, section: str) -> list[tuple[str, Tensor]]:
    return [(d["key"], case.io[d["key"]]) for d in case.meta["draws"][section] if "key" in d]
