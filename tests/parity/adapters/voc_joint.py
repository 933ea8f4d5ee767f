"""Video Occupancy Models from pixels: one update of everything
at once, with a VQ-VAE and with MUSIK.
"""

from __future__ import annotations

from typing import Any

import torch
from parity.adapters.voc_train import draws_instead, load_gpt, occupancy
from parity.registry import Case, adapter
from torch import Tensor, nn

from foreact.data.windows.augment import random_shift
from foreact.families.codes.released.taming_names import to_native
from foreact.families.voc.model import VOC
from foreact.tokenizers.discriminator import PatchGAN, deceive_loss
from foreact.tokenizers.images import prepare, to_legacy_range
from foreact.tokenizers.lpips import lpips
from foreact.tokenizers.musik import Musik, MusikConfig
from foreact.tokenizers.quantize import Quantized
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.types import LossOut

STEP = 1  # the reference's number of the update, at which it takes no optimiser step


def frames(case: Case, name: str, draw: str) -> Tensor:
    """Shifted, resized frames in the reference's range: float32 (B, T, 3, H, W)."""
    raw = case.config
    stacked = random_shift(case.io[name], case.io[draw].flatten(1).long(), raw["aug_pad"])
    video = stacked.unflatten(1, (raw["frames"], 3))
    return to_legacy_range(prepare(video, (raw["resize"], raw["resize"]), "legacy"))


def encoder_sizes(raw: dict[str, Any]) -> dict[str, Any]:
    """Entries that the configs of both tokenizers share."""
    network = raw["ddconfig"]
    assert not network["double_z"]
    assert network["dropout"] == 0.0
    assert network["in_channels"] == network["out_ch"] == 3
    levels = len(network["ch_mult"])
    attended = {
        i for i in range(levels) if network["resolution"] // 2**i in network["attn_resolutions"]
    }
    return {
        "channels": network["ch"],
        "multipliers": tuple(network["ch_mult"]),
        "attention": tuple(sorted(levels - 1 - i for i in attended)),
        "blocks": network["num_res_blocks"],
        "features": network["z_channels"],
        "codes": raw["n_embed"],
        "code_dim": raw["embed_dim"],
        "image_size": (raw["resize"], raw["resize"]),
        "codebook_weight": 0.25,
        "commitment_weight": 1.0,
    }


def part(case: Case, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): t for name, t in case.weights.items() if name.startswith(prefix)
    }


class StandIn(nn.Linear):
    """The cases' reward predictor: one layer in place of the three."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)[..., 0]


def occupancy_model(case: Case, codebook: Tensor) -> VOC:
    model = occupancy(case.config)
    for net in (model.gpt, model.target):
        load_gpt(net, case.weights, "gpt.")
    state = part(case, "reward_predictor.")
    stand_in: Any = StandIn(state["weight"].shape[1], 1)
    model.reward = stand_in
    model.reward.load_state_dict(state)
    model.set_codebook(codebook)
    return model.train()


def learn_on_codes(case: Case, model: VOC, now: Tensor, following: Tensor) -> LossOut:
    """VOC's terms for the codes of two stacks, (B, T, h, w) each."""
    bootstrapped = case.io["draw.bernoulli"]
    draws_instead(model, case.io["draw.model_sample"], bootstrapped)
    stacks = torch.stack([now.flatten(1), following.flatten(1)], dim=1)
    gammas = torch.zeros(len(stacks), dtype=torch.int64)
    future = model.targets(stacks, bootstrapped.long(), gammas, None, rng=torch.Generator())
    case.check("out.gpt_input", torch.cat([stacks[:, 0], future], dim=1))
    out = model.loss(stacks, future, case.io["in.reward"], gammas=gammas, actions=None)
    case.check("out.gpt_loss", out.logs["nats_per_code"])
    case.check("out.reward_loss", out.logs["reward_mse"])
    return out


def legacy_terms(config: VQConfig | MusikConfig, found: Quantized) -> Tensor:
    return config.codebook_weight * found.codebook + config.commitment_weight * found.commitment


def codes_of(tokenizer: VQTokenizer | Musik, video: Tensor) -> Tensor:
    with torch.no_grad():
        return tokenizer.encode(video)


@adapter("voc", "musik_update")
def musik_update(case: Case) -> None:
    raw = case.config
    projector = part(case, "musik_predictor.projector.")
    config = MusikConfig(
        **encoder_sizes(raw),
        actions=raw["action_dim"],
        frames=raw["frames"],
        negatives=raw["negatives"],
        summary=len(case.weights["model.quant_linear.1.bias"]),
        hidden=len(projector["layer1.1.bias"]),
    )
    musik = Musik(config)
    layers = {"layer1.0": "energy.first", "layer1.1": "energy.norm", "layer2": "energy.second"}
    theirs = part(case, "model.")
    state = to_native(
        {
            name: t
            for name, t in theirs.items()
            if not name.startswith(("quant_linear.", "decoder."))
        }
    )
    state |= {f"summary.{kind}": theirs[f"quant_linear.1.{kind}"] for kind in ("weight", "bias")}
    state |= {
        f"{layers[name.rsplit('.', 1)[0]]}.{name.rsplit('.', 1)[1]}": t
        for name, t in projector.items()
    }
    musik.load_state_dict(state)
    musik.train()

    now, later, following = (
        frames(case, f"in.{name}", f"draw.shift_{draw}")
        for name, draw in (("obs", "obs"), ("obs_k", "k"), ("next_obs", "next"))
    )
    context, following_codes = codes_of(musik, now), codes_of(musik, following)
    case.check("out.context_codes", context.flatten(1))
    case.check("out.future_codes", codes_of(musik, later).flatten(1))
    case.check("out.next_codes", following_codes.flatten(1))
    with torch.no_grad():
        for name, loss, video in (("enc", "context", now), ("enc_k", "future", later)):
            found = musik.quantizer(musik.latents(video.flatten(0, 1)))
            case.check(f"out.{name}", musik.summarize(found.values))
            case.check(f"out.codebook_loss_{loss}", legacy_terms(config, found))

    energies: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        energies.append(output)

    musik.energy.register_forward_hook(keep)
    negatives = case.io["draw.negatives"].view(-1, raw["negatives"], raw["action_dim"])
    out = musik.loss(now, later, torch.cat([case.io["in.action"][:, None], negatives], dim=1))
    # The reference shuffles its candidates; ours stay in order, the true one first.
    order = case.io["draw.permutation_keys"].argsort(dim=1)
    case.check("out.infonce_logits", -energies[0].gather(1, order))
    case.check("out.infonce_label", (order == 0).int().argmax(dim=1))
    case.check("out.infonce_loss", out.logs["infonce"])
    case.check("out.musik_loss", out.loss)
    case.check("out.projector_bn_running_mean", musik.energy.norm.running_mean)
    case.check("out.projector_bn_running_var", musik.energy.norm.running_var)

    voc = occupancy_model(case, musik.codebook)
    found = learn_on_codes(case, voc, context, following_codes)
    (out.loss + found.loss).backward()
    for name, weight in (
        ("encoder_conv_in", musik.encoder.conv_in.weight),
        ("codebook", musik.quantizer.weight),
        ("quant_linear", musik.summary.weight),
        ("projector_first", musik.energy.first.weight),
        ("gpt_wte", voc.gpt.token_embedding.weight),
    ):
        case.check(f"out.grad_{name}", weight.grad)


@adapter("voc", "voc_pixel_update")
def voc_pixel_update(case: Case) -> None:
    raw, options = case.config, case.config["lossconfig"]["params"]
    assert not options["disc_conditional"]
    tokenizer = VQTokenizer(VQConfig(**encoder_sizes(raw), normalized=False))
    tokenizer.load_state_dict(to_native(part(case, "model.")))
    discriminator = PatchGAN(options.get("disc_ndf", 64), options.get("disc_num_layers", 3))
    discriminator.load_state_dict(part(case, "model.loss.discriminator."))
    discriminator.train()

    now, following = (
        frames(case, f"in.{name}", f"draw.shift_{draw}")
        for name, draw in (("obs", "obs"), ("next_obs", "next"))
    )
    images = now.flatten(0, 1)
    found = tokenizer.quantizer(tokenizer.latents(images))
    decoded = tokenizer.draw(found.values)
    codebook = legacy_terms(tokenizer.config, found)
    perceptual = distance(part(case, "model.loss.perceptual_loss."))(images, decoded).mean()
    nll = (images - decoded).abs().mean() + options.get("perceptual_weight", 1.0) * perceptual
    deceive = deceive_loss(discriminator(decoded))
    own, adversarial = (
        torch.autograd.grad(term, tokenizer.last_layer, retain_graph=True)[0].norm()
        for term in (nll, deceive)
    )
    adaptive = (own / (adversarial + 1e-4)).clamp(max=1e4).detach() * options["disc_weight"]
    begun = options.get("disc_factor", 1.0) if options["disc_start"] <= STEP else 0.0
    loss = nll + adaptive * begun * deceive + options["codebook_weight"] * codebook
    for name, value in (
        ("recon", decoded),
        ("quant_loss", codebook),
        ("nll_loss", nll),
        ("p_loss", perceptual),
        ("d_weight", adaptive),
        ("g_loss", deceive),
        ("vae_loss", loss),
    ):
        case.check(f"out.{name}", value)

    voc = occupancy_model(case, tokenizer.codebook)
    out = learn_on_codes(case, voc, codes_of(tokenizer, now), codes_of(tokenizer, following))
    (loss + out.loss).backward()
    judge = [p.grad for p in discriminator.parameters() if p.grad is not None]
    case.check("out.max_abs_grad_discriminator", torch.stack([g.abs().max() for g in judge]).max())
    case.check("out.disc_running_mean_after", discriminator.get_buffer("main.3.running_mean"))
    for name, weight in (
        ("encoder_conv_in", tokenizer.encoder.conv_in.weight),
        ("codebook", tokenizer.quantizer.weight),
        ("decoder_conv_out", tokenizer.last_layer),
        ("gpt_wte", voc.gpt.token_embedding.weight),
        ("reward", voc.get_parameter("reward.weight")),
        ("disc_conv_in", discriminator.get_parameter("main.0.weight")),
    ):
        case.check(f"out.grad_{name}", weight.grad)


def distance(state: dict[str, Tensor]) -> Any:
    """LPIPS of the case's tensors."""
    network = {
        ".".join(name.split(".")[2:]): t
        for name, t in state.items()
        if name.startswith("net.slice")
    }
    return lpips(
        network,
        [state[f"lin{k}.model.1.weight"].flatten() for k in range(5)],
        shift=state["scaling_layer.shift"].flatten().tolist(),
        scale=state["scaling_layer.scale"].flatten().tolist(),
    )
