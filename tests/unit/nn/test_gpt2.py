"""GPT-2: causality, caches, fast products, and Hugging Face's weights in and out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from foreact.errors import UserError
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.model import VOC
from foreact.families.voc.released.gpt2 import (
    config_of,
    occupancy_state,
    read_gpt2,
    reference_key,
    to_native,
    to_reference,
    write_gpt2,
)
from foreact.nn import gpt2
from foreact.nn.gpt import KVCache
from foreact.nn.gpt2 import GPT2, GPT2Config

CONFIG = GPT2Config(vocab=11, positions=20, width=8, heads=2, layers=3)


def tiny(config: GPT2Config = CONFIG, seed: int = 0) -> GPT2:
    """A model whose norms and biases matter."""
    model = GPT2(config).eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=rng) + (p.ndim == 1))
    return model


def some_tokens(batch: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(
        CONFIG.vocab, (batch, count), generator=torch.Generator().manual_seed(seed)
    )


# --- the network ----------------------------------------------------------------------------------


def test_a_token_changes_only_the_predictions_after_it() -> None:
    model, tokens = tiny(), some_tokens(2, 12)
    before = model.logits(tokens)
    tokens[:, 5] = (tokens[:, 5] + 1) % CONFIG.vocab
    after = model.logits(tokens)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert (after[:, 5] - before[:, 5]).abs().amax(-1).min() > 1e-3


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 17), max_size=3), seed=st.integers(0, 99))
def test_reading_in_pieces_equals_reading_at_once(cuts: list[int], seed: int) -> None:
    model, tokens = tiny(seed=seed), some_tokens(2, 18, seed=seed)
    whole = model(model.embed(tokens))
    piecewise, shortcut = ([KVCache(18) for _ in model.blocks] for _ in range(2))
    for start, stop in zip([0, *sorted(set(cuts))], [*sorted(set(cuts)), 18], strict=True):
        x = model.embed(tokens[:, start:stop])
        torch.testing.assert_close(model(x, piecewise), whole[:, start:stop], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            model.last(x, shortcut), whole[:, stop - 1], atol=1e-4, rtol=1e-4
        )
    assert piecewise[0].length == shortcut[-1].length == 18


@pytest.mark.parametrize("elements", [1, 500, 2000])
def test_a_large_batch_is_run_in_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    model, tokens = tiny(), some_tokens(5, 12)
    whole = model.logits(tokens)
    sizes: list[int] = []
    inner = model._run
    monkeypatch.setattr(model, "_run", lambda x, caches: sizes.append(len(x)) or inner(x, caches))
    monkeypatch.setattr(gpt2, "CPU_ELEMENTS", elements)
    torch.testing.assert_close(model.logits(tokens), whole)
    assert sizes == {1: [1] * 5, 500: [2, 1, 1, 1], 2000: [5]}[elements]


def test_dropout_acts_in_training_only() -> None:
    config = GPT2Config(
        vocab=11, positions=20, width=8, heads=2, layers=1, dropout=0.5, attention_dropout=0.5
    )
    model, tokens = tiny(config), some_tokens(4, 10)
    torch.testing.assert_close(model.logits(tokens), model.logits(tokens))
    model.train()
    assert (model.logits(tokens) - model.logits(tokens)).abs().max() > 1e-2


def test_initial_weights_have_the_published_deviations() -> None:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab=500, positions=64, width=64, heads=2, layers=8))
    for name, p in model.named_parameters():
        if name.endswith("norm.weight") or (".norm" in name and name.endswith("weight")):
            assert (p == 1).all()
        elif name.endswith("bias"):
            assert (p == 0).all()
        else:
            residual = name.endswith(("out.weight", "down.weight"))
            assert p.std().item() == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.05)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"heads": 3}, r"width \(8\) should be a multiple of its heads \(3\)"),
        ({"layers": 0}, "layers should be at least 1, found 0"),
        ({"dropout": 1.0}, r"dropout should be in \[0, 1\), found 1.0"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        GPT2Config(**{"vocab": 11, "positions": 20, "width": 8, "heads": 2, "layers": 3, **change})


# --- Hugging Face's weights -----------------------------------------------------------------------


def published(
    model: GPT2, *, prefix: bool = True, head: bool = True, masks: bool = False
) -> dict[str, Tensor]:
    """The model's state as some version of transformers saves it."""
    state = to_reference(model.state_dict())
    if not head:
        del state["lm_head.weight"]
    if masks:
        for i in range(model.config.layers):
            state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 20, 20, dtype=torch.bool)
            state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return state if prefix else {k.removeprefix("transformer."): t for k, t in state.items()}


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_every_layout_of_a_saved_gpt2_is_read(
    tmp_path: Path, prefix: bool, head: bool, masks: bool
) -> None:
    model = tiny()
    file = tmp_path / "model_step_50.pth"
    torch.save(published(model, prefix=prefix, head=head, masks=masks), file)
    found = read_gpt2(file, heads=2)
    assert found.config == CONFIG
    assert all(torch.equal(t, found.state[k]) for k, t in model.state_dict().items())
    assert ("left out: 6 attention masks" in found.report) == masks


def test_matrices_are_stored_inputs_first_and_the_readout_is_tied() -> None:
    model = tiny()
    theirs = to_reference(model.state_dict())
    assert theirs["transformer.h.1.mlp.c_fc.weight"].shape == (8, 32)
    assert torch.equal(
        theirs["transformer.h.1.mlp.c_fc.weight"], model.state_dict()["blocks.1.up.weight"].T
    )
    assert theirs["lm_head.weight"] is theirs["transformer.wte.weight"]
    assert {reference_key(name) for name in model.state_dict()} == set(theirs) - {"lm_head.weight"}


def test_a_folder_for_transformers_is_written_whole_and_read_back(tmp_path: Path) -> None:
    model = tiny()
    folder = tmp_path / "gpt2"
    for _ in range(2):  # the second replaces the first
        write_gpt2(folder, model.config, model.state_dict())
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpt2"]
    found = read_gpt2(folder)
    assert found.config == CONFIG
    assert all(torch.equal(t, found.state[k]) for k, t in model.state_dict().items())


def test_writing_never_replaces_something_else(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="is no model folder"):
        write_gpt2(tmp_path / "mine", CONFIG, tiny().state_dict())
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    for config in (
        "{}",
        '{"model_type": "gpt2"}',
    ):  # a run of ours, and one of theirs with checkpoints inside
        run = tmp_path / "run"
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(config)
        with pytest.raises(UserError, match="is no model folder of a GPT-2"):
            write_gpt2(run, CONFIG, tiny().state_dict())
        assert sorted(p.name for p in run.iterdir()) == ["checkpoints", "config.json"]


def test_the_old_folder_stays_whole_where_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gpt2(tmp_path / "gpt2", CONFIG, tiny().state_dict())

    def refuse(source: Path, target: Path, rename: Any = os.rename) -> None:
        if Path(source).name.endswith(".tmp"):
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr("os.rename", refuse)
    with pytest.raises(UserError, match="disk full"):
        write_gpt2(tmp_path / "gpt2", CONFIG, tiny().state_dict())
    assert read_gpt2(tmp_path / "gpt2").config == CONFIG
    assert [p.name for p in tmp_path.iterdir()] == ["gpt2"]


def _without(state: dict[str, Tensor]) -> None:
    del state["transformer.h.1.mlp.c_fc.weight"]


def _with_more(state: dict[str, Tensor]) -> None:
    state["transformer.h.0.crossattention.c_attn.weight"] = torch.zeros(8, 16)


def _reshaped(state: dict[str, Tensor]) -> None:
    state["transformer.h.0.ln_1.bias"] = torch.zeros(9)


def _untied(state: dict[str, Tensor]) -> None:
    state["lm_head.weight"] = state["lm_head.weight"] + 1


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_without, r"not whole: 1 missing \(blocks.1.up.weight\)"),
        (_with_more, r"1 tensors of no known part: h\.0\.crossattention\.c_attn\.weight\."),
        (_reshaped, r"1 of another shape \(blocks.0.norm1.bias \(9,\) for \(8,\)\)"),
        (_untied, "a readout .* of its own"),
    ],
)
def test_a_state_that_is_not_whole_is_refused(tmp_path: Path, damage: Any, complaint: str) -> None:
    state = published(tiny())
    damage(state)
    file = tmp_path / "broken.safetensors"
    save_file({k: t.clone() for k, t in state.items()}, file)
    with pytest.raises(UserError, match=complaint) as caught:
        read_gpt2(file, heads=2)
    assert str(file) in str(caught.value)


def test_files_that_are_no_gpt2_are_refused(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "vq.pth")
    with pytest.raises(UserError, match="should hold the state dict of a GPT-2"):
        read_gpt2(tmp_path / "vq.pth", heads=2)
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match=r"cut\.safetensors is cut short, damaged or no safet"):
        read_gpt2(tmp_path / "cut.safetensors", heads=2)
    with pytest.raises(UserError, match="There is no file"):
        read_gpt2(tmp_path / "none.safetensors", heads=2)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="There is no file"):
        read_gpt2(tmp_path / "none.safetensors", heads=2)


def test_heads_must_be_given_unless_the_folder_tells_them(tmp_path: Path) -> None:
    torch.save(published(tiny()), tmp_path / "bare.pth")
    with pytest.raises(UserError, match="does not tell its attention heads"):
        read_gpt2(tmp_path / "bare.pth")
    with pytest.raises(UserError, match=r"multiple of its heads \(3\)"):
        read_gpt2(tmp_path / "bare.pth", heads=3)
    write_gpt2(tmp_path / "folder", CONFIG, tiny().state_dict())
    with pytest.raises(UserError, match="has 2 attention heads, 4 were asked for"):
        read_gpt2(tmp_path / "folder", heads=4)


def test_another_kind_of_gpt2_is_refused(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "folder", CONFIG, tiny().state_dict())
    said = json.loads((tmp_path / "folder" / "config.json").read_text())
    (tmp_path / "folder" / "config.json").write_text(
        json.dumps({**said, "activation_function": "relu"})
    )
    with pytest.raises(
        UserError, match="no plain GPT-2: its config has activation_function = 'relu'"
    ):
        read_gpt2(tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "bert", "n_head": null}')
    with pytest.raises(
        UserError, match=r"no plain GPT-2: .* model_type = 'bert'; give .* model_type = 'gpt2'"
    ):
        read_gpt2(tmp_path / "folder")
    for damaged, reason in (
        ([1], "in named entries, found a list"),
        ({**said, "n_head": "2"}, "with n_head >= 1, found n_head = '2'"),
    ):
        (tmp_path / "folder" / "config.json").write_text(json.dumps(damaged))
        for path in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
            with pytest.raises(UserError, match=rf"config\.json should describe a GPT-2 {reason}"):
                read_gpt2(path)


@settings(max_examples=10, deadline=None)
@given(
    heads=st.integers(1, 3),
    size=st.integers(1, 3),
    layers=st.integers(1, 3),
    vocab=st.integers(2, 9),
)
def test_names_and_sizes_survive_the_way_there_and_back(
    heads: int, size: int, layers: int, vocab: int
) -> None:
    config = GPT2Config(vocab=vocab, positions=5, width=heads * size, heads=heads, layers=layers)
    state = tiny(config).state_dict()
    back = to_native(to_reference(state))
    assert config_of(back, heads=heads) == config
    assert back.keys() == state.keys()
    assert all(torch.equal(t, back[k]) for k, t in state.items())


# --- as an occupancy model ------------------------------------------------------------------------

OCCUPANCY = VOCConfig(
    width=8,
    heads=2,
    layers=3,
    positions=20,
    vocab=11,
    code_dim=2,
    grid=(1, 3),
    frames=3,
    dropout=0.0,
    attention_dropout=0.0,
    reward_hidden=4,
)


def test_a_published_gpt_becomes_model_and_target_of_an_occupancy_model(tmp_path: Path) -> None:
    gpt = tiny()
    torch.save(published(gpt), tmp_path / "dino_nanogpt_gamma_0.8_11_model_step_50.pth")
    found = read_gpt2(tmp_path / "dino_nanogpt_gamma_0.8_11_model_step_50.pth", heads=2)
    rows = torch.randn(11, 2, generator=torch.Generator().manual_seed(5))
    before = torch.get_rng_state()
    state = occupancy_state(found, OCCUPANCY, codebook=rows)
    assert torch.equal(torch.get_rng_state(), before), "nobody else's draws are touched"
    model = VOC(OCCUPANCY)
    model.load_state_dict(state, strict=True)
    tokens = some_tokens(2, 18)
    for net in (model.gpt, model.target):
        torch.testing.assert_close(net.logits(tokens), gpt.logits(tokens))
    assert torch.equal(model.codebook, rows)
    again = occupancy_state(found, OCCUPANCY, codebook=rows)
    assert all(torch.equal(t, again[k]) for k, t in state.items()), (
        "the reward head is drawn the same every time"
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"layers": 2}, "has layers 3, the occupancy model's config says 2"),
        ({"positions": None}, "has positions 20, the occupancy model's config says 18"),
        ({"gammas": (0.5, 0.8), "positions": 20}, "neither actions nor several gammas"),
        ({"actions": 2, "positions": 20}, "neither actions nor several gammas"),
    ],
)
def test_a_config_of_another_model_is_refused(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    torch.save(published(tiny()), tmp_path / "gpt.pth")
    found = read_gpt2(tmp_path / "gpt.pth", heads=2)
    config = VOCConfig(
        **{**{f: getattr(OCCUPANCY, f) for f in OCCUPANCY.__dataclass_fields__}, **change}
    )
    with pytest.raises(UserError, match=complaint):
        occupancy_state(found, config)


def test_a_conditioned_model_is_no_plain_gpt2() -> None:
    config = VOCConfig(
        **{**{f: getattr(OCCUPANCY, f) for f in OCCUPANCY.__dataclass_fields__}, "actions": 2}
    )
    with pytest.raises(UserError, match="no place for action_embedding"):
        to_reference(VOC(config).gpt.state_dict())
