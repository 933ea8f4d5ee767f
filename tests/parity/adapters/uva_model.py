"""UVA's transformer, heads, losses and sampler against the
reference's recorded numbers and draws.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from parity.registry import Case, adapter
from torch import Tensor

from foreact.families.uva import config as uva
from foreact.families.uva.draws import Draws, HeadDraw, mask_ratio, masked_places
from foreact.families.uva.heads import READOUTS, ActionHead, Denoiser, VideoHead
from foreact.families.uva.model import UVA, Question, Sampling, UVAConfig
from foreact.families.uva.released.names import to_native, to_reference
from foreact.families.uva.sampling import draw_sample
from foreact.families.uva.timing import (
    action_offsets,
    context_offsets,
    context_steps,
    frame_stride,
    future_offsets,
    past_action_offsets,
)
from foreact.families.uva.tokens import first_places, patchify, take, token_mask
from foreact.nn.diffusion import GaussianDiffusion
from foreact.nn.layers import sinusoid
from foreact.types import Batch

MODES = {
    "video_model": "video",
    "dynamic_model": "dynamics",
    "policy_model": "policy",
    "inverse_model": "inverse",
    "full_dynamic_model": "joint",
}
# The order in which the reference joins the robot's state, and which of it is predicted.
STATES = {
    "umi": (
        "robot0_eef_pos",
        "robot0_eef_rot_axis_angle",
        "robot0_gripper_width",
        "robot0_eef_rot_axis_angle_wrt_start",
    ),
    "toolhang": ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
}
PREDICTED = {"umi": ("robot0_eef_rot_axis_angle_wrt_start",), "toolhang": STATES["toolhang"]}


# --- diffusion and heads --------------------------------------------------------------------------


@adapter("uva", "diffusion_schedule")
def diffusion_schedule(case: Case) -> None:
    for label, row in case.config.items():
        diffusion = GaussianDiffusion(row["diffusion_steps"], row["timestep_respacing"])
        assert len(diffusion) == row["num_timesteps"]
        for name in (k.split("/")[1] for k in case.io if k.startswith(f"{label}/")):
            case.check(f"{label}/{name}", getattr(diffusion, name))


def denoiser_of(weights: dict[str, Tensor]) -> Denoiser:
    """The denoiser whose reference weights, without a prefix, are
    given; through the one table of names.
    """
    width, channels = weights["input_proj.weight"].shape
    depth = len({k.split(".")[1] for k in weights if k.startswith("res_blocks.")})
    outputs, condition = (
        weights["final_layer.linear.weight"].shape[0],
        weights["cond_embed.weight"].shape[1],
    )
    net = Denoiser(channels, outputs, condition, width=width, depth=depth)
    rules = [
        (r"^res_blocks\.(\d+)\.in_ln", r"blocks.\1.norm"),
        (r"^res_blocks\.(\d+)\.mlp\.0", r"blocks.\1.up"),
        (r"^res_blocks\.(\d+)\.mlp\.2", r"blocks.\1.down"),
        (r"^res_blocks\.(\d+)\.adaLN_modulation\.1", r"blocks.\1.modulation"),
        (r"^final_layer\.adaLN_modulation\.1", "out_modulation"),
        (r"^final_layer\.linear", "out"),
        (r"^time_embed\.mlp\.0", "time1"),
        (r"^time_embed\.mlp\.2", "time2"),
        (r"^cond_embed", "condition"),
        (r"^input_proj", "input"),
    ]
    net.load_state_dict({renamed(k, rules): v for k, v in weights.items()})
    return net


def renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    raise AssertionError(f"no rule for {name}")


def without(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class Recorded:
    """Recorded draws as the source of a sample's noise.

    The reference also draws noise at the last step of a chain and never uses it; those are left
    out.

    Args:
        draws: (key, tensor) in the order drawn.
        rows: samples.
        keep: which chains to replay, given (number among its kind, kind's number of chains, kind).
    """

    def __init__(
        self, draws: list[tuple[str, Tensor]], rows: int, keep: Any = lambda *_: True
    ) -> None:
        self.rows = rows
        self.orders = [d for k, d in draws if "/np_shuffle/" in k]
        chains: list[tuple[str, list[Tensor]]] = []
        for key, value in draws:
            if "/randn/" in key:
                chains.append((key.split("/")[-1], []))
            if "/randn" in key:
                chains[-1][1].append(value)
        kinds = [kind for kind, _ in chains]
        self.queue: list[Tensor] = []
        for i, (kind, chain) in enumerate(chains):
            if keep(kinds[:i].count(kind), kinds.count(kind), kind):
                self.queue += chain[:-1]

    def permutation(self, n: int) -> Tensor:
        order = torch.stack(self.orders).long()
        assert order.shape == (self.rows, n)
        return order

    def normal(self, *shape: int) -> Tensor:
        return self.queue.pop(0).reshape(self.rows, *shape)

    def require_spent(self) -> None:
        assert not self.queue, f"{len(self.queue)} recorded draws were not asked for"


def recorded(case: Case, section: str) -> list[tuple[str, Tensor]]:
    return [(d["key"], case.io[d["key"]]) for d in case.meta["draws"][section]]


@adapter("uva", "video_diffusion_loss")
def video_diffusion_loss(case: Case) -> None:
    c, io = case.config, case.io
    head = VideoHead(denoiser_of(without("net.", case.weights)), GaussianDiffusion())
    x, z = io["in/target"].flatten(0, 1), io["in/z"].flatten(0, 1)
    diffusion = GaussianDiffusion()
    x_t = diffusion.q_sample(x, io["in/t"], io["in/noise"])
    out = head.denoiser(x_t, io["in/t"], head.denoiser.condition(z))
    mse, vb = diffusion.terms(out, x, x_t, io["in/t"], io["in/noise"])
    loss = head.loss(z, x, io["in/t"], io["in/noise"])
    mask = io["in/mask"].flatten()
    case.check(
        "out/timestep_frequencies", sinusoid(io["in/t"], io["out/timestep_frequencies"].shape[-1])
    )
    case.check("out/time_embed", head.denoiser.embed_time(io["in/t"]))
    for name, got in (
        ("x_t", x_t),
        ("net", out),
        ("mse", mse),
        ("vb", vb),
        ("loss_per_token", loss),
    ):
        case.check(f"out/{name}", got)
    case.check("out/loss_masked", (loss * mask).sum() / mask.sum())

    # The rows sampled are the only input that has no name of its own.
    rows = io["sample/out"].shape[0]
    noise = Recorded(recorded(case, "sample"), 1)
    options = {"temperature": c["temperature"], "steps": c["num_sampling_steps"]}
    case.check(
        "sample/out",
        head.sample(z[:rows], lambda: noise.normal(*io["sample/out"].shape)[0], **options),
    )
    noise.require_spent()

    # The reference samples a second, unconditional half beside the guided one and throws it away.
    half = io["in/sample_cfg_z"].shape[0] // 2
    shape = (half, io["sample_cfg/out"].shape[1])
    draws = [(k, d[:half]) for k, d in recorded(case, "sample_cfg")]
    noise = Recorded(draws, 1)
    got = head.sample(
        io["in/sample_cfg_z"][:half],
        lambda: noise.normal(*shape)[0],
        unconditional=io["in/sample_cfg_z"][half:],
        guidance=c["cfg_scale"],
        **options,
    )
    noise.require_spent()
    case.check_value(got, io["sample_cfg/out"][:half], "sample_cfg/out (guided half)")


READOUT_RULES = [
    (r"^conv\.0", "conv"),
    (r"^fc\.0", "fc1"),
    (r"^fc\.2", "fc2"),
    (r"^interpolate", "mix"),
    (r"^refine\.0", "refine1"),
    (r"^refine\.2", "refine2"),
    (r"^conv_transpose3d", "expand"),
]


@adapter("uva", "action_diffusion_loss", "action_head_conv_ori")
def action_diffusion_loss(case: Case) -> None:
    c, io = case.config, case.io
    rows, horizon, channels = io["in/target"].shape
    # The reference's heads know 4 square frames; another number shows in the weights.
    if "interpolate.weight" in case.weights:
        frames = case.weights["interpolate.weight"].shape[1]
    else:
        frames = horizon // case.weights["conv_transpose3d.weight"].shape[2]
    side = round((io["in/z"].shape[1] // frames) ** 0.5)
    readout = READOUTS[c["act_model_type"]](io["in/z"].shape[2], frames, (side, side), horizon)
    own = {k: v for k, v in case.weights.items() if not k.startswith("net.")}
    readout.load_state_dict({renamed(k, READOUT_RULES): v for k, v in own.items()})
    diffusion = GaussianDiffusion(c["act_diff_training_steps"])
    head = ActionHead(readout, denoiser_of(without("net.", case.weights)), diffusion)
    case.check("out/action_latents", readout(io["in/z"]))
    (_, t), (_, noise) = recorded(case, "loss")
    t, noise = t.reshape(rows, horizon), noise.reshape(rows, horizon, channels)
    case.check("out/loss", head.loss(io["in/z"], io["in/target"], t, noise).mean())
    head.objective = GaussianDiffusion()  # whatever it was trained with (D9)
    source = Recorded(recorded(case, "sample"), rows)
    got = head.sample(
        io["in/z"],
        lambda: source.normal(horizon, channels),
        temperature=c["temperature"],
        steps=c["act_diff_testing_steps"],
    )
    source.require_spent()
    case.check("sample/out", got)


# --- the whole model ------------------------------------------------------------------------------


def config_of(case: Case, sampling: bool) -> UVAConfig:
    c, w = case.config, case.weights
    task = c["task_name"]
    state = without("in/proprio.", case.io)
    side = c["img_size"] // c["vae_stride"]
    streams = STATES.get(task, ()) if c["use_proprioception"] else ()
    predicted = PREDICTED.get(task, ()) if c["predict_proprioception"] else ()
    return UVAConfig(
        camera="img",
        wrist_camera="wrist" if c["predict_wrist_img"] or "second_image_z" in state else None,
        wrist_context="second_image_z" in state,
        wrist_prediction=bool(c["predict_wrist_img"]),
        latent_channels=c["vae_embed_dim"],
        grid=(side, side),
        patch=c["patch_size"],
        frames=w["temporal_pos_embed"].shape[1],
        horizon=case.io["in/nactions"].shape[1],
        action_dim=c["shape_meta"]["action"]["shape"][0],
        width=c["encoder_embed_dim"],
        depth=c["encoder_depth"],
        heads=c["encoder_num_heads"],
        decoder_width=c["decoder_embed_dim"],
        decoder_depth=c["decoder_depth"],
        decoder_heads=c["decoder_num_heads"],
        mlp_ratio=c["mlp_ratio"],
        dropout=c["proj_dropout"],
        attention_dropout=c["attn_dropout"],
        mask_ratio_min=c["mask_ratio_min"],
        predict_video=c["predict_video"],
        predict_action=c["action_model_params"]["predict_action"],
        modes={"video": 1.0} if not c["action_model_params"]["predict_action"] else {"policy": 1.0},
        video_head_depth=c["diffloss_d"],
        video_head_width=c["diffloss_w"],
        action_head_depth=c["diffloss_act_d"],
        action_head_width=c["diffloss_act_w"],
        readout=c["action_model_params"]["act_model_type"],
        # The reference samples from 1000 steps whatever its action head was trained with (D9).
        action_diffusion_steps=1000 if sampling else c["act_diff_training_steps"],
        video_sampling_steps=c["num_sampling_steps"],
        action_sampling_steps=c["act_diff_testing_steps"],
        text_dim=w["text_proj_cond.weight"].shape[1] if c["language_emb_model"] else None,
        text_tokens=w["text_pos_embed"].shape[1] if c["language_emb_model"] else 64,
        text_drop=c["label_drop_prob"],
        past_actions=bool(c["use_history_action"]),
        past_action_keep=c["action_mask_ratio"],
        proprioception={s: state[s].shape[2] for s in streams},
        proprioception_steps=state[streams[0]].shape[1] if streams else 16,
        proprioception_prediction={s: state[f"{s}_pred"].shape[2] for s in predicted},
    )


def model_of(case: Case, *, sampling: bool = False) -> UVA:
    config = config_of(case, sampling)
    model = UVA(config)
    native = to_native(case.weights, config)
    model.load_state_dict(native)
    back = to_reference(native, config)
    assert back.keys() == case.weights.keys()
    zeroed = "proprioception_image_proj_cond"
    assert all(
        torch.equal(back[k], v)
        for k, v in case.weights.items()
        if zeroed not in k or config.shows_wrist
    )
    return model.eval()


def batch_of(case: Case) -> Batch:
    io, state = case.io, without("in/proprio.", case.io)
    latents = {"img": torch.cat([io["in/cond"], io["in/imgs"]], dim=1)}
    if "second_image_z" in state:
        future = state.get("pred_second_image_z", torch.zeros_like(io["in/imgs"]))
        latents["wrist"] = torch.cat([state["second_image_z"], future], dim=1)
    streams = {s for s in state if not s.endswith("_pred") and "image" not in s}
    return Batch(
        latents=latents,
        actions=io["in/nactions"],
        past_actions=io.get("in/history_nactions"),
        text=io.get("in/text_latents"),
        state={
            s: torch.cat([state[s], state[f"{s}_pred"]], dim=1)
            if f"{s}_pred" in state
            else state[s]
            for s in streams
        },
    )


@adapter("uva", "mar_modes_pusht", "mar_modes_libero_text", "mar_modes_toolhang_wrist_proprio")
def mar_modes(case: Case) -> None:
    model, batch, io = model_of(case), batch_of(case), case.io
    order, masked = io["in/orders"].long(), int(io["in/mask"][0, 0].sum())
    assert masked == masked_places(float(io["in/mask_rate"]), order.shape[1])
    tokens = first_places(order, 0, masked, model.config.frames, model.config.frame_tokens)
    hidden = token_mask(tokens, model.config.tokens)
    assert torch.equal(hidden, io["in/mask"].flatten(1).bool())
    case.check(
        "out/patchify_imgs",
        patchify(io["in/imgs"], model.config).unflatten(1, (model.config.frames, -1)),
    )
    views = {k: v.split(model.config.frames, dim=1) for k, v in batch.latents.items()}
    wrist = views.get("wrist", [None, None])
    for theirs, ours in MODES.items():
        question = Question(
            mode=ours,
            context=views["img"][0],
            future=views["img"][1],
            wrist_context=wrist[0],
            wrist_future=wrist[1],
            actions=batch.actions,
            past_actions=batch.past_actions,
            proprioception=batch.state,
            text=batch.text,
        )
        encoded = model.transformer.encode(question.inputs(model.config, hidden=hidden))
        case.check(f"{theirs}/encoder_out_every8", encoded[:, ::8])
        case.check(f"{theirs}/decoder_out_every8", model.transformer.decode(encoded)[:, ::8])


@adapter(
    "uva",
    "train_loss_pusht",
    "train_loss_libero",
    "train_loss_umi",
    "train_loss_toolhang",
    "train_loss_history_action",
)
def train_loss(case: Case) -> None:
    model, batch, c = model_of(case).train(), batch_of(case), case.config
    for theirs in case.meta["draws"]:
        model.zero_grad()
        loss = model.loss(
            batch, draws_of(model, MODES[theirs], recorded(case, theirs), len(batch), c)
        )
        loss.loss.backward()
        case.check(f"{theirs}/out/loss", loss.loss)
        video = sum(v for k, v in loss.logs.items() if k in ("video_loss", "wrist_loss"))
        case.check(f"{theirs}/out/video_loss", torch.as_tensor(video, dtype=torch.float32))
        case.check(f"{theirs}/out/act_loss", loss.logs.get("action_loss", torch.zeros(())))
        gradient = model.transformer.join.weight.grad
        assert gradient is not None
        case.check(f"{theirs}/out/grad/proj_cond_x_layer.weight", gradient)


def draws_of(
    model: UVA, mode: str, draws: list[tuple[str, Tensor]], rows: int, c: dict[str, Any]
) -> Draws:
    queue = [d for _, d in draws]
    order = torch.stack([queue.pop(0) for _ in range(rows)]).long()
    masked = masked_places(float(queue.pop(0)), model.config.frame_tokens)
    past = queue.pop(0) <= c["action_mask_ratio"] if model.config.past_actions else None
    text = queue.pop(0) >= c["label_drop_prob"] if model.config.text_dim is not None else None
    tokens = first_places(order, 0, masked, model.config.frames, model.config.frame_tokens)
    heads = {}
    for name in model.heads_of(mode):
        t, noise = queue.pop(0).reshape(rows, -1), queue.pop(0)
        noise = noise.reshape(*t.shape, -1)
        if name in ("video", "wrist"):  # the reference also draws for tokens that are not masked
            t, noise = t.gather(1, tokens), take(noise, tokens)
        heads[name] = HeadDraw(t=t, noise=noise)
    assert not queue
    return Draws(mode=mode, order=order, masked=masked, past_keep=past, text_keep=text, heads=heads)


@adapter("uva", "sample_policy", "sample_video", "sample_umi_policy", "sample_toolhang_wrist")
def sample(case: Case) -> None:
    model, batch, meta = model_of(case, sampling=True), batch_of(case), case.meta
    config = model.config
    assert meta["cfg"] == 1.0, "the reference fails with guidance"
    for theirs in meta["draws"]:
        mode, iterations = (
            MODES[theirs],
            meta["num_iter"] if theirs not in ("policy_model", "inverse_model") else 1,
        )
        views = {k: list(v.split(config.frames, dim=1)) for k, v in batch.latents.items()}
        known: dict[str, Any] = {"text": batch.text, "past_actions": batch.past_actions}
        known["proprioception"] = {
            s: batch.state[s][:, : config.proprioception_steps] for s in config.proprioception
        }
        known["wrist_context"] = views["wrist"][0] if config.shows_wrist else None
        if mode == "dynamics":
            known["actions"] = batch.actions
        if mode == "inverse":
            known["future"] = views["img"][1]
            known["wrist_future"] = views["wrist"][1] if config.predicts_wrist else None
        question = Question(mode=mode, context=views["img"][0], **known)
        sampling = Sampling(iterations=iterations, temperature=meta["temperature"])
        draws = recorded(case, theirs)

        def last_actions(number: int, count: int, kind: str) -> bool:
            return kind != "DiffActLoss.sample" or number == count - 1

        if theirs + "/out/action" in case.io and mode not in ("video", "dynamics"):
            source = Recorded(draws, len(batch), last_actions)
            got = model.sample(question, sampling, rng=source)
            source.require_spent()
            actions, latents = got.actions, got.latents
        else:  # here the reference samples actions in every mode
            source = Recorded(draws, len(batch), lambda _n, _c, kind: kind != "DiffActLoss.sample")
            got = model.sample(question, sampling, rng=source)
            source.require_spent()
            latents = got.latents
            actions = actions_too(
                model, question, sampling, Recorded(draws, len(batch), last_actions)
            )
        if f"{theirs}/out/action" in case.io:
            case.check(f"{theirs}/out/action", actions)
        if latents is not None:
            camera = (
                "wrist" if config.predicts_wrist else "img"
            )  # the reference returns the wrist alone, if there is one
            case.check(f"{theirs}/out/tokens", latents[camera].flatten(0, 1))


def actions_too(model: UVA, question: Question, sampling: Sampling, source: Recorded) -> Tensor:
    """The actions that the reference also draws in modes that ask for video alone."""
    shown, asked = question.inputs(model.config), replace(uva.MODES[question.mode], action=True)
    with torch.no_grad():
        got = draw_sample(model.transformer, model.heads, shown, asked, sampling, source)
    source.require_spent()
    assert got.actions is not None
    return got.actions


# --- masks and windows ----------------------------------------------------------------------------


@adapter("uva", "mask_ratio")
def mask_ratio_law(case: Case) -> None:
    for minimum in case.config:
        low = float(minimum)
        levels = case.io[f"min{minimum}/quantile_levels"]
        case.check(f"min{minimum}/quantiles", np.array([mask_ratio(float(u), low) for u in levels]))
        for key in (k for k in case.io if k.startswith(f"min{minimum}/masked_tokens_of_")):
            places = int(key.split("_of_")[1].split("_")[0])
            # P(count <= k) is the level at which the count steps from k to k + 1: found by
            # bisection.
            cumulated = [0.0]
            for k in range(places + 1):
                left, right = 0.0, 1.0
                while right - left > 1e-10:
                    middle = (left + right) / 2
                    if masked_places(mask_ratio(middle, low), places) <= k:
                        left = middle
                    else:
                        right = middle
                cumulated.append(right if k < places else 1.0)
            # A step at level 0 is where bisection ends for counts that never occur.
            case.check(key, np.diff(np.where(np.array(cumulated) < 1e-9, 0.0, np.array(cumulated))))


@adapter("uva", "frame_and_action_windows")
def frame_and_action_windows(case: Case) -> None:
    io = case.io
    horizon = io["trajectory/shift32"].shape[0]
    frames = io["select_frames/train32"].shape[0] // 2
    stride = frame_stride(horizon, frames)
    now = horizon - 1
    offsets = context_offsets(frames, stride) + future_offsets(frames, stride)
    case.check("select_frames/train32", np.array(offsets) + now)
    case.check("select_frames/eval16", np.array(context_offsets(frames, stride)) + now)
    for label, shift, anchor in (
        ("shift32", True, now),
        ("noshift32", False, now),
        ("umi_T8_noshift", False, now),
        ("hist33_shift", True, now + 1),
        ("hist33_noshift", False, now + 1),
    ):
        case.check(
            f"trajectory/{label}",
            np.array(action_offsets(horizon, first_now=shift), dtype=np.float32) + anchor,
        )
        if f"history/{label}" in io:
            past = np.array(past_action_offsets(horizon, first_now=shift), dtype=np.float32)
            case.check(f"history/{label}", past + anchor)
    # D33: the reference's window of 28 actions cannot be expressed here; every window has `horizon`
    #     actions.
    assert io["trajectory/umi_T8_shift_DEFECT"].shape[0] != len(
        action_offsets(horizon, first_now=True)
    )
    case.check("history_freq_table", context_steps(io["history_freq_table"].shape[1], horizon))
