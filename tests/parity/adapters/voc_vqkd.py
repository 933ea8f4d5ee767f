"""VQ-KD: the codebook on the unit sphere, and the tokenizer around it."""

from __future__ import annotations

import torch
from parity.registry import Case, adapter
from torch import Tensor
from torch.nn.functional import cosine_similarity

from foreact.families.codes.released.vqkd_names import to_native
from foreact.tokenizers.cosine_codebook import CosineCodebook
from foreact.tokenizers.vqkd import VQKD, VQKDConfig


def hits_of(codes: Tensor, book: CosineCodebook) -> Tensor:
    return torch.bincount(codes.flatten(), minlength=len(book.weight)).float()


@adapter("voc", "norm_ema_quantizer")
def norm_ema_quantizer(case: Case) -> None:
    raw, z, z2 = case.config, case.io["in.z"], case.io["in.z2"]
    book = CosineCodebook(raw["n"], raw["d"], decay=raw["decay"])
    prefix = "quantizer."
    state = to_native({f"quantize.{name}": value for name, value in case.weights.items()})
    book.load_state_dict({name.removeprefix(prefix): value for name, value in state.items()})

    def expect(stage: str, codes: Tensor, loss: Tensor) -> None:
        case.check(f"out.{stage}.indices", codes.flatten())
        case.check(f"out.{stage}.loss", loss)
        case.check(f"out.{stage}.cluster_size_after", book.cluster_size)
        case.check(f"out.{stage}.codebook_after", book.weight)

    start = {name: value.clone() for name, value in book.state_dict().items()}
    book.eval()
    found = book(z)
    # Ours changes nothing in evaluation; the reference counts there too.
    assert all(torch.equal(value, start[name]) for name, value in book.state_dict().items())
    book.count(hits_of(found.codes, book))
    expect("eval", found.codes, raw["beta"] * found.commitment)
    case.check("out.eval.z_q", found.values)

    book.load_state_dict(start)
    book.train()
    leaf = z.clone().requires_grad_(True)
    found = book(leaf)
    loss = raw["beta"] * found.commitment
    ramp = torch.linspace(-1, 1, found.values.numel()).view_as(found.values)
    (loss + (found.values * ramp).sum()).backward()
    book.after_step()
    expect("train", found.codes, loss)
    case.check("out.train.z_q", found.values)
    assert leaf.grad is not None
    case.check("out.train.grad_z", leaf.grad)
    found = book(z2)
    book.after_step()
    expect("train2", found.codes, raw["beta"] * found.commitment)

    book = CosineCodebook(raw["kmeans_n_embed"], raw["d"], decay=raw["decay"]).eval()
    hits = book.initialise(z, case.io["draw.kmeans_perm"], iterations=raw["kmeans_iters"])
    found = book(z)
    case.check("out.kmeans.codebook", book.weight)
    case.check("out.kmeans.embedding_cluster_size", hits)
    case.check("out.kmeans.initted", book.initialised.float().view(1))
    case.check("out.kmeans.indices", found.codes.flatten())
    case.check("out.kmeans.z_q", found.values)


@adapter("voc", "vqkd_encode")
def vqkd_encode(case: Case) -> None:
    raw, x, alt = case.config, case.io["in.x"], case.io["in.x_alt"]
    encoder, decoder = raw["encoder"], raw["decoder"]
    for vit in (encoder, decoder):
        assert all(vit[name] for name in ("qkv_bias", "use_abs_pos_emb", "use_mean_pooling"))
        without = (
            "init_values",
            "use_rel_pos_bias",
            "use_shared_rel_pos_bias",
            "qk_scale",
            "drop_rate",
            "attn_drop_rate",
            "drop_path_rate",
        )
        assert not any(vit[name] for name in without)
        assert all(vit[name] == encoder[name] for name in ("embed_dim", "num_heads", "mlp_ratio"))
    grid = raw["img"] // raw["p"]
    config = VQKDConfig(
        patch=encoder["patch_size"],
        width=encoder["embed_dim"],
        depth=encoder["depth"],
        decoder_depth=decoder["depth"],
        heads=encoder["num_heads"],
        mlp_ratio=int(encoder["mlp_ratio"]),
        codes=raw["n"],
        code_dim=raw["d"],
        features=raw["decoder_out_dim"],
        position_grid=(grid, grid),
        image_size=(raw["img"], raw["img"]),
    )
    model = VQKD(config).eval()
    model.load_state_dict(to_native(case.weights))
    with torch.no_grad():
        case.check("out.encoder_patch_tokens", model.encoder(x))
        z = model.latents(x)
        case.check("out.pre_quant", z.flatten(2).transpose(1, 2))
        found = model.quantizer(z)
        case.check("out.indices", found.codes.flatten())
        case.check_value(model.encode(x[:, None]).flatten(), case.io["out.indices"], "encode")
        case.check("out.quantized", found.values)
        case.check("out.loss", found.commitment)
        predicted = model.predict(found.values)
        case.check("out.decoder_out", predicted)
        case.check(
            "out.cosine_rec_loss",
            1 - cosine_similarity(case.io["in.rec_target"], predicted, dim=-1).mean(),
        )
        case.check("out.codebook_entry", model.codebook[found.codes].flatten(1))
        model.quantizer.count(hits_of(found.codes, model.quantizer))
        case.check("out.cluster_size_after", model.quantizer.cluster_size)
        case.check("out.alt_encoder_patch_tokens", model.encoder(alt))
        case.check_value(
            model.encode(alt[None]).flatten(), case.io["out.alt_indices"], "encode, other size"
        )
