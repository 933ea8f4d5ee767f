"""Two processes train the driving models as one does at the same global batch, whole (DDP) or in
shares (FSDP2).

`main` is one process of several commands, one after the other.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.driving_worlds import drive, tensors_of, write_token_store
from support.processes import Together

from foreact.checkpoints.format import load_checkpoint
from foreact.cli import run
from foreact.train.logs import read_log

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.skipif(
        torch.__version__ < "2.9", reason="refused there: see test_parallel.py"
    ),  # gloo's mean
]

SHAPE = (
    "--model.{0}width 16 --model.{0}heads 2 --model.{0}layers 2 --model.{0}vocab 50 "
    "--model.{0}frames 2 --model.{0}base-width 8 --model.{0}grid 2 3"
)
TRAIN = (
    "--train.batch-size 3 --train.log-every 1 --train.precision fp32 --train.no-tensorboard "
    "--train.drop 0 --train.warmup 1 --device cpu"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process, and the same ones by two processes with half the micro-batches each."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("runs")
    write_token_store(
        root / "drives.zarr", [drive(40, seed=i, turn=0.4 * (i - 1), period=0.1) for i in range(3)]
    )
    vavim = f"train vavim {SHAPE.format('')} {TRAIN} --data.sources {root}/drives.zarr"
    vavam = f"train vavam --model.expert.width 8 {TRAIN} --data.sources {root}/drives.zarr"
    frozen = f"{vavam} --video {root}/one/weights"
    learning = f"{vavam} {SHAPE.format('vavim.')} --model.train-vavim"
    alone = [
        f"{vavim} --out {root}/one --train.accumulate 4 --train.steps 3",
        f"{frozen} --out {root}/frozen --train.accumulate 2 --train.steps 2",
        f"{learning} --out {root}/learning --train.accumulate 2 --train.steps 2",
    ]
    for command in alone:
        run(command.split())
    together = []
    for parallel in ("ddp", "fsdp"):
        how = f"--train.parallel {parallel}"
        together += [
            f"{vavim} {how} --out {root}/one-{parallel} --train.accumulate 2 --train.steps 3",
            f"{frozen} {how} --out {root}/frozen-{parallel} --train.steps 2",
            f"{learning} {how} --out {root}/learning-{parallel} --train.steps 2",
        ]
    both = Together(main, together)
    both.finish()
    assert both.output.count("Done\n") == 6, "one process speaks for both"
    return root


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["one", "frozen", "learning"])
def test_two_processes_do_what_one_does_with_twice_the_micro_batches(
    name: str, parallel: str, runs: Path
) -> None:
    alone, both = (read_log(runs / folder / "log.jsonl") for folder in (name, f"{name}-{parallel}"))
    assert [entry["step"] for entry in alone] == [entry["step"] for entry in both]
    for a, b in zip(alone, both, strict=True):
        for key in ("loss", "grad_norm", "lr", "val/loss"):
            assert b.get(key) == (
                None if key not in a else pytest.approx(a[key], rel=1e-4, abs=1e-6)
            )
    one, other = (
        load_checkpoint(runs / folder / "weights") for folder in (name, f"{name}-{parallel}")
    )
    assert set(one.state) == set(other.state)
    for key, tensor in one.state.items():
        torch.testing.assert_close(other.state[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


def test_one_process_goes_on_with_what_two_have_saved(runs: Path, tmp_path: Path) -> None:
    names = ("one", "one-ddp", "one-fsdp")
    for name in names:
        shutil.copytree(runs / name, tmp_path / name)
        run(f"train vavim --from {tmp_path / name} --train.accumulate 4 --train.steps 5".split())
    whole, *others = (tensors_of(tmp_path / name / "checkpoints/step-00000005") for name in names)
    for other in others:
        assert set(other) == set(whole)
        for key, tensor in whole.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


def test_a_frozen_video_model_is_whole_in_the_weights_of_divided_processes(runs: Path) -> None:
    video, action = (
        load_checkpoint(runs / name / "weights").state for name in ("one", "frozen-fsdp")
    )
    assert all(torch.equal(action[f"vavim.{name}"], tensor) for name, tensor in video.items())


def main(commands: list[str]) -> None:
    torch.distributed.init_process_group("gloo")
    for words in commands:
        run(words.split())
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
