"""`foreact train musik`: from any store with actions to codes,
resumed, and read again as an encoder.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreact.checkpoints.format import build, load_checkpoint
from foreact.checkpoints.tokenizers import open_tokenizer
from foreact.data.stores.store import StoreWriter, open_store
from foreact.errors import UserError
from foreact.families.codes.train_musik import MusikRun, actions_mode, command, train_musik
from foreact.runs.encoding import StreamEncoder, encode_stream
from foreact.tokenizers.musik import Musik, MusikConfig
from foreact.train.config import TrainConfig
from foreact.train.logs import read_log
from foreact.types import ActionSpec, StreamSpec

MODEL = MusikConfig(
    actions=1,
    frames=2,
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    features=8,
    codes=16,
    code_dim=4,
    summary=8,
    hidden=16,
    negatives=15,
    norm_groups=4,
    image_size=(8, 12),
)
ACTION = ActionSpec(
    names=("speed",),
    units=("unitless",),
    frame="world",
    mode="delta",
    rate_hz=10.0,
    low=(-1.0,),
    high=(1.0,),
)
SPEC = StreamSpec(cameras={"left": (12, 16), "right": (12, 16)}, fps=10.0, action=ACTION)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of a bar that actions drive to and fro over a dark floor."""
    path = tmp_path_factory.mktemp("data") / "bars.zarr"
    rng = np.random.default_rng(0)
    with StoreWriter(path, SPEC) as writer:
        for _ in range(6):
            actions = rng.uniform(-1, 1, (12, 1)).astype(np.float32)
            frames = np.full((12, 12, 16, 3), 40, np.uint8)
            at = 7.0
            for t in range(12):
                frames[t, :, int(at) : int(at) + 2] = 250
                at = float(np.clip(at + 4 * actions[t, 0], 0, 14))
            writer.append({"left": frames, "right": frames, "action": actions})
    return path


def run(store: Path, out: Path, **changes: Any) -> MusikRun:
    training = TrainConfig(
        **{
            "steps": 4,
            "batch_size": 6,
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
    return MusikRun(
        **{
            "data": store,
            "camera": "left",
            "out": out,
            "model": MODEL,
            "reach": 4,
            "shift": 2,
            "train": training,
            "val_ratio": 0.3,
            "device": "cpu",
            **changes,
        }
    )


def test_a_store_with_actions_gives_codes_that_tokenize_reads(store: Path, tmp_path: Path) -> None:
    weights = train_musik(run(store, tmp_path / "run"))
    checkpoint = load_checkpoint(weights)
    assert (checkpoint.family, checkpoint.card["steps"]) == ("musik", 4)
    assert checkpoint.spec == SPEC
    musik = build(checkpoint)
    assert isinstance(musik, Musik)
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert all(0 < entry["codebook_usage"] <= 1 for entry in log if "loss" in entry)
    measured = {"val/infonce", "val/accuracy", "val/codebook_usage", "val/perplexity"}
    assert measured <= set(log[-1])
    assert checkpoint.card["val/infonce"] == log[-1]["val/infonce"]

    opened = open_store(store)
    encode_stream(StreamEncoder(opened, "right", open_tokenizer(weights)))
    opened.refresh()
    tokens = opened.gather("tokens_right", np.arange(3))
    assert tokens.shape == (3, 4, 6)
    assert opened.tokenizer_hash("tokens_right") == checkpoint.hash


def test_a_resumed_run_equals_an_undisturbed_one(store: Path, tmp_path: Path) -> None:
    def trained(folder: str, steps: int) -> str:
        settings = {"schedule": "constant_with_warmup", "steps": steps}
        return load_checkpoint(train_musik(run(store, tmp_path / folder, train=settings))).hash

    whole = trained("whole", 4)
    assert trained("halves", 2) != whole
    assert trained("halves", 4) == whole


def test_the_inverse_model_learns_what_moves_the_bar(store: Path, tmp_path: Path) -> None:
    settings = {
        "steps": 100,
        "batch_size": 16,
        "lr": 1e-2,
        "save_every": 100,
        "eval_every": 100,
        "log_every": 40,
    }
    weights = train_musik(run(store, tmp_path / "run", reach=1, shift=None, train=settings))
    told = load_checkpoint(weights).card["val/infonce"]
    assert told < math.log(1 + MODEL.negatives) - 0.3  # nats better than a guess


def test_the_command_takes_the_number_of_action_dimensions_from_the_store(
    store: Path, tmp_path: Path
) -> None:
    command(
        [
            "--data",
            str(store),
            "--camera",
            "right",
            "--out",
            str(tmp_path / "run"),
            "--val-ratio",
            "0.3",
            "--device",
            "cpu",
            "--model.channels",
            "4",
            "--model.codes",
            "8",
            "--model.image-size",
            "16",
            "16",
            "--train.steps",
            "1",
            "--train.warmup",
            "0",
            "--train.batch-size",
            "4",
            "--train.precision",
            "fp32",
            "--train.no-tensorboard",
        ]
    )
    trained = load_checkpoint(tmp_path / "run" / "weights")
    assert trained.config["actions"] == 1
    assert trained.stats is not None
    assert torch.equal(trained.stats.encode(torch.tensor([[0.5]]), "action"), torch.tensor([[0.5]]))


def test_actions_are_brought_to_where_their_rivals_are_drawn() -> None:
    assert actions_mode(ACTION) == "identity"
    assert actions_mode(dataclasses.replace(ACTION, low=(-2.0,))) == "limits"
    assert actions_mode(dataclasses.replace(ACTION, low=None, high=None)) == "limits"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"camera": None}, "choose it with --camera"),
        ({"camera": "top"}, "'left', 'right'.*'top'"),
        ({"model": dataclasses.replace(MODEL, actions=3)}, "--model.actions 1"),
        ({"reach": 0}, "reach >= 1"),
        ({"shift": 0}, "at least 1 pixel"),
        ({"val_ratio": 0.0}, "at least one of each"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    store: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train_musik(run(store, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_video_without_actions_is_told(tmp_path: Path) -> None:
    spec = StreamSpec(cameras={"left": (12, 16)}, fps=10.0)
    with StoreWriter(tmp_path / "silent.zarr", spec) as writer:
        writer.append({"left": np.zeros((5, 12, 16, 3), np.uint8)})
    with pytest.raises(UserError, match="has no actions"):
        train_musik(run(tmp_path / "silent.zarr", tmp_path / "run"))
