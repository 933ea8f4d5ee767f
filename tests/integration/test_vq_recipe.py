"""`foreact train vq`: pictures of any store to tokens; the
adversarial stage, resuming, given weights.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.taming_files import network, released
from torch import Tensor

from foreact.checkpoints.format import build, load_checkpoint, save_checkpoint
from foreact.data.stores.store import StoreWriter
from foreact.errors import UserError
from foreact.families.codes.train_vq import VQRun, command, train_vq
from foreact.tokenizers.adversarial import AdversarialConfig
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.train.config import TrainConfig
from foreact.train.logs import read_log
from foreact.types import StreamSpec

MODEL = VQConfig(
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    features=8,
    codes=16,
    code_dim=4,
    norm_groups=4,
    image_size=(12, 12),
    entropy_weight=0.01,
)
SPEC = StreamSpec(cameras={"left": (12, 16), "right": (16, 16)}, fps=10.0, state={"x": ("x",)})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of a square that moves over a dark floor,
    without actions and without a task.
    """
    path = tmp_path_factory.mktemp("data") / "squares.zarr"
    with StoreWriter(path, SPEC) as writer:
        for episode in range(4):
            frames = {
                name: np.full((8, *size, 3), 40, np.uint8) for name, size in SPEC.cameras.items()
            }
            for t in range(8):
                for video in frames.values():
                    video[t, episode : episode + 6, t : t + 6] = (250, 60 * episode, 30)
            writer.append({**frames, "x": np.arange(8, dtype=np.float32)[:, None]})
    return path


def run(store: Path, out: Path, **changes: Any) -> VQRun:
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
    return VQRun(
        **{
            "data": store,
            "out": out,
            "model": MODEL,
            "train": training,
            "val_ratio": 0.3,
            "device": "cpu",
            **changes,
        }
    )


def stage(**changes: Any) -> AdversarialConfig:
    return AdversarialConfig(**{"weight": 0.1, "channels": 4, "layers": 1, **changes})


def squared_error() -> Any:
    """A perceptual distance for `--perceptual`."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().flatten(1).mean(dim=1)

    return distance


def test_any_store_gives_a_tokenizer_and_a_report_of_its_codebook(
    store: Path, tmp_path: Path
) -> None:
    weights = train_vq(run(store, tmp_path / "run"))
    checkpoint = load_checkpoint(weights)
    assert (checkpoint.family, checkpoint.card["steps"]) == ("vq", 4)
    assert checkpoint.spec == SPEC
    tokenizer = build(checkpoint)
    assert isinstance(tokenizer, VQTokenizer)
    assert tokenizer.encode(torch.zeros(1, 2, 3, 12, 12)).shape == (1, 2, 6, 6)
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert all(0 < entry["codebook_usage"] <= 1 for entry in log if "loss" in entry)
    measured = {"val/grey_levels", "val/codebook_usage", "val/perplexity"}
    assert measured <= set(log[-1])
    assert checkpoint.card["val/codebook_usage"] == log[-1]["val/codebook_usage"]


def test_the_finished_weights_know_nothing_of_the_adversarial_stage(
    store: Path, tmp_path: Path
) -> None:
    weights = train_vq(
        run(store, tmp_path / "run", camera="left", adversarial=stage(start=2, adaptive=True))
    )
    checkpoint = load_checkpoint(weights)
    assert set(checkpoint.state) == set(VQTokenizer(MODEL).state_dict())
    build(checkpoint)
    played = [
        "judge" in entry for entry in read_log(tmp_path / "run" / "log.jsonl") if "loss" in entry
    ]
    assert played == [False, False, True, True]


def test_a_resumed_run_equals_an_undisturbed_one(store: Path, tmp_path: Path) -> None:
    """Stopped before the game begins, so that the resumed run has to know how far it is."""

    def trained(folder: str, steps: int) -> str:
        settings = {"schedule": "constant_with_warmup", "steps": steps}
        return load_checkpoint(
            train_vq(run(store, tmp_path / folder, adversarial=stage(start=3), train=settings))
        ).hash

    whole = trained("whole", 6)
    assert trained("halves", 2) != whole
    assert trained("halves", 6) == whole


def test_given_weights_bring_their_sizes_along(store: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(MODEL, codes=24)
    start = VQTokenizer(config)
    save_checkpoint(tmp_path / "start", family="vq", config=config, state=start.state_dict())
    command(
        [
            "--init",
            str(tmp_path / "start"),
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
            "--train.steps",
            "1",
            "--train.warmup",
            "0",
            "--train.lr",
            "1e-12",
            "--train.batch-size",
            "4",
            "--train.precision",
            "fp32",
            "--train.no-tensorboard",
        ]
    )
    trained = load_checkpoint(tmp_path / "run" / "weights")
    assert trained.config["codes"] == 24
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(trained.state[name], tensor, rtol=0, atol=1e-9)


def test_a_perceptual_distance_comes_by_import_path(store: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, perceptual_weight=0.5)
    train_vq(
        run(
            store,
            tmp_path / "run",
            model=model,
            perceptual=f"{__name__}:squared_error",
            train={"steps": 1},
        )
    )
    assert read_log(tmp_path / "run" / "log.jsonl")[0]["perceptual"] > 0


def test_lpips_comes_out_of_a_released_file(store: Path, tmp_path: Path) -> None:
    torch.save(released(network()), tmp_path / "cheetah.pth")
    model = dataclasses.replace(MODEL, perceptual_weight=0.5, image_size=(16, 16))
    train_vq(
        run(
            store, tmp_path / "run", model=model, lpips=tmp_path / "cheetah.pth", train={"steps": 1}
        )
    )
    assert read_log(tmp_path / "run" / "log.jsonl")[0]["perceptual"] > 0


def test_training_pictures_may_be_shifted_and_validation_stays(store: Path, tmp_path: Path) -> None:
    settings = {"steps": 1, "lr": 1e-12, "eval_every": 1}
    logs = [
        read_log(
            train_vq(run(store, tmp_path / f"{shift}", shift=shift, train=settings)).parent
            / "log.jsonl"
        )
        for shift in (None, 3)
    ]
    trained, measured = (
        [{**log[0], **log[-1]}[name] for log in logs] for name in ("l1", "val/grey_levels")
    )
    assert trained[0] != trained[1]
    assert measured[0] == pytest.approx(measured[1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"camera": "top"}, "'left', 'right'.*'top'"),
        ({"task": "pusht"}, "disagree|img"),
        ({"perceptual": "no_such_module:f"}, "belong together"),
        ({"model": dataclasses.replace(MODEL, perceptual_weight=1.0)}, "belong together"),
        (
            {
                "model": dataclasses.replace(MODEL, perceptual_weight=1.0),
                "perceptual": "no_such_module:f",
            },
            "cannot be imported",
        ),
        ({"lpips": Path("file.pth")}, "belong together"),
        (
            {
                "model": dataclasses.replace(MODEL, perceptual_weight=1.0),
                "lpips": Path("f.pth"),
                "perceptual": "m:f",
            },
            "two distances",
        ),
        (
            {"model": dataclasses.replace(MODEL, perceptual_weight=1.0), "lpips": Path("f.pth")},
            "at least 16 pixels",
        ),
        ({"shift": 0}, "at least 1 pixel"),
        ({"adversarial": stage(layers=3)}, "at least 24 pixels"),
        ({"init": "nowhere"}, "neither a checkpoint folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    store: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train_vq(run(store, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_told(store: Path, tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path / "vq", family="vq", config=MODEL, state=VQTokenizer(MODEL).state_dict()
    )
    kl = KLVAEConfig(channels=8, multipliers=(1, 2), blocks=1, norm_groups=4, image_size=(12, 12))
    save_checkpoint(tmp_path / "kl", family="kl_vae", config=kl, state=KLVAE(kl).state_dict())
    wider = dataclasses.replace(MODEL, codes=17)
    with pytest.raises(UserError, match=r"other sizes.*quantizer.weight"):
        train_vq(run(store, tmp_path / "run", init=str(tmp_path / "vq"), model=wider))
    with pytest.raises(UserError, match="holds weights of the family 'kl_vae'"):
        train_vq(run(store, tmp_path / "run", init=str(tmp_path / "kl")))
    assert not (tmp_path / "run").exists()
