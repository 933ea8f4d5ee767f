"""Tokenizers: how they are trained, their released files, and how stores are tokenised.

Each is a family, since each has checkpoints of its own.
"""

from foreact.plugs import Family

KL_VAE = Family(
    name="kl_vae",
    title="the autoencoder with continuous latents",
    config="foreact.tokenizers.kl_vae:KLVAEConfig",
    module="foreact.tokenizers.kl_vae:KLVAE",
    train="foreact.families.codes.train_kl_vae:command",
    layouts="foreact.families.codes.released.kl_vae:LAYOUTS",
)
VQ = Family(
    name="vq",
    title="the image tokenizer with a codebook",
    config="foreact.tokenizers.vq:VQConfig",
    module="foreact.tokenizers.vq:VQTokenizer",
    train="foreact.families.codes.train_vq:command",
    layouts="foreact.families.codes.released.vq:LAYOUTS",
    write="foreact.families.codes.released.vq:write",
)
VQKD = Family(
    name="vqkd",
    title="VQ-KD: codes of what a teacher network sees",
    config="foreact.tokenizers.vqkd:VQKDConfig",
    module="foreact.tokenizers.vqkd:VQKD",
    train="foreact.families.codes.train_vqkd:command",
    layouts="foreact.families.codes.released.vqkd:LAYOUTS",
)
MUSIK = Family(
    name="musik",
    title="MUSIK: codes of what actions can change",
    config="foreact.tokenizers.musik:MusikConfig",
    module="foreact.tokenizers.musik:Musik",
    train="foreact.families.codes.train_musik:command",
)
