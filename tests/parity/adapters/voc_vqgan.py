"""taming's VQGAN as Video Occupancy Models use it: network,
quantiser, losses, released file, frames.
"""

from __future__ import annotations

import dataclasses

import torch
from parity.registry import Case, adapter
from torch import Tensor
from torch.nn.functional import softplus

from foreact.data.windows.augment import random_shift
from foreact.families.codes.released.taming import read_lpips, read_taming
from foreact.families.codes.released.taming_names import LOSS, to_native
from foreact.tokenizers.adversarial import adaptive_factor
from foreact.tokenizers.discriminator import PatchGAN, deceive_loss, judge_loss
from foreact.tokenizers.images import prepare, to_legacy_range
from foreact.tokenizers.vq import TAMING, VQConfig, VQTokenizer


def config_of(case: Case) -> VQConfig:
    """The network of a case. It is fed with the values it sees
    itself, so that nothing is to be converted.
    """
    raw = case.config["ddconfig"]
    lowest = raw["resolution"] // 2 ** (len(raw["ch_mult"]) - 1)
    levels = {lowest * 2**i: i for i in range(len(raw["ch_mult"]))}
    assert (raw["in_channels"], raw["out_ch"], raw["double_z"], raw["dropout"]) == (
        3,
        3,
        False,
        0.0,
    )
    return dataclasses.replace(
        TAMING,
        channels=raw["ch"],
        multipliers=tuple(raw["ch_mult"]),
        attention=tuple(sorted(levels[r] for r in raw["attn_resolutions"] if r in levels)),
        blocks=raw["num_res_blocks"],
        features=raw["z_channels"],
        codes=case.config["n_embed"],
        code_dim=case.config["embed_dim"],
        codebook_weight=case.config.get("beta", TAMING.codebook_weight),
        image_size=tuple(case.io["in.x"].shape[-2:]),
    )


@adapter("voc", "vqgan_encode_decode")
def vqgan_encode_decode(case: Case) -> None:
    config = config_of(case)
    tokenizer = VQTokenizer(config).eval()
    tokenizer.load_state_dict(to_native(case.weights))
    images = case.io["in.x"]
    with torch.no_grad():
        z = tokenizer.latents(images)
    z.requires_grad_()
    found = tokenizer.quantizer(z)
    case.check("out.prequant", z)
    case.check("out.indices", found.codes.flatten())
    case.check("out.indices", tokenizer.encode(images[:, None]).flatten())
    case.check("out.quant", found.values)
    legacy = config.codebook_weight * found.codebook + config.commitment_weight * found.commitment
    case.check("out.quant_loss_legacy", legacy)
    beta = config.codebook_weight
    case.check("out.quant_loss_nonlegacy", found.codebook + beta * found.commitment)
    with torch.no_grad():
        case.check("out.recon", tokenizer.draw(found.values))
        rows = tokenizer.codebook[found.codes].permute(0, 3, 1, 2)
        case.check("out.codebook_entry", rows)
        case.check("out.recon_from_codes", tokenizer.draw(rows))
    ramp = torch.linspace(-1, 1, z.numel()).view(
        z.shape
    )  # shows that the gradient passes straight through
    (legacy + (found.values * ramp).sum()).backward()
    case.check("out.grad_prequant", z.grad)
    case.check("out.grad_codebook", tokenizer.quantizer.weight.grad)


@adapter("voc", "vqgan_losses_checkpoint")
def vqgan_losses_checkpoint(case: Case) -> None:
    file = case.folder / "model_state_dict.pth"
    images = case.io["in.x"]
    raw = {"disc_factor": 1.0, "disc_weight": 1.0, "perceptual_weight": 1.0, "disc_loss": "hinge"}
    raw |= case.config["lossconfig"]["params"]
    assert not raw["disc_conditional"]

    config = config_of(case)
    found = read_taming(file, preprocessing="symmetric", grid=config.grid)
    assert found.config == config
    perceptual = read_lpips(file)
    everything = torch.load(file, weights_only=True)
    prefix = f"{LOSS}discriminator."
    judge_state = {k.removeprefix(prefix): v for k, v in everything.items() if k.startswith(prefix)}

    def start() -> tuple[VQTokenizer, PatchGAN]:
        tokenizer, discriminator = (
            VQTokenizer(config),
            PatchGAN(raw["disc_ndf"], raw["disc_num_layers"]),
        )
        tokenizer.load_state_dict({k: v.clone() for k, v in found.state.items()})
        discriminator.load_state_dict({k: v.clone() for k, v in judge_state.items()})
        return tokenizer.train(), discriminator.train()

    def running_mean(discriminator: PatchGAN) -> Tensor:
        """Of the first normalisation."""
        return next(
            m for m in discriminator.main if isinstance(m, torch.nn.BatchNorm2d)
        ).get_buffer("running_mean")

    tokenizer, _ = start()
    with torch.no_grad():
        quantized = tokenizer.quantizer(tokenizer.latents(images))
        case.check("out.recon", tokenizer.draw(quantized.values))
        quant_loss = (
            config.codebook_weight * quantized.codebook
            + config.commitment_weight * quantized.commitment
        )
        case.check("out.codebook_loss", quant_loss)
        distance = perceptual(images, tokenizer.draw(quantized.values))
        case.check("out.lpips", distance.view(-1, 1, 1, 1))

    for label, step in (("before_disc_start", 0), ("after_disc_start", raw["disc_start"])):
        factor = 0.0 if step < raw["disc_start"] else raw["disc_factor"]
        tokenizer, discriminator = start()
        quantized = tokenizer.quantizer(tokenizer.latents(images))
        decoded = tokenizer.draw(quantized.values)
        p_loss = perceptual(images, decoded).mean()
        nll = (decoded - images).abs().mean() + raw["perceptual_weight"] * p_loss
        g_loss = deceive_loss(discriminator(decoded))
        d_weight = raw["disc_weight"] * adaptive_factor(nll, g_loss, tokenizer.last_layer)
        quant_loss = (
            config.codebook_weight * quantized.codebook
            + config.commitment_weight * quantized.commitment
        )
        loss = nll + d_weight * factor * g_loss + raw["codebook_weight"] * quant_loss
        loss.backward()
        got = {
            "loss": loss,
            "total_loss": loss,
            "quant_loss": quant_loss,
            "nll_loss": nll,
            "rec_loss": nll,
            "p_loss": p_loss,
            "d_weight": d_weight,
            "disc_factor": factor,
            "g_loss": g_loss,
            "grad_conv_out": tokenizer.last_layer.grad,
            "grad_encoder_conv_in": tokenizer.encoder.conv_in.weight.grad,
            "grad_codebook": tokenizer.quantizer.weight.grad,
            "disc_running_mean": running_mean(discriminator),
        }
        for name, value in got.items():
            case.check(f"out.gen_{label}.{name}", value)

    for label, step in (("before_start", 0), ("after_start", raw["disc_start"])):
        factor = 0.0 if step < raw["disc_start"] else raw["disc_factor"]
        tokenizer, discriminator = start()
        with torch.no_grad():
            decoded = tokenizer.draw(tokenizer.quantizer(tokenizer.latents(images)).values)
            real, fake = discriminator(images), discriminator(decoded)
        if raw["disc_loss"] == "hinge":
            judged = judge_loss(real, fake)
        else:
            judged = 0.5 * (softplus(-real).mean() + softplus(fake).mean())
        got = {
            "loss": factor * judged,
            "disc_loss": factor * judged,
            "logits_real": real.mean(),
            "logits_fake": fake.mean(),
            "disc_running_mean": running_mean(discriminator),
        }
        for name, value in got.items():
            case.check(f"out.disc_{label}.{name}", value)


@adapter("voc", "legacy_preprocess")
def legacy_preprocess(case: Case) -> None:
    size = case.config["resize"]
    stacks = case.io["in.x"]
    # A stack's channels are its frames', oldest first.
    frames = stacks.unflatten(1, (case.config["frames"], 3)).flatten(0, 1)
    case.check("out.y", to_legacy_range(prepare(frames, (size, size), "legacy")))


@adapter("voc", "random_shift_aug")
def random_shift_aug(case: Case) -> None:
    shifts = case.io["draw.shift"].flatten(1).round().to(torch.int64)
    case.check("out.y", random_shift(case.io["in.x"], shifts, case.config["pad"]))
