"""`foreact train voc`: stored codes, codes learned along,
resuming, what is saved, and what is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.occupancy_worlds import MODEL, TOKENIZER, write_pushes, write_tokenizer

from foreact.checkpoints.format import build, load_checkpoint, load_tokenizer, save_checkpoint
from foreact.data.stores.store import open_store
from foreact.data.windows.split import split_episodes
from foreact.errors import UserError
from foreact.families.codes.tokenize import tokenize
from foreact.families.codes.train_musik import SMALL as SMALL_MUSIK
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.model import VOC
from foreact.families.voc.train import VOCRun, command, recipe, train_voc
from foreact.tokenizers.musik import Musik
from foreact.tokenizers.vq import VQTokenizer
from foreact.tokenizers.vqkd import VQKD, VQKDConfig
from foreact.train.config import TrainConfig
from foreact.train.logs import read_log

MUSIK = dataclasses.replace(
    SMALL_MUSIK,
    channels=8,
    multipliers=(1, 2, 2),
    blocks=1,
    features=8,
    codes=16,
    code_dim=4,
    summary=8,
    hidden=8,
    negatives=4,
    norm_groups=4,
    image_size=(12, 12),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pushes(tmp_path_factory.mktemp("data") / "pushes.zarr")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("weights") / "vq")


def run(store: Path, out: Path, **changes: Any) -> VOCRun:
    training = TrainConfig(
        **{
            "steps": 4,
            "batch_size": 4,
            "lr": 1e-3,
            "warmup": 1,
            "workers": 0,
            "log_every": 1,
            "save_every": 2,
            "eval_every": 4,
            "best_k": 0,
            "tensorboard": False,
            "precision": "fp32",
            **changes.pop("train", {}),
        }
    )
    model = VOCConfig(**{**MODEL, **changes.pop("model", {})})
    settings = {
        "data": store,
        "out": out,
        "train": training,
        "model": model,
        "val_ratio": 0.3,
        "device": "cpu",
    }
    return VOCRun(**{**settings, **changes})


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder).state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_stored_codes_are_made_once_and_everything_that_values_need_is_saved(
    store: Path, tokenizer: Path, tmp_path: Path
) -> None:
    weights = train_voc(
        run(
            store,
            tmp_path / "run",
            tokenizer=str(tokenizer),
            actions=True,
            model={"gammas": (0.5, 0.9), "bootstrap_steps": 2, "action_steps": 2},
        )
    )
    assert open_store(store).tokenizer_hash("tokens_pixels") == load_checkpoint(tokenizer).hash
    checkpoint = load_checkpoint(weights)
    assert checkpoint.card["weights"] == {"tokenizer": load_checkpoint(tokenizer).hash}
    (source,) = checkpoint.card["data"]
    _, validation = split_episodes(len(open_store(store)), 0.3, 42)
    assert source["validation"] == validation.tolist()
    model, loaded = build(checkpoint), load_tokenizer(checkpoint)
    assert isinstance(model, VOC)
    assert isinstance(loaded, VQTokenizer)
    assert model.config.grid == TOKENIZER.grid
    assert model.config.actions == 6
    torch.testing.assert_close(model.codebook, loaded.codebook.detach())
    assert any(
        not torch.equal(a, b)
        for a, b in zip(model.gpt.parameters(), model.target.parameters(), strict=True)
    )
    last = read_log(tmp_path / "run" / "log.jsonl")[-1]
    assert {"val/nats_per_future_code", "val/reward_mse", "val/loss"} <= set(last)


def test_a_resumed_run_ends_bitwise_where_an_undisturbed_one_does(
    store: Path, tokenizer: Path, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"tokenizer": str(tokenizer)}
    whole = train_voc(run(store, tmp_path / "whole", **common))
    cut = {"train": {"schedule_steps": 4}}
    train_voc(run(store, tmp_path / "cut", **common, train={"steps": 2, "schedule_steps": 4}))
    resumed = train_voc(run(store, tmp_path / "cut", **common, **cut))
    assert same(state_of(whole), state_of(resumed))


def test_the_published_accumulation_takes_the_first_batch_alone_and_resumes_exactly(
    store: Path, tokenizer: Path, tmp_path: Path
) -> None:
    published = {"accumulation": "sum_first_alone", "accumulate": 2, "schedule_steps": 8}
    assert [
        list(TrainConfig(steps=3, warmup=0, **published).micro_batches(s)) for s in range(3)
    ] == [
        [0],
        [1, 2],
        [3, 4],
    ]
    whole = train_voc(run(store, tmp_path / "whole", tokenizer=str(tokenizer), train=published))
    train_voc(
        run(store, tmp_path / "cut", tokenizer=str(tokenizer), train={**published, "steps": 3})
    )
    resumed = train_voc(run(store, tmp_path / "cut", tokenizer=str(tokenizer), train=published))
    assert same(state_of(whole), state_of(resumed))
    with pytest.raises(UserError, match="goes on as it began"):
        train_voc(
            run(
                store,
                tmp_path / "cut",
                tokenizer=str(tokenizer),
                train={**published, "steps": 5, "accumulate": 1},
            )
        )


@pytest.mark.parametrize("codes", ["vae", "musik"])
def test_codes_are_learned_along_with_the_model(codes: str, store: Path, tmp_path: Path) -> None:
    weights = train_voc(
        run(
            store,
            tmp_path / "run",
            codes=codes,
            vq=TOKENIZER if codes == "vae" else VOCRun().vq,
            musik=MUSIK if codes == "musik" else VOCRun().musik,
        )
    )
    checkpoint = load_checkpoint(weights)
    model, loaded = build(checkpoint), load_tokenizer(checkpoint)
    assert isinstance(model, VOC)
    assert isinstance(loaded, VQTokenizer if codes == "vae" else Musik)
    torch.testing.assert_close(model.codebook, loaded.codebook.detach())
    assert not [p for p in (tmp_path / "run").iterdir() if "tokenizer" in p.name]
    assert "val/codes_in_use" in read_log(tmp_path / "run" / "log.jsonl")[-1]
    # The finished tokenizer makes stored codes for a run of its own.
    fresh = write_pushes(tmp_path / "fresh.zarr", episodes=4)
    again = train_voc(
        run(fresh, tmp_path / "stored", codes=codes, tokenizer=str(weights / "tokenizer"))
    )
    assert load_checkpoint(again).tokenizer == load_checkpoint(weights).tokenizer


def test_dino_codes_are_read_tokens_first(tmp_path: Path) -> None:
    store = write_pushes(tmp_path / "pushes.zarr", episodes=4)
    torch.manual_seed(0)
    vqkd = VQKD(
        VQKDConfig(
            width=16,
            depth=1,
            heads=2,
            patch=8,
            image_size=(24, 24),
            codes=16,
            code_dim=4,
            features=8,
        )
    )
    save_checkpoint(tmp_path / "vqkd", family="vqkd", config=vqkd.config, state=vqkd.state_dict())
    sized = recipe("pocket", "dino").model
    weights = train_voc(
        run(
            store,
            tmp_path / "run",
            codes="dino",
            tokenizer=str(tmp_path / "vqkd"),
            model={"feature_order": sized.feature_order},
        )
    )
    model = build(load_checkpoint(weights))
    assert isinstance(model, VOC)
    assert (model.config.feature_order, model.config.grid) == ("tokens_first", (3, 3))
    torch.testing.assert_close(model.codebook, vqkd.codebook)


def test_a_joint_run_may_start_from_a_tokenizer_and_freeze_it(
    store: Path, tokenizer: Path, tmp_path: Path
) -> None:
    weights = train_voc(
        run(store, tmp_path / "run", tokenizer=str(tokenizer), joint=True, freeze_after=0)
    )
    assert same(state_of(weights / "tokenizer"), state_of(tokenizer))


def test_a_run_may_start_from_given_weights(store: Path, tokenizer: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"tokenizer": str(tokenizer), "train": {"lr": 1e-12}}
    first = train_voc(run(store, tmp_path / "first", **common))
    again = train_voc(run(store, tmp_path / "again", **common, init=str(first)))
    a, b = state_of(first), state_of(again)
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    with pytest.raises(UserError, match="other sizes"):
        train_voc(run(store, tmp_path / "bad", **common, init=str(first), model={"layers": 2}))


def test_the_sizes_differ_as_the_published_code_and_its_intent_do() -> None:
    ran, meant = recipe("reference"), recipe("small")
    assert (ran.model.width, meant.model.width, recipe("small", "dino").model.width) == (
        768,
        512,
        128,
    )
    assert (ran.model.attention_dropout, meant.model.attention_dropout) == (0.1, 0.2)
    assert (ran.model.target_top_k, ran.model.target_dropout) == (50, True)
    assert (meant.model.target_top_k, meant.model.target_dropout) == (None, False)
    assert (ran.train.accumulation, meant.train.accumulation) == ("sum_first_alone", "mean")
    assert recipe("reference", "dino").train.accumulation == "mean"
    assert recipe("reference", "dino").model.feature_order == "tokens_first"


def test_bad_input_is_refused_in_one_sentence(store: Path, tokenizer: Path, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other", dataclasses.replace(TOKENIZER, code_dim=8))
    tokenize(store, str(tokenizer))
    inverse = dataclasses.replace(MUSIK, actions=6, frames=3)
    save_checkpoint(
        tmp_path / "inverse", family="musik", config=inverse, state=Musik(inverse).state_dict()
    )
    for changes, problem in (
        (
            {"codes": "musik", "tokenizer": str(tmp_path / "inverse"), "joint": True},
            "stacks of 3 frames",
        ),
        ({"codes": "dino"}, "name one with --tokenizer"),
        ({"codes": "musik", "tokenizer": str(tokenizer)}, "expects a musik tokenizer"),
        ({"tokenizer": str(other)}, "give that one, or replace them"),
        ({"tokenizer": str(tokenizer), "vq": TOKENIZER}, "leave them out"),
        ({"tokenizer": str(tokenizer), "freeze_after": 3}, "--freeze-after is for a tokenizer"),
        ({"tokenizer": str(tokenizer), "model": {"vocab": 99}}, "--model.vocab says 99"),
        ({"tokenizer": str(tokenizer), "model": {"action_steps": 2}}, "add --actions"),
        ({"tokenizer": str(tmp_path / "nowhere")}, "nowhere"),
        ({"init": str(other)}, "without --joint"),
        ({"tokenizer": str(tokenizer), "init": str(other)}, "--init takes those of voc"),
    ):
        with pytest.raises(UserError, match=problem):
            train_voc(run(store, tmp_path / "bad", **changes))
        assert not (tmp_path / "bad").exists()
    for arguments, problem in (
        (["--codes", "clip"], "vae, dino, musik"),
        (["--size", "huge"], "pocket, small, reference"),
        (["--model.gammas", "1.0"], r"\[0, 1\)"),
    ):
        with pytest.raises(UserError, match=problem):
            command(arguments)
