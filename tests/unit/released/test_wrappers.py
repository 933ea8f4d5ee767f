"""Every foreign reader takes names as compilers, engines and trainers leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.taming_files import network, released
from torch import Tensor

from foreact.errors import UserError
from foreact.families.codes.released.kl_vae import read_kl_vae
from foreact.families.codes.released.llamagen import read_llamagen
from foreact.families.codes.released.llamagen_names import to_reference as llamagen_names
from foreact.families.codes.released.taming import read_taming
from foreact.families.codes.released.vqkd import read_vqkd
from foreact.families.driving.released.read import read_vavam_checkpoint
from foreact.families.uva.released.read import read_uva_checkpoint
from foreact.families.voc.released.gpt2 import read_gpt2
from foreact.released.content import read_content
from foreact.released.convert import convert, recognise
from foreact.tokenizers.vq import VQConfig, VQTokenizer

GOLDENS = Path(__file__).parents[2] / "parity/goldens"
State = dict[str, Tensor]


def llamagen_state() -> State:
    torch.manual_seed(0)
    config = VQConfig(channels=32, multipliers=(1, 2), blocks=1, features=8, codes=8, code_dim=4)
    return llamagen_names(VQTokenizer(config).state_dict())


READERS: dict[str, tuple[Callable[[], State], Callable[[Path, Any], Any]]] = {
    "kl_vae": (
        lambda: load_file(GOLDENS / "uva/vae_encode_decode/weights.safetensors"),
        read_kl_vae,
    ),
    "llamagen": (llamagen_state, read_llamagen),
    "taming": (lambda: released(network()), read_taming),
    "vqkd": (
        lambda: load_file(GOLDENS / "voc/vqkd_encode/weights.safetensors"),
        lambda path, payload: read_vqkd(path, payload, heads=2),
    ),
    "voc": (
        lambda: load_file(GOLDENS / "voc/gpt2_lm/weights.safetensors"),
        lambda path, payload: read_gpt2(path, payload, heads=4),
    ),
}
WRAPS: dict[str, Callable[[str], str]] = {
    "DDP of compiled": lambda name: f"module._orig_mod.{name}",
    "compiled DDP": lambda name: f"_orig_mod.module.{name}",
    "Lightning": lambda name: f"model.net.{name}",
    "FSDP inside": lambda name: name.replace(".0.", "._fsdp_wrapped_module.0._orig_mod.", 1),
    "DeepSpeed": lambda name: f"_forward_module.network._fsdp_wrapped_module.module.{name}",
}


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("entry", [None, "state_dict", "model", "module"])
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("reader", READERS)
def test_wrappers_in_any_order_and_depth(
    reader: str, wrap: Callable[[str], str], entry: str | None
) -> None:
    make, read = READERS[reader]
    state = make()
    plain = read(Path("x"), {"model": state})
    wrapped = {wrap(name): tensor for name, tensor in state.items()}
    payload = wrapped if entry is None else {entry: wrapped, "epoch": 1}
    assert recognise(payload, Path("x")).name == reader
    found = read(Path("x"), payload)
    assert found.config == plain.config or reader == "taming"
    assert same(found.state, plain.state)


@pytest.mark.parametrize("reader", READERS)
def test_twins_count_once_and_must_be_equal(reader: str) -> None:
    make, read = READERS[reader]
    state = make()
    twins = {f"net._orig_mod.{k}": v for k, v in state.items()}
    twins |= {f"network.{k}": v.clone() for k, v in state.items()}
    found = read(Path("x"), {"model": twins})
    assert same(found.state, read(Path("x"), {"model": state}).state)
    assert f"{len(state)} tensors stored under two names, equal" in found.report
    name = next(k for k, v in state.items() if v.is_floating_point())
    twins[f"network.{name}"] += 1
    with pytest.raises(UserError, match=r"its two copies of .* differ"):
        read(Path("x"), {"model": twins})


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_uva_and_vavam_files_too(tmp_path: Path, wrap: Callable[[str], str]) -> None:
    path = GOLDENS / "uva/checkpoint_pusht/reference_format.ckpt"
    payload = read_content(path)
    plain = read_uva_checkpoint(path, heads=(2, 2), payload=payload)
    states = {
        kind: {wrap(k): v for k, v in payload["state_dicts"][kind].items()}
        for kind in ("model", "ema_model")
    }
    found = read_uva_checkpoint(path, heads=(2, 2), payload=payload | {"state_dicts": states})
    assert found.uva == plain.uva
    assert same(found.uva_state, plain.uva_state)
    assert same(found.vae_state, plain.vae_state)

    path = GOLDENS / "vavam/weights_vam/model.ckpt"
    payload = read_content(path)
    grid = (2, payload["state_dict"]["vam.gpt.transformer.wse.weight"].shape[0] // 2)
    plain = read_vavam_checkpoint(path, payload=payload, grid=grid)
    bare = {k.removeprefix("vam."): v for k, v in payload["state_dict"].items()}
    state = {wrap(k): v for k, v in bare.items()}
    found = read_vavam_checkpoint(path, payload=payload | {"state_dict": state}, grid=grid)
    assert found.config == plain.config
    assert same(found.state, plain.state)


def test_folders_and_files_of_hugging_face(tmp_path: Path) -> None:
    """Whole, in shards, or a lone file of any name; known by what is in it."""
    state = {k: v for k, v in READERS["voc"][0]().items() if "lm_head" not in k}
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text('\ufeff{"model_type": "gpt2", "n_head": 4}')
    save_file(state, hub / "model.safetensors")
    (hub / "._model.safetensors").write_bytes(bytes(200))
    whole = read_gpt2(hub)
    assert whole.config.heads == 4
    assert same(read_gpt2(hub / "model.safetensors").state, whole.state)

    split = tmp_path / "split"
    split.mkdir()
    (split / "config.json").write_bytes((hub / "config.json").read_bytes())
    names = sorted(state)
    for part, chosen in enumerate((names[::2], names[1::2])):
        save_file({k: state[k] for k in chosen}, split / f"model-0000{part}.safetensors")
    weight_map = {k: f"model-0000{i % 2}.safetensors" for i, k in enumerate(names)}
    index = split / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert same(read_gpt2(split).state, whole.state)
    (split / "model-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-00001\.safetensors"):
        read_gpt2(split)

    odd = tmp_path / "weights.dat"
    odd.write_bytes((hub / "model.safetensors").read_bytes())
    assert same(read_gpt2(odd, heads=4).state, whole.state)
    odd.write_bytes(odd.read_bytes()[:-100])
    with pytest.raises(UserError, match="is cut short, damaged or no safetensors file"):
        read_gpt2(odd, heads=4)


def test_autoencoders_convert_from_safetensors(tmp_path: Path) -> None:
    save_file(READERS["kl_vae"][0](), tmp_path / "kl16.safetensors")
    torch.save({"model": READERS["kl_vae"][0]()}, tmp_path / "kl16.ckpt")
    results = [convert(tmp_path / f"kl16.{end}", tmp_path / end) for end in ("safetensors", "ckpt")]
    assert results[0].hash == results[1].hash
