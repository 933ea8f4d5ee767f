"""KL autoencoder and the image path that leads to it."""

from __future__ import annotations

import torch
from parity.registry import Case, adapter

from foreact.families.codes.released.kl_vae_names import to_native
from foreact.tokenizers.images import resize_video
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig, Posterior
from foreact.types import to_model_range


@adapter("uva", "vae_encode_decode")
def vae_encode_decode(case: Case) -> None:
    raw = case.config
    assert not raw["decoder_attn_resolutions"]
    images, noise = case.io["in/image"], case.io["draw/posterior_noise"]
    config = KLVAEConfig(
        channels=raw["ch"],
        multipliers=tuple(raw["ch_mult"]),
        blocks=raw["num_res_blocks"],
        latent_channels=raw["z_channels"],
        nominal_resolution=raw["resolution_ctor"],
        attention_resolutions=tuple(raw["encoder_attn_resolutions"]),
        image_size=(images.shape[2], images.shape[3]),
    )
    vae = KLVAE(config).eval()
    vae.load_state_dict(to_native(case.weights))
    with torch.no_grad():
        moments = vae.moments(images)
        posterior = Posterior.from_moments(moments)
        latents = posterior.sample(noise) * config.scale
        case.check("out/moments", moments)
        case.check("out/mean", posterior.mean)
        case.check("out/logvar_clamped", posterior.logvar)
        case.check("out/std", posterior.std)
        case.check("out/kl", posterior.kl())
        case.check("out/latent_scaled", latents)
        case.check_value(
            vae.encode(images[:, None])[:, 0], case.io["out/mean"] * config.scale, "encode"
        )
        # Decoded from the recorded latents: the decoder multiplies the rounding of either encoder.
        #     The recording is
        # the decoder's own output; `decode` clamps it.
        case.check("out/decoded", vae.reconstruct(case.io["out/latent_scaled"] / config.scale))
        clamped = vae.decode(case.io["out/latent_scaled"][:, None])[:, 0]
        case.check_value(clamped, case.io["out/decoded"].clamp(-1, 1), "decode")


@adapter("uva", "image_preprocess")
def image_preprocess(case: Case) -> None:
    video, expected = case.io["in/image_uint8"], case.io["out/processed_bcthw_crop"]
    b, channels, frames, *size = case.io["out/processed_shape"].tolist()
    # The recording keeps a window of the pictures whose corner its description names: [100:124,
    # 60:92].
    crop = (..., slice(100, 100 + expected.shape[3]), slice(60, 60 + expected.shape[4]))
    height, width = size

    resized = resize_video(video.float() / 255, (height, width))
    case.check("out/resized_crop", resized[crop])
    case.check("out/resized_mean", resized.mean())

    stride = video.shape[1] // frames
    chosen = to_model_range(video)[:, stride - 1 :: stride]
    processed = resize_video(chosen, (height, width)).transpose(1, 2)
    assert processed.shape == (b, channels, frames, height, width)
    case.check("out/processed_bcthw_crop", processed[crop])
