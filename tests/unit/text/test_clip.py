"""CLIP's text tower against torch's own layers, from every kind of file; what is no CLIP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.text_encoders import clip_state, write_clip, write_clip_vocabulary
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.text.clip import clip_from_state, clip_network, open_clip
from foreact.text.export import export_clip
from foreact.text.frozen import FrozenEncoder

CPU = torch.device("cpu")
START, END = 49_406, 49_407


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return clip_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> Path:
    path = tmp_path_factory.mktemp("clip")
    write_clip(path, state)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> FrozenEncoder:
    return open_clip(folder, device=CPU)


def by_torch(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Features (B, dim) at the last token of ids (B, N), by torch's layer of a transformer."""
    width = state["text_projection.weight"].shape[1]
    x = state["text_model.embeddings.token_embedding.weight"][ids]
    x = x + state["text_model.embeddings.position_embedding.weight"][: ids.shape[1]]
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    for i in range(2):
        name = f"text_model.encoder.layers.{i}"
        layer = nn.TransformerEncoderLayer(
            width,
            nhead=2,
            dim_feedforward=2 * width,
            dropout=0.0,
            activation=lambda t: t * torch.sigmoid(1.702 * t),
            batch_first=True,
            norm_first=True,
        )
        qkv = [f"{name}.self_attn.{p}_proj" for p in ("q", "k", "v")]
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": torch.cat([state[f"{p}.weight"] for p in qkv]),
                "self_attn.in_proj_bias": torch.cat([state[f"{p}.bias"] for p in qkv]),
            }
            | {
                f"{ours}.{part}": state[f"{name}.{theirs}.{part}"]
                for ours, theirs in {
                    "self_attn.out_proj": "self_attn.out_proj",
                    "linear1": "mlp.fc1",
                    "linear2": "mlp.fc2",
                    "norm1": "layer_norm1",
                    "norm2": "layer_norm2",
                }.items()
                for part in ("weight", "bias")
            }
        )
        x = layer(x, src_mask=mask)
    weight, bias = (state[f"text_model.final_layer_norm.{part}"] for part in ("weight", "bias"))
    x = nn.functional.layer_norm(x[:, -1], (width,), weight, bias)
    return x @ state["text_projection.weight"].T


@torch.no_grad()
def test_features_are_those_of_torchs_layers(
    state: dict[str, Tensor], encoder: FrozenEncoder
) -> None:
    ids = torch.tensor([[START, 514, 517, END]])  # "open door"
    expected = by_torch(state, ids).numpy()
    found = encoder.encode(["open door"])
    assert found.dtype == np.float32
    assert found.shape == (1, encoder.dim) == (1, 24)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert not 0.9 < np.linalg.norm(found) < 1.1  # not normalised


@torch.no_grad()
def test_padding_after_the_end_changes_nothing(state: dict[str, Tensor]) -> None:
    """The reference pads to 30 with the end mark, and masks; open_clip pads with 0."""
    network = clip_network(state, "state")
    texts = [[START, 514, END], [START, 517, 514, 512, 300, END]]
    for pad in (END, 0):
        padded = torch.tensor([ids + [pad] * (30 - len(ids)) for ids in texts])
        alone = torch.cat([network(torch.tensor([ids])) for ids in texts])
        torch.testing.assert_close(network(padded), alone, rtol=1e-4, atol=1e-4)


def test_a_texts_features_do_not_depend_on_the_others(encoder: FrozenEncoder) -> None:
    texts = ["open", "open door", "door 42 !"]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_array_equal(together, alone)
    assert len(np.unique(together.round(3), axis=0)) == 3
    assert encoder.encode([]).shape == (0, 24)


def test_the_kind_of_file_does_not_matter(
    tmp_path: Path, state: dict[str, Tensor], encoder: FrozenEncoder
) -> None:
    write_clip_vocabulary(tmp_path, one_file=True)
    torch.save(state, tmp_path / "pytorch_model.bin")
    other = open_clip(tmp_path, device=CPU)
    assert other.hash == encoder.hash
    np.testing.assert_array_equal(other.encode(["open"]), encoder.encode(["open"]))


def test_half_precision_is_another_encoder(
    tmp_path: Path, state: dict[str, Tensor], encoder: FrozenEncoder
) -> None:
    write_clip(tmp_path, {name: t.half() for name, t in state.items()})
    other = open_clip(tmp_path, device=CPU)
    assert other.hash != encoder.hash
    found = other.encode(["open door"])
    np.testing.assert_allclose(found, encoder.encode(["open door"]), rtol=0.05, atol=0.2)


def test_the_text_tower_of_a_whole_clip_is_exported(
    tmp_path: Path, folder: Path, state: dict[str, Tensor], encoder: FrozenEncoder
) -> None:
    tower = clip_from_state(state, "libero10.ckpt")
    assert set(state) - set(tower) == {
        "text_model.embeddings.position_ids",
        "vision_model.embeddings.class_embedding",
        "visual_projection.weight",
        "logit_scale",
    }
    out = tmp_path / "encoder"
    export_clip(state, folder, out, "libero10.ckpt")
    again = open_clip(out, device=CPU)
    assert again.hash == encoder.hash
    np.testing.assert_array_equal(again.encode(["door"]), encoder.encode(["door"]))
    assert [p.name for p in tmp_path.iterdir()] == ["encoder"]
    with pytest.raises(UserError, match="exists; choose another folder for the text encoder"):
        export_clip(state, folder, out, "libero10.ckpt")


def test_an_export_without_a_vocabulary_leaves_nothing(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    with pytest.raises(UserError, match=r"should hold vocab.json and merges.txt or tokenizer"):
        export_clip(state, tmp_path, tmp_path / "encoder", "libero10.ckpt")
    assert not list(tmp_path.iterdir())


def _without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(name)


def _with(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({name: tensor})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            _without("text_model.encoder.layers.0.mlp.fc1.bias"),
            r"lacks text_model.encoder.layers.0.mlp.fc1.bias; take the files as published",
        ),
        (_without("text_projection.weight"), "lacks text_projection.weight"),
        (_with("text_model.extra", torch.ones(1)), "has the unknown text_model.extra;"),
        (
            _with("text_model.encoder.layers.3.mlp.fc1.bias", torch.ones(1)),
            r"lacks .* and 28 more",  # a block 3 implies a block 2
        ),
        (
            _with("text_model.final_layer_norm.bias", torch.ones(7)),
            r"'norm.bias' should be \(128,\), found \(7,\)",
        ),
        (_with("text_projection.weight", torch.ones(24, 5)), r"should be \(24, 128\), found"),
    ],
)
def test_what_is_no_text_tower_is_refused(
    state: dict[str, Tensor], spoil: Callable[[dict[str, Tensor]], object], sentence: str
) -> None:
    spoiled = dict(state)
    spoil(spoiled)
    with pytest.raises(UserError, match=sentence):
        clip_network(spoiled, "x.ckpt")


def test_long_and_empty_texts_are_refused(encoder: FrozenEncoder) -> None:
    encoder.encode(["door " * 75])  # 77 with the marks
    with pytest.raises(UserError, match=r"reads up to 77 word pieces, .* 'door door .* has 78;"):
        encoder.encode(["open", "door " * 76])
    for text in ("", " \n"):
        with pytest.raises(UserError, match="An instruction is empty"):
            encoder.encode([text])


def test_a_clip_needs_its_folder_and_its_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the folder of its files: clip:FOLDER"):
        open_clip(None, device=CPU)
    write_clip_vocabulary(tmp_path)
    with pytest.raises(UserError, match=r"should hold model.safetensors or pytorch_model.bin"):
        open_clip(tmp_path, device=CPU)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    """Such as that of LAION's CLIPs, whose tensors have the same names and shapes."""
    write_clip_vocabulary(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"hidden_act": "gelu"}}))
    with pytest.raises(UserError, match="a CLIP with the activation 'gelu'"):
        open_clip(tmp_path, device=CPU)


def test_weights_of_another_vocabulary_are_refused(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    tokens = "text_model.embeddings.token_embedding.weight"
    write_clip(tmp_path, {**state, tokens: state[tokens][:100].clone()})
    with pytest.raises(UserError, match=r"know 100 token ids, those of CLIP 49,408"):
        open_clip(tmp_path, device=CPU)


def test_damaged_and_unsafe_weights_are_refused(tmp_path: Path) -> None:
    write_clip_vocabulary(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100)}, file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match="is damaged or holds more than tensors"):
        open_clip(tmp_path, device=CPU)
    file.unlink()
    for content in (SimpleNamespace(a=1), [torch.ones(1)], {"a": 1}):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="is damaged or holds more than tensors"):
            open_clip(tmp_path, device=CPU)
