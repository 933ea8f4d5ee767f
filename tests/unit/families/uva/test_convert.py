"""Foreign files -> our folders: what is read, derived and reported, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.uva_files import MICRO, reference_like
from torch import Tensor

from foreact.checkpoints import shipped
from foreact.checkpoints.format import build, load_checkpoint, load_tokenizer, save_checkpoint
from foreact.checkpoints.verify import verify
from foreact.errors import UserError
from foreact.families.uva.model import UVA, UVAConfig
from foreact.families.uva.released.config import STATES
from foreact.families.uva.released.names import to_reference
from foreact.families.uva.released.read import init_from_mar, read_uva_checkpoint
from foreact.released.convert import convert
from foreact.released.pickles import read_torch_file
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig
from foreact.types import ActionSpec, StreamSpec

GOLDENS = Path(__file__).parents[3] / "parity/goldens/uva"
REFERENCE_FILE = GOLDENS / "checkpoint_pusht/reference_format.ckpt"
SPEC = StreamSpec(
    cameras={"img": (96, 96)},
    fps=10,
    action=ActionSpec(
        names=("x", "y"), units=("px", "px"), frame="world", mode="absolute", rate_hz=10
    ),
)


@pytest.fixture(scope="module")
def payload() -> dict[str, Any]:
    return read_torch_file(REFERENCE_FILE)


def changed(payload: dict[str, Any], path: Path, change: Any) -> Path:
    """The reference file with a change, as a file of its own."""
    content = {"cfg": copy.deepcopy(payload["cfg"]), "pickles": payload["pickles"]}
    content["state_dicts"] = {k: dict(payload["state_dicts"][k]) for k in ("model", "ema_model")}
    change(content)
    torch.save(content, path)
    return path


# --- UVA ------------------------------------------------------------------------------------------


def test_uva_file_to_folder(tmp_path: Path) -> None:
    result = convert(REFERENCE_FILE, tmp_path / "uva", spec=SPEC, heads=(2, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["uva"]
    checkpoint = load_checkpoint(tmp_path / "uva")
    assert checkpoint.hash == result.hash
    assert checkpoint.spec is not None
    checkpoint.spec.require_equal(SPEC, "the folder", "the task")
    assert checkpoint.config["camera"] == "img"
    assert checkpoint.stats is not None
    assert set(checkpoint.stats.streams) == {"action", "agent_pos"}
    assert checkpoint.card["facts"]["execute"] == 8
    assert checkpoint.card["source"] == "reference_format.ckpt"
    reference = read_uva_checkpoint(REFERENCE_FILE, heads=(2, 2))
    model = build(checkpoint)
    assert isinstance(model, UVA)
    assert all(torch.equal(v, reference.uva_state[k]) for k, v in model.state_dict().items())
    tokenizer = load_tokenizer(checkpoint)
    assert isinstance(tokenizer, KLVAE)
    assert all(torch.equal(v, reference.vae_state[k]) for k, v in tokenizer.state_dict().items())
    text = verify(tmp_path / "uva")
    assert result.hash in text
    assert "tokenizer  embedded" in text
    assert str(tmp_path) not in (tmp_path / "uva" / "card.json").read_text()


def test_raw_weights_differ_from_averaged_ones(tmp_path: Path) -> None:
    averaged = convert(REFERENCE_FILE, tmp_path / "a", heads=(2, 2))
    raw = convert(REFERENCE_FILE, tmp_path / "b", heads=(2, 2), raw=True)
    assert averaged.hash != raw.hash
    small = convert(REFERENCE_FILE, tmp_path / "c", heads=(2, 2), dtype=torch.float16)
    assert small.hash != averaged.hash
    assert (tmp_path / "c/model.safetensors").stat().st_size < 0.7 * (
        tmp_path / "a/model.safetensors"
    ).stat().st_size


def test_every_entry_is_used_or_named(tmp_path: Path, payload: dict[str, Any]) -> None:
    def add(content: dict[str, Any]) -> None:
        state = content["state_dicts"]["ema_model"]
        state["text_model.embed.weight"] = torch.ones(2)
        content["state_dicts"]["ema_model"] = {f"module.{k}": v for k, v in state.items()}

    file = changed(payload, tmp_path / "x.ckpt", add)
    report = read_uva_checkpoint(file, heads=(2, 2)).report
    for part in (
        "model: 108 tensors used",
        "vae_model: 124 tensors used",
        "normalizer: 12 tensors used",
        "left out: _dummy_variable",
        "text_model: the frozen CLIP text encoder, kept where --text-vocabulary is given",
        "left out: normalizer.params_dict.image.scale",
        "not read: state_dicts.model",
        "global_step: 1234",
    ):
        assert part in report

    def unknown(content: dict[str, Any]) -> None:
        content["state_dicts"]["ema_model"]["surprise.weight"] = torch.ones(2)

    with pytest.raises(UserError, match=r"1 entries of no known part: surprise\.weight"):
        read_uva_checkpoint(changed(payload, tmp_path / "y.ckpt", unknown), heads=(2, 2))


def drop_ema(content: dict[str, Any]) -> None:
    del content["state_dicts"]["ema_model"]


def drop_entry(content: dict[str, Any]) -> None:
    del content["cfg"]["model"]["policy"]["shift_action"]


def odd_entry(content: dict[str, Any]) -> None:
    content["cfg"]["model"]["policy"]["shape_meta"]["obs"] = 3


def other_width(content: dict[str, Any]) -> None:
    content["cfg"]["model"]["policy"]["autoregressive_model_params"]["diffloss_w"] = 1024


def other_action(content: dict[str, Any]) -> None:
    content["cfg"]["model"]["policy"]["shape_meta"]["action"]["shape"] = [7]


def other_vae(content: dict[str, Any]) -> None:
    content["cfg"]["model"]["policy"]["vae_model_params"]["ddconfig"]["ch_mult"] = [1, 1, 2, 2, 4]


def drop_tensor(content: dict[str, Any]) -> None:
    del content["state_dicts"]["ema_model"]["model.z_proj.weight"]


def drop_bias(content: dict[str, Any]) -> None:
    del content["state_dicts"]["ema_model"]["model.z_proj.bias"]


def drop_vae(content: dict[str, Any]) -> None:
    state = content["state_dicts"]["ema_model"]
    content["state_dicts"]["ema_model"] = {
        k: v for k, v in state.items() if not k.startswith("vae_model.")
    }


def unknown_mode(content: dict[str, Any]) -> None:
    content["cfg"]["model"]["policy"]["selected_training_mode"] = "sleep_model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_ema, r"has no 'ema_model' weights; convert it with --raw"),
        (drop_entry, r"its cfg lacks 'model\.policy\.shift_action'"),
        (odd_entry, r"odd form"),
        (
            other_width,
            r"its cfg has diffloss_d, diffloss_w = \(1, 1024\), its tensors have \(1, 12\)",
        ),
        (other_action, r"shape_meta\.action\.shape = \[7\], its tensors have \[2\]"),
        (other_vae, r"ddconfig\.ch_mult = \[1, 1, 2, 2, 4\]"),
        (drop_tensor, r"lacks the tensor model\.z_proj\.weight"),
        (drop_bias, r"z_proj\.bias"),
        (drop_vae, r"holds no whole autoencoder"),
        (unknown_mode, r"unknown mode 'sleep_model'"),
    ],
)
def test_contradictions_write_nothing(
    tmp_path: Path, payload: dict[str, Any], change: Any, message: str
) -> None:
    file = changed(payload, tmp_path / "x.ckpt", change)
    with pytest.raises(UserError, match=message):
        convert(file, tmp_path / "out" / "uva", heads=(2, 2))
    assert not (tmp_path / "out").exists()


def test_heads_are_asked_for_and_specs_compared(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="model size 'mar_micro', whose attention heads are not known"
    ):
        convert(REFERENCE_FILE, tmp_path / "x")
    with pytest.raises(UserError, match="was trained on the cameras"):
        convert(
            REFERENCE_FILE,
            tmp_path / "x",
            heads=(2, 2),
            spec=replace(SPEC, cameras={"img": (64, 64)}),
        )
    with pytest.raises(UserError, match="has 2 action dims, the task has None"):
        convert(REFERENCE_FILE, tmp_path / "x", heads=(2, 2), spec=replace(SPEC, action=None))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "predict_action": False,
            "modes": {"video": 1.0},
            "action_head_depth": 6,
            "action_head_width": 1024,
        },
        {"text_dim": 512, "action_dim": 10},
        {"past_actions": True, "modes": {"policy": 1.0, "joint": 1.0}},
        {
            "proprioception": STATES[0],
            "proprioception_steps": 4,
            "text_dim": 512,
            "proprioception_prediction": {"robot0_eef_rot_axis_angle_wrt_start": 6},
            "uneven_context": True,
        },
        {
            "proprioception": STATES[1],
            "wrist_camera": "hand",
            "proprioception_prediction": STATES[1],
        },
        {"proprioception": STATES[1], "wrist_camera": "hand", "wrist_prediction": False},
        {"wrist_camera": "hand", "wrist_context": False},
    ],
    ids=[
        "plain",
        "video only",
        "text",
        "past actions",
        "umi",
        "tool hang",
        "wrist shown",
        "wrist foreseen",
    ],
)
def test_config_is_read_off_the_file(
    tmp_path: Path, payload: dict[str, Any], options: dict[str, Any]
) -> None:
    config = UVAConfig(**(MICRO | options))
    content = reference_like(config, payload, uneven=config.uneven_context)
    torch.save(content, tmp_path / "x.ckpt")
    found = read_uva_checkpoint(tmp_path / "x.ckpt", ema=False, heads=(2, 1))
    assert found.uva == config
    torch.manual_seed(0)
    assert all(torch.equal(v, found.uva_state[k]) for k, v in UVA(config).state_dict().items())
    assert found.normalizer is None


# --- autoencoder and MAR --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae_state() -> dict[str, Tensor]:
    return load_file(GOLDENS / "vae_encode_decode/weights.safetensors")


def test_kl16_to_folder(tmp_path: Path, vae_state: dict[str, Tensor]) -> None:
    torch.save({"model": vae_state, "epoch": 3}, tmp_path / "kl16.ckpt")
    result = convert(tmp_path / "kl16.ckpt", tmp_path / "vae")
    n = len(vae_state)
    assert result.report.splitlines() == [
        f"autoencoder: {n} of {n} tensors used",
        "not read: epoch",
    ]
    vae = build(load_checkpoint(tmp_path / "vae"))
    assert isinstance(vae, KLVAE)
    assert (vae.config.channels, vae.config.blocks, vae.config.latent_channels) == (32, 1, 4)
    io = load_file(GOLDENS / "vae_encode_decode/io.safetensors")
    torch.testing.assert_close(vae.moments(io["in/image"]), io["out/moments"], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="belongs to no task"):
        convert(tmp_path / "kl16.ckpt", tmp_path / "again", spec=SPEC)


def test_kl16_with_foreign_or_missing_tensors(tmp_path: Path, vae_state: dict[str, Tensor]) -> None:
    torch.save({"model": vae_state | {"loss.logvar": torch.ones(1)}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"loss\.logvar"):
        convert(tmp_path / "a.ckpt", tmp_path / "vae")
    torch.save(
        {"model": {k: v for k, v in vae_state.items() if "conv_in" not in k}}, tmp_path / "b.ckpt"
    )
    with pytest.raises(UserError, match="holds no whole autoencoder"):
        convert(tmp_path / "b.ckpt", tmp_path / "vae")


def mar_file(path: Path, config: UVAConfig) -> Path:
    torch.manual_seed(3)
    theirs = to_reference(UVA(config).state_dict(), config)
    shared = (
        "z_proj.",
        "z_proj_ln.",
        "encoder_",
        "decoder_embed",
        "decoder_blocks",
        "decoder_norm",
        "diffloss.",
    )
    state = {k: v for k, v in theirs.items() if k.startswith(shared)}
    state |= {"class_emb.weight": torch.ones(5, 16), "mask_token": torch.ones(1, 1, 8)}
    torch.save({"model_ema": state, "model": state, "optimizer": {}, "epoch": 1}, path)
    return path


def test_init_from_mar_accounts_for_every_tensor(tmp_path: Path) -> None:
    config = UVAConfig(**MICRO)
    file = mar_file(tmp_path / "mar.pth", config)
    source = read_torch_file(file)["model_ema"]
    with pytest.raises(UserError, match="image model"):
        convert(file, tmp_path / "out")

    model = UVA(config)
    before = model.transformer.join.weight.clone()
    account = init_from_mar(model, file)
    assert torch.equal(model.transformer.join.weight, before)
    for ours, theirs in (
        ("transformer.encoder.1.mlp.up.weight", "encoder_blocks.1.mlp.fc1.weight"),
        ("heads.video.denoiser.input.weight", "diffloss.net.input_proj.weight"),
    ):
        assert torch.equal(model.state_dict()[ours], source[theirs])
    assert set(account.skipped) == {"class_emb.weight", "mask_token"}
    assert len(account.loaded) + len(account.skipped) == len(source)
    assert set(account.loaded) | set(account.untouched) == set(model.state_dict())
    assert "skipped: class_emb.weight (the model has no such tensor)" in str(account)

    wider = UVA(replace(config, video_head_width=16))
    account = init_from_mar(wider, file)
    assert (
        account.skipped["heads.video.denoiser.input.weight"]
        == "shape (8, 4), the model has (16, 4)"
    )

    flow = UVA(replace(config, head="flow"))
    account = init_from_mar(flow, file)
    assert not [name for name in account.loaded if name.startswith("heads.")]
    assert "diffloss.net.input_proj.weight" in account.skipped

    other: dict[str, Any] = {
        "width": 32,
        "decoder_width": 32,
        "latent_channels": 3,
        "video_head_width": 32,
        "depth": 1,
    }
    with pytest.raises(UserError, match=r"No tensor of .* fits"):
        init_from_mar(UVA(UVAConfig(**(MICRO | other))), file)


def test_mar_starts_from_any_file_of_it(tmp_path: Path) -> None:
    """Wrapped, bare or as safetensors; its average is taken where there is one."""
    config = UVAConfig(**MICRO)
    source = read_torch_file(mar_file(tmp_path / "mar.pth", config))["model_ema"]
    loaded = init_from_mar(UVA(config), tmp_path / "mar.pth").loaded
    other = {k: torch.zeros_like(v) for k, v in source.items()}
    wrapped = {f"module._orig_mod.{k}": v for k, v in source.items()}
    torch.save({"model": other, "model_ema": wrapped}, tmp_path / "wrapped.pth")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text("{}")
    save_file({k: v.clone() for k, v in source.items()}, tmp_path / "hub/model.safetensors")
    for file in ("wrapped.pth", "hub", "hub/model.safetensors"):
        model = UVA(config)
        assert set(init_from_mar(model, tmp_path / file).loaded) == set(loaded)
        name, theirs = "transformer.encoder.1.mlp.up.weight", "encoder_blocks.1.mlp.fc1.weight"
        assert torch.equal(model.state_dict()[name], source[theirs])
    with pytest.raises(UserError, match=r"foreact train uva .*--init .*mar\.pth"):
        convert(tmp_path / "mar.pth", tmp_path / "out")


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        init_from_mar(UVA(UVAConfig(**MICRO)), tmp_path / "none.pth")
    with pytest.raises(UserError, match="There is no file"):
        convert(tmp_path / "none.ckpt", tmp_path / "out")
    torch.save({"weights": torch.ones(1), "step": 3}, tmp_path / "x.pt")
    with pytest.raises(
        UserError, match=r"none of the known checkpoints .* it holds: weights, step"
    ):
        convert(tmp_path / "x.pt", tmp_path / "out")
    with pytest.raises(UserError, match="'model_ema', found none"):
        init_from_mar(UVA(UVAConfig(**MICRO)), tmp_path / "x.pt")
    with pytest.raises(UserError, match="is no UVA checkpoint"):
        read_uva_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "out").exists()


# --- verify and shipped ---------------------------------------------------------------------------

TINY_VAE = KLVAEConfig(
    channels=8,
    multipliers=(1, 1),
    blocks=1,
    latent_channels=2,
    norm_groups=4,
    image_size=(8, 8),
    attention_resolutions=(),
)


def tiny_vae(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_checkpoint(path, family="kl_vae", config=TINY_VAE, state=KLVAE(TINY_VAE).state_dict())
    return path


def test_verify_finds_nan_and_an_exchanged_tokenizer(tmp_path: Path) -> None:
    state = KLVAE(TINY_VAE).state_dict()
    state["to_moments.bias"] = torch.full_like(state["to_moments.bias"], float("nan"))
    save_checkpoint(tmp_path / "nan", family="kl_vae", config=TINY_VAE, state=state)
    with pytest.raises(UserError, match=r"NaN or infinite values in to_moments\.bias"):
        verify(tmp_path / "nan")

    config = UVAConfig(**MICRO)
    tiny_vae(tmp_path / "right")
    tiny_vae(tmp_path / "wrong", seed=1)
    save_checkpoint(
        tmp_path / "m",
        family="uva",
        config=config,
        state=UVA(config).state_dict(),
        tokenizer=tmp_path / "right",
    )
    assert "tokenizer  embedded" in verify(tmp_path / "m")
    (tmp_path / "wrong/model.safetensors").replace(tmp_path / "m/tokenizer/model.safetensors")
    with pytest.raises(UserError, match=r"embeds the tokenizer .* names another one"):
        verify(tmp_path / "m")
    with pytest.raises(UserError, match="was trained on the kl_vae tokenizer"):
        load_tokenizer(load_checkpoint(tmp_path / "m"))


def test_config_and_weights_that_disagree(tmp_path: Path) -> None:
    tiny_vae(tmp_path / "v")
    file = tmp_path / "v/config.json"
    raw = json.loads(file.read_text())
    raw["config"]["latent_channels"] = 3
    file.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="do not fit their config: 7 of another shape"):
        verify(tmp_path / "v")


def test_shipped_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_vae(tmp_path / "ours" / "vae-pusht")
    (tmp_path / "ours" / "not-a-checkpoint").mkdir()
    monkeypatch.setattr(shipped, "ROOT", tmp_path / "ours")
    assert shipped.names() == ["vae-pusht"]
    assert (
        shipped.shipped("vae-pusht")
        == shipped.resolve("vae-pusht")
        == tmp_path / "ours" / "vae-pusht"
    )
    with pytest.raises(UserError, match="did you mean 'vae-pusht'"):
        shipped.shipped("vae-push")
    with pytest.raises(
        UserError, match=r"neither a checkpoint .* nor a shipped .*; did you mean 'vae-pusht'"
    ):
        shipped.resolve("vae-pust")
    local = tiny_vae(tmp_path / "local")
    assert shipped.resolve(str(local)) == local
    with pytest.raises(UserError, match=r"holds no config\.json"):
        shipped.resolve(tmp_path)
    monkeypatch.setattr(shipped, "ROOT", tmp_path / "nothing")
    assert shipped.names() == []


def test_everything_shipped_verifies() -> None:
    for name in shipped.names():
        assert "hash" in verify(shipped.shipped(name))
