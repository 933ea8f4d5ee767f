"""`foreact train vqkd`: any store and any teacher to codes; resuming,
given weights, and tokenizing with the result.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.processes import Together
from torch import Tensor, nn

from foreact.checkpoints.format import build, load_checkpoint, save_checkpoint
from foreact.checkpoints.tokenizers import open_tokenizer
from foreact.cli import main
from foreact.cli import run as foreact
from foreact.data.stores.store import StoreWriter, open_store
from foreact.errors import UserError
from foreact.families.codes.train_vqkd import VQKDRun, command, recipe, train_vqkd
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.tokenizers.images import prepare
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.tokenizers.vqkd import VQKD, VQKDConfig
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig
from foreact.train.logs import read_log
from foreact.types import StreamSpec

MODEL = VQKDConfig(
    patch=4,
    width=16,
    depth=1,
    heads=2,
    mlp_ratio=2,
    codes=8,
    code_dim=4,
    features=5,
    position_grid=(3, 3),
    image_size=(12, 12),
)
SPEC = StreamSpec(cameras={"left": (12, 16), "right": (16, 16)}, fps=10.0, state={"x": ("x",)})


class Patches(nn.Module):
    """A teacher of fixed random features of patches of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4)
        assert self.conv.bias is not None
        with torch.no_grad():
            self.conv.weight.copy_(
                torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
            )
            self.conv.bias.fill_(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2)


class Flaky(Patches):
    """A teacher that fails in the second training step, its third
    call; the first one is the recipe's trial.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images) * (torch.nan if self.calls == 3 else 1.0)


def whole_picture() -> nn.Module:
    """A network that gives one feature per picture."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def picky() -> nn.Module:
    """A network that fails on pictures of this size."""
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 5))


TEACHER = f"{__name__}:Patches"


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


def run(store: Path, out: Path, **changes: Any) -> VQKDRun:
    training = TrainConfig(
        **{
            "steps": 4,
            "batch_size": 3,
            "accumulate": 2,
            "lr": 1e-3,
            "warmup": 1,
            "workers": 0,
            "log_every": 1,
            "save_every": 2,
            "eval_every": 4,
            "best_k": 0,
            "tensorboard": False,
            "precision": "fp32",
            "ema": EMAConfig(enabled=False),
            **changes.pop("train", {}),
        }
    )
    return VQKDRun(
        **{
            "data": store,
            "out": out,
            "model": MODEL,
            "train": training,
            "val_ratio": 0.3,
            "device": "cpu",
            "teacher": TEACHER,
            **changes,
        }
    )


def test_any_store_gives_codes_and_a_report_of_their_use(store: Path, tmp_path: Path) -> None:
    weights = train_vqkd(run(store, tmp_path / "run"))
    checkpoint = load_checkpoint(weights)
    assert (checkpoint.family, checkpoint.card["steps"], checkpoint.card["teacher"]) == (
        "vqkd",
        4,
        TEACHER,
    )
    assert set(checkpoint.state) == set(VQKD(MODEL).state_dict())
    model = build(checkpoint)
    assert isinstance(model, VQKD)
    assert model.quantizer.initialised
    # Every step saw 2 micro-batches of 3 windows of 2 cameras of 9 patches.
    assert model.quantizer.cluster_size.sum().item() == pytest.approx(108 * (1 - 0.99**4))
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert all(
        0 < entry["codebook_usage"] <= 1 <= entry["perplexity"] for entry in log if "loss" in entry
    )
    assert {"val/distance", "val/codebook_usage", "val/perplexity"} <= set(log[-1])
    assert checkpoint.card["val/distance"] == log[-1]["val/distance"]


def test_a_resumed_run_equals_an_undisturbed_one(store: Path, tmp_path: Path) -> None:
    def trained(folder: str, steps: int) -> str:
        settings = {"schedule": "constant_with_warmup", "steps": steps}
        return load_checkpoint(train_vqkd(run(store, tmp_path / folder, train=settings))).hash

    whole = trained("whole", 4)
    assert trained("halves", 2) != whole
    assert trained("halves", 4) == whole


def test_a_skipped_step_leaves_no_trace_in_the_codebook(store: Path, tmp_path: Path) -> None:
    settings = {"steps": 3, "accumulate": 1}
    weights = train_vqkd(run(store, tmp_path / "run", teacher=f"{__name__}:Flaky", train=settings))
    assert read_log(tmp_path / "run" / "log.jsonl")[-2]["skipped"] == 1
    counted = load_checkpoint(weights).state["quantizer.cluster_size"]
    assert counted.sum().item() == pytest.approx(54 * (1 - 0.99**2))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_two_processes_do_what_one_does_with_twice_the_micro_batches(
    store: Path, tmp_path: Path
) -> None:
    """The codebook follows the latents of both."""
    options = [
        "train",
        "vqkd",
        "--data",
        str(store),
        "--teacher",
        f"{__name__}:Patches",
        "--val-ratio",
        "0.3",
        "--device",
        "cpu",
        "--model.patch",
        "4",
        "--model.width",
        "16",
        "--model.depth",
        "1",
        "--model.heads",
        "2",
        "--model.codes",
        "8",
        "--model.code-dim",
        "4",
        "--model.features",
        "5",
        "--model.position-grid",
        "3",
        "3",
        "--model.image-size",
        "12",
        "12",
        "--train.steps",
        "3",
        "--train.warmup",
        "0",
        "--train.batch-size",
        "3",
        "--train.precision",
        "fp32",
        "--train.no-tensorboard",
    ]
    foreact([*options, "--out", str(tmp_path / "one"), "--train.accumulate", "2"])
    Together(main, [*options, "--out", str(tmp_path / "two")]).finish()
    one, two = (load_checkpoint(tmp_path / name / "weights").state for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_teacher_teaches_the_same(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "teacher.pt"
    torch.jit.script(Patches()).save(str(file))
    hashes = [
        load_checkpoint(
            train_vqkd(run(store, tmp_path / str(i), teacher=teacher, train={"steps": 1}))
        ).hash
        for i, teacher in enumerate((TEACHER, str(file)))
    ]
    assert hashes[0] == hashes[1]


def test_given_weights_bring_their_sizes_and_their_codebook_along(
    store: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(MODEL, codes=11, preprocessing="legacy", codebook_decay=0.5)
    start = VQKD(config)
    start.quantizer.initialised.fill_(True)
    save_checkpoint(tmp_path / "start", family="vqkd", config=config, state=start.state_dict())
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
            "--teacher",
            TEACHER,
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
            "1",
            "--train.precision",
            "fp32",
            "--train.no-tensorboard",
        ]
    )
    trained = load_checkpoint(tmp_path / "run" / "weights")
    assert (trained.config["codes"], trained.config["preprocessing"]) == (11, "legacy")
    for name, p in start.named_parameters():
        torch.testing.assert_close(trained.state[name], p.detach(), rtol=0, atol=1e-9)
    # No k-means: the rows that no patch chose are the given ones.
    idle = trained.state["quantizer.cluster_size"] == 0
    assert 0 < idle.sum() < 11
    torch.testing.assert_close(
        trained.state["quantizer.weight"][idle], start.quantizer.weight[idle]
    )


@pytest.mark.parametrize("preprocessing", ["symmetric", "legacy"])
def test_a_store_is_tokenized_as_the_model_wants_it(
    store: Path, tmp_path: Path, preprocessing: Any
) -> None:
    torch.manual_seed(5)
    config = dataclasses.replace(MODEL, codes=300, preprocessing=preprocessing)
    model = VQKD(config).eval()
    save_checkpoint(tmp_path / "vqkd", family="vqkd", config=config, state=model.state_dict())
    foreact(
        [
            "tokenize",
            "--store",
            str(store),
            "--tokenizer",
            str(tmp_path / "vqkd"),
            "--camera",
            "left",
        ]
    )
    opened = open_store(store)
    frames = torch.from_numpy(opened.gather("left", np.arange(32))).permute(0, 3, 1, 2)
    expected = model.encode(prepare(frames, (12, 12), preprocessing)[None])[0]
    stored = opened.gather("tokens_left", np.arange(32))
    assert stored.dtype == np.uint16
    assert np.array_equal(stored, expected.numpy())


def test_only_encoders_are_tokenizers(tmp_path: Path) -> None:
    config = VaViMConfig(width=16, heads=2, layers=1, vocab=10, frames=2, grid=(2, 2), base_width=8)
    save_checkpoint(
        tmp_path / "vavim", family="vavim", config=config, state=VaViM(config).state_dict()
    )
    with pytest.raises(
        UserError, match="a 'vavim', is no tokenizer; give a kl_vae, a vq, a vqkd or a musik"
    ):
        open_tokenizer(tmp_path / "vavim")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": None}, "none is named; give a TorchScript file"),
        ({"teacher": "nowhere.pt"}, "which is neither"),
        ({"teacher": "no_such_module:f"}, "names no importable function"),
        ({"teacher": f"{__name__}:whole_picture"}, r"= \(1, 9, 5\) .*found \(1, 3\)"),
        ({"teacher": f"{__name__}:picky"}, "fails on a picture of 12 x 12 pixels"),
        ({"teacher_preprocessing": "sepia"}, "no preprocessing 'sepia'"),
        (
            {"model": dataclasses.replace(MODEL, features=6)},
            r"= \(1, 9, 6\) .*found \(1, 9, 5\).*features",
        ),
        (
            {"model": dataclasses.replace(MODEL, codes=1000)},
            "A codebook of 1000 starts from as many latents",
        ),
        ({"camera": "top"}, "'left', 'right'.*'top'"),
        ({"init": "nowhere"}, "neither a checkpoint folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    store: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train_vqkd(run(store, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_told(store: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "vqkd", family="vqkd", config=MODEL, state=VQKD(MODEL).state_dict())
    vq = VQConfig(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        features=8,
        codes=8,
        code_dim=4,
        norm_groups=4,
        image_size=(12, 12),
    )
    save_checkpoint(tmp_path / "vq", family="vq", config=vq, state=VQTokenizer(vq).state_dict())
    wider = dataclasses.replace(MODEL, codes=9)
    with pytest.raises(UserError, match=r"other sizes.*quantizer"):
        train_vqkd(run(store, tmp_path / "run", init=str(tmp_path / "vqkd"), model=wider))
    with pytest.raises(UserError, match="holds weights of the family 'vq'"):
        train_vqkd(run(store, tmp_path / "run", init=str(tmp_path / "vq")))
    with pytest.raises(UserError, match="should be one of small, base, found 'huge'"):
        command(["--size", "huge"])
    assert not (tmp_path / "run").exists()


def test_the_sizes_are_those_of_a_laptop_and_of_the_release() -> None:
    assert recipe("base").model == VQKDConfig()
    assert recipe("base").train.batch_size * recipe("base").train.accumulate == 512
    assert sum(p.numel() for p in VQKD(recipe("small").model).parameters()) < 500_000
