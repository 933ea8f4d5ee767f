"""The road of the driving models: drawn frames, tokenizer, tokens,
three stages of training, plans, imagined drives.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.driving_worlds import START, drive, tensors_of, write_token_store
from torch import Tensor

from foreact.checkpoints.format import load_checkpoint, load_tokenizer
from foreact.cli import run
from foreact.data.stores.store import open_store
from foreact.data.windows.mixing import TurningWindows
from foreact.errors import UserError
from foreact.families.driving import train_vavam as vavam
from foreact.families.driving import train_vavim as vavim
from foreact.families.driving.data.trajectories import write_trajectories
from foreact.families.driving.data.windows import plan_spec
from foreact.families.driving.sources import DrivingData, load_driving
from foreact.families.driving.vavim import VaViMConfig
from foreact.runs import training as runs
from foreact.runs.inputs import Inputs
from foreact.tokenizers.vq import VQTokenizer
from foreact.train.logs import read_log
from foreact.types import Batch

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
Capture = pytest.CaptureFixture[str]

SIZE, GRID, CODES = (36, 64), (9, 16), 16
PICTURES = (
    f"--model.image-size {SIZE[0]} {SIZE[1]} --model.channels 4 --model.multipliers 1 1 1 "
    f"--model.blocks 1 --model.features 4 --model.norm-groups 2 --model.codes {CODES}"
)
SHAPE = (
    f"--model.width 16 --model.heads 2 --model.layers 2 --model.vocab {CODES + 1} --model.frames 3 "
    f"--model.grid {GRID[0]} {GRID[1]} --model.base-width 8"
)
TRAIN = (
    "--train.batch-size 32 --train.log-every 1 --train.save-every 100 --train.precision fp32 "
    "--train.no-tensorboard --device cpu"
)
PRETRAIN = f"{SHAPE} {TRAIN} --train.steps 4 --train.warmup 1 --train.drop 0"
EXPERT = "--model.expert.width 8 --model.expert.horizon 3"
ACTION = f"{EXPERT} {TRAIN} --train.steps 4 --train.warmup 1 --train.drop 1"


def foreact(*words: object) -> object:
    return run(" ".join(map(str, words)).split())


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    assert any(name.endswith("exp_avg") for name in one)
    for name in one:
        assert torch.equal(one[name], other[name]), name


@dataclasses.dataclass(frozen=True)
class Street:
    """Everything that the command line made, in the order in which it made it."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "toy.zarr"

    @property
    def tokenizer(self) -> Path:
        return self.root / "vq" / "weights"

    def weights(self, stage: str) -> Path:
        return self.root / stage / "weights"

    @property
    def data(self) -> str:
        return f"--data.sources {self.store} --data.val-ratio 0.25"


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Street:
    """The three-stage run from raw frames on."""
    here = Street(tmp_path_factory.mktemp("street"))
    root, store = here.root, here.store
    foreact(f"data toy-street --out {root}/raw --scenes 4")
    foreact(
        f"data import-nuscenes --root {root}/raw --out {store} --height {SIZE[0]} --width {SIZE[1]}"
    )
    foreact(
        f"train vq --data {store} --out {root}/vq",
        PICTURES,
        TRAIN,
        "--train.steps 2 --train.warmup 1 --train.batch-size 4",
    )
    foreact(f"tokenize --store {store} --tokenizer {here.tokenizer} --device cpu")
    video = f"{PRETRAIN} {here.data} --tokenizer {here.tokenizer}"
    foreact("train vavim", video, f"--out {root}/pretrain")
    falling = f"--train.steps 3 --train.warmup 0 --train.drop 3 --train.start-from {root}/pretrain"
    foreact("train vavim --stage finetune", video, falling, f"--out {root}/finetune")
    foreact(
        f"train vavam --video {here.weights('finetune')}", ACTION, here.data, f"--out {root}/action"
    )
    return here


# --- from raw frames to plans ---------------------------------------------------------------------


def test_frames_become_tokens_with_times_poses_and_the_tokenizers_name(street: Street) -> None:
    store = open_store(street.store)
    assert store.spec.fps == 2.0
    assert store.lengths.tolist() == [40] * 4
    tokens = store.gather("tokens_front", np.arange(160))
    assert tokens.shape == (160, *GRID)
    assert tokens.max() < CODES
    assert store.tokenizer_hash("tokens_front") == load_checkpoint(street.tokenizer).hash
    assert len(street.store.with_suffix(".trajectories.jsonl").read_text().splitlines()) == 160


def test_each_stage_leaves_weights_that_bring_their_tokenizer_and_their_meaning(
    street: Street,
) -> None:
    tokenizer = load_checkpoint(street.tokenizer)
    for stage, family, action in (
        ("pretrain", "vavim", None),
        ("finetune", "vavim", None),
        ("action", "vavam", plan_spec(2.0)),
    ):
        checkpoint = load_checkpoint(street.weights(stage))
        assert checkpoint.family == family
        assert checkpoint.tokenizer is not None
        assert checkpoint.tokenizer.hash == tokenizer.hash
        assert isinstance(load_tokenizer(checkpoint), VQTokenizer)
        assert checkpoint.spec is not None
        assert (checkpoint.spec.cameras, checkpoint.spec.fps) == ({"front": SIZE}, 2.0)
        assert checkpoint.spec.action == action
        assert checkpoint.card["stage"] == stage
        assert checkpoint.card["steps"] == {"pretrain": 4, "finetune": 3, "action": 4}[stage]
        assert f"{street.store} (4 drives, 160 frames)" in checkpoint.card["sources"]
        assert math.isfinite(checkpoint.card["val/loss"])


def test_fine_tuning_takes_over_weights_and_moments_and_lets_the_rate_fall(street: Street) -> None:
    before, after = (
        tensors_of(street.root / f"{stage}/checkpoints/step-0000000{steps}")
        for stage, steps in (("pretrain", 4), ("finetune", 3))
    )
    name = "optimizer.state.token_embedding.weight.step"
    assert (before[name], after[name]) == (4, 7)
    assert (
        str(street.root / "pretrain") in load_checkpoint(street.weights("finetune")).card["start"]
    )
    rates = [entry["lr"] for entry in read_log(street.root / "finetune/log.jsonl") if "lr" in entry]
    assert rates == pytest.approx([rates[0] * factor for factor in (1.0, 0.7, 0.4)])


def test_the_action_expert_learns_beside_a_video_model_that_stays_as_it_is(street: Street) -> None:
    video, action = (load_checkpoint(street.weights(stage)) for stage in ("finetune", "action"))
    for name, tensor in video.state.items():
        assert torch.equal(action.state[f"vavim.{name}"], tensor)
    assert action.state["expert.decoder.weight"].any(), "it starts at zero"
    assert action.config["vavim"] == video.config
    assert str(street.weights("finetune")) in action.card["start"]


def test_plans_are_scored_drives_imagined_and_compared(
    street: Street, tmp_path: Path, capsys: Capture
) -> None:
    plans, imagined, video, bound = (
        tmp_path / name for name in ("plans", "imagined", "video", "bound")
    )
    foreact(
        f"eval open-loop --weights {street.weights('action')} --data {street.store} --samples "
        "3 --steps 2",
        f"--max-windows 6 --examples 1 --out {plans} --device cpu",
    )
    found = json.loads((plans / "metrics.json").read_text())
    assert sum(found["plans"]["windows"].values()) == 6
    assert 0 < found["plans"]["min_ade"]["mean"] < math.inf
    assert "minADE_3" in capsys.readouterr().out

    common = f"--data {street.store} --context 2 --device cpu"
    foreact(
        f"generate --weights {street.weights('finetune')} {common} --future 2 --windows 1 "
        "--precision int8",
        f"--out {imagined}",
    )
    assert sorted(p.suffix for p in imagined.iterdir()) == [".json", ".mp4", ".png"]
    foreact(
        f"eval video --weights {street.weights('action')} {common} --future 3 --max-windows 2 "
        "--batch-size 1",
        f"--precision bf16 --out {video}",
    )
    assert json.loads((video / "metrics.json").read_text())["quality"]["steps_ahead"] == [1, 2, 3]
    foreact(
        f"eval video --tokenizer {street.tokenizer} {common} --future 1 --max-windows 2 --out "
        f"{bound}"
    )
    assert "tokenizer alone" in json.loads((bound / "metrics.json").read_text())["facts"]["weights"]


@pytest.mark.parametrize("stage", ["pretrain", "action"])
def test_a_stopped_run_goes_on_bitwise(
    stage: str, street: Street, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    family, words = {
        "pretrain": ("vavim", f"{PRETRAIN} {street.data} --tokenizer {street.tokenizer}"),
        "action": ("vavam", f"--video {street.weights('finetune')} {ACTION} {street.data}"),
    }[stage]
    real = runs.batches

    def interrupted(*args: Any, **options: Any) -> Iterator[Batch]:
        for number, batch in enumerate(real(*args, **options)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(runs, "batches", interrupted)
        with pytest.raises(SystemExit) as stopped:
            foreact(f"train {family} {words} --out {tmp_path}/run")
    assert stopped.value.code == 130
    assert f"Go on with: foreact train {family} --from {tmp_path}/run" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"], (
        "2 of 3.6 steps per epoch"
    )
    assert not (tmp_path / "run/weights").exists()
    foreact(f"train {family} --from {tmp_path}/run")
    assert (
        load_checkpoint(tmp_path / "run/weights").hash
        == load_checkpoint(street.weights(stage)).hash
    )
    last = "checkpoints/step-00000004"
    assert_same(tensors_of(tmp_path / "run" / last), tensors_of(street.root / stage / last))


def test_the_demo_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from foreact.commands.demos import driving as demo

    small = dataclasses.replace(demo.VIDEO, width=32, heads=1, layers=1, frames=2)
    monkeypatch.setattr("foreact.families.driving.data.toy_street.FRAMES", 16)
    monkeypatch.setattr(demo, "VIDEO", small)
    monkeypatch.setattr(demo, "ACTION", dataclasses.replace(demo.ACTION, vavim=small))
    monkeypatch.setattr(
        demo, "TOKENIZER", dataclasses.replace(demo.TOKENIZER, channels=4, norm_groups=2)
    )
    few = {"OpenLoop": {"max_windows": 8, "examples": 1}, "Imagining": {"future": 2}}
    for name, options in few.items():
        monkeypatch.setattr(demo, name, partial(getattr(demo, name), **options))
    foreact(f"demo driving --out {tmp_path}/demo --scenes 4 --effort 0.004")
    assert "minADE_10" in capsys.readouterr().out
    assert len(list((tmp_path / "demo/imagined").glob("*.mp4"))) == 4
    before = load_checkpoint(tmp_path / "demo/action/weights").hash
    for measured in ("open_loop", "generate"):
        monkeypatch.setattr(demo, measured, lambda *args, **options: None)
    foreact(f"demo driving --out {tmp_path}/demo --scenes 4 --effort 0.004")
    assert load_checkpoint(tmp_path / "demo/action/weights").hash == before, (
        "what is finished is not trained again"
    )


# --- the published recipes ------------------------------------------------------------------------

PARAMETERS = {
    "S": (182_901_504, 21_346_752),
    "B": (319_366_144, 37_948_672),
    "L": (1_242_712_064, 151_788_032),
}


@pytest.mark.parametrize("size", ["S", "B", "L"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "action"])
def test_published_recipes_are_planned_without_data(
    size: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    family = "vavam" if stage == "action" else f"vavim --stage {stage}"
    foreact(f"train {family} --size {size} --plan --plan-tflops 100")
    printed = " ".join(capsys.readouterr().out.split())
    video, expert = PARAMETERS[size]
    trained, frozen = (expert, video) if stage == "action" else (video, 0)
    steps = {"pretrain": "155,293", "finetune": "15,529", "action": "7,251"}[stage]
    assert f"parameters {trained:,} trained, {frozen:,} frozen" in printed
    assert f"steps {steps} per step 384 samples" in printed
    assert "h at 100 TFLOP/s" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["S", "B", "L"])
def test_published_settings(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (vavim.recipe(size=size, stage=stage) for stage in ("pretrain", "finetune"))
    third = vavam.recipe(size=size)
    for run_, lr in ((first, 0.0041), (second, 0.0041), (third, 0.0194)):
        train = run_.train
        assert (train.lr, train.weight_decay, train.betas, train.clip_grad) == (
            lr,
            1e-7,
            (0.9, 0.95),
            1.0,
        )
        assert (train.schedule, train.floor, train.precision, train.seed) == (
            "wsd",
            0.1,
            "auto",
            84924,
        )
        assert train.batch_size * train.accumulate == 384
        assert not train.ema.enabled
        assert run_.data.rate_hz == 2.0
    rhythms = [(r.train.steps, r.train.warmup, r.train.drop) for r in (first, second, third)]
    assert rhythms == [(155_293, 15_529, 0), (15_529, 0, 15_529), (7_251, 75, 725)]
    assert first.train.keep_at == (38_823, 77_646, 116_469, 139_763)
    assert (first.model, third.model.expert.init_std) == (second.model, 0.0086)
    assert (first.model.init_std, first.model.frames, first.model.grid, first.model.vocab) == (
        0.0289,
        8,
        (18, 32),
        16385,
    )
    assert (third.model.vavim, third.model.train_vavim) == (first.model, False)

    monkeypatch.setenv("WORLD_SIZE", {"S": "64", "B": "128", "L": "192"}[size])
    assert vavim.recipe(size=size).train.accumulate == 1, "the published number of GPUs"
    monkeypatch.setenv("WORLD_SIZE", {"S": "24", "B": "24", "L": "48"}[size])
    assert vavam.recipe(size=size).train.accumulate == 1
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(
        UserError, match=r"7 processes with .* do not divide the published batch of 384"
    ):
        vavim.recipe(size=size)


# --- sources --------------------------------------------------------------------------------------

SMALL = VaViMConfig(width=16, heads=2, layers=1, vocab=50, frames=2, grid=(2, 3), base_width=8)
SHORT = f"{TRAIN} --train.steps 2 --train.warmup 0 --train.drop 0 --train.batch-size 6"


def shape(prefix: str = "model") -> str:
    """SMALL on the command line."""
    words = {
        k.replace("_", "-"): v
        for k, v in dataclasses.asdict(SMALL).items()
        if v != getattr(VaViMConfig(), k)
    }
    return " ".join(
        f"--{prefix}.{k} {' '.join(map(str, v)) if k == 'grid' else v}" for k, v in words.items()
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drives in the three forms: a store at 10 Hz, token folders at
    10 Hz, trajectories with tokens at 2 Hz.
    """
    root = tmp_path_factory.mktemp("sources")
    turning = [drive(60, seed=i, turn=0.6 * (i - 1), period=0.1) for i in range(3)]
    tokens = write_token_store(root / "drives.zarr", turning)
    for name, grids in zip(("one", "-two"), tokens, strict=False):
        folder = root / "folders" / name.replace("-", "@")
        folder.mkdir(parents=True)
        for i, grid in enumerate(grids[:40]):
            np.save(folder / f"t_{i:06d}.npy", grid)
    (root / "folders/videos.txt").write_text("one\n-two\n")
    records = []
    for scene in range(2):
        for i, pose in enumerate(drive(12, seed=7 + scene)):
            file = f"samples/CAM_FRONT/{scene}-{i}.jpg"
            (root / "tokens" / file).parent.mkdir(parents=True, exist_ok=True)
            np.save((root / "tokens" / file).with_suffix(".npy"), tokens[scene][i])
            frame = {
                "file_path": file,
                "timestamp": START + i * 500_000,
                "ego_to_world_tran": pose[:3].tolist(),
                "ego_to_world_rot": pose[3:].tolist(),
            }
            records.append({"scene": {"name": f"s{scene}", "description": ""}, "CAM_FRONT": frame})
    write_trajectories(root / "train.jsonl", records)
    return root


def three(root: Path) -> list[str]:
    return [
        str(root / "drives.zarr"),
        f"{root / 'folders'}@10",
        f"{root / 'train.jsonl'}:{root / 'tokens'}@2",
    ]


def test_the_three_forms_of_a_source_are_mixed_in_given_shares(
    sources: Path, tmp_path: Path, capsys: Capture
) -> None:
    foreact(
        f"train vavim {shape()} {SHORT} --out {tmp_path}/run --data.sources",
        *three(sources),
        f"--data.ratios 0.5 0.25 0.25 --data.total 80 --data.val-sources {sources}/drives.zarr",
    )
    assert "80 to train on, 165 to validate, 2 Hz" in capsys.readouterr().out
    about = load_checkpoint(tmp_path / "run/weights").card["sources"]
    assert [about.count(part) for part in ("(3 drives, 180", "(2 drives, 80", "(2 drives, 24")] == [
        1,
        1,
        1,
    ]


def test_a_source_in_one_form_gives_the_windows_that_it_gives_in_another(sources: Path) -> None:
    store, folders, trajectories = (
        load_driving(
            DrivingData(sources=(source,), val_sources=(source,)),
            SMALL,
            horizon=None,
            inputs=Inputs(None, seed=0),
        ).training
        for source in three(sources)
    )
    first = np.arange(30)
    a, b = store.batch(first).tokens["front"], folders.batch(first).tokens["front"]
    assert torch.equal(a, b)
    # Files that follow each other at 2 Hz were neighbours at 10 Hz in the store.
    later = trajectories.batch(np.array([0])).tokens["front"][0, 1]
    assert torch.equal(later, store.batch(np.array([1])).tokens["front"][0, 0])
    assert len(trajectories) == 2 * 11


def test_only_listed_windows_of_the_first_source_are_learned(
    sources: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "only.json").write_text("[3, 5, 8, 13]")
    foreact(
        f"train vavim {shape()} {SHORT} --out {tmp_path}/run --data.sources",
        *three(sources)[:2],
        f"--data.only {tmp_path}/only.json --data.val-ratio 0.4",
    )
    assert f"{4 + 35} to train on" in capsys.readouterr().out
    data = DrivingData(sources=(three(sources)[0],), val_ratio=0.4)
    whole, split = (
        load_driving(
            dataclasses.replace(data, only=only), SMALL, horizon=None, inputs=Inputs(None, seed=0)
        )
        for only in (None, tmp_path / "only.json")
    )
    rows = np.array([3, 5, 8, 13])
    first, chosen = split.training.batch(np.arange(4)).index, whole.training.batch(rows).index
    assert first is not None
    assert chosen is not None
    assert torch.equal(first, chosen)


def test_plans_come_from_stores_and_trajectories_with_hard_turns_and_the_released_commands(
    sources: Path, tmp_path: Path
) -> None:
    chosen = [three(sources)[0], three(sources)[2]]
    data = DrivingData(sources=tuple(chosen), val_sources=(chosen[0],), hard_turns=2)
    split = load_driving(data, SMALL, horizon=3, inputs=Inputs(None, seed=0))
    drawn = np.arange(0, len(split.training), 7)
    everything = load_driving(
        dataclasses.replace(data, hard_turns=0), SMALL, horizon=3, inputs=Inputs(None, seed=0)
    ).training
    rates = cast(TurningWindows, everything).yaw_rates(drawn)
    kept = split.training.batch(drawn)
    assert len(kept) == 2
    sharpest = np.sort(np.argsort(-rates, kind="stable")[:2])
    assert kept.plans is not None
    torch.testing.assert_close(kept.plans, everything.batch(drawn[sharpest]).plans)

    near = load_driving(
        dataclasses.replace(data, hard_turns=0, command_horizon="reference"),
        SMALL,
        horizon=3,
        inputs=Inputs(None, seed=0),
    )
    commands = [w.batch(np.arange(0, 60)).commands for w in (everything, near.training)]
    assert (commands[0] != commands[1]).any(), "1.5 s ahead some turn that 0.3 s ahead do not"
    assert (commands[1] != 2).sum() < (commands[0] != 2).sum()

    foreact(
        f"train vavam --model.train-vavim {shape('model.vavim')} {EXPERT} {SHORT} --out "
        f"{tmp_path}/run",
        f"--data.sources {' '.join(chosen)} --data.val-sources {chosen[0]} --data.hard-turns 2",
        "--data.command-horizon reference",
    )
    checkpoint = load_checkpoint(tmp_path / "run/weights")
    assert checkpoint.tokenizer is None
    assert checkpoint.config["train_vavim"]
