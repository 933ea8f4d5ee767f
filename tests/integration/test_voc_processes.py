"""Two processes train occupancy models as one does at the same global batch, whole (DDP) or in
shares (FSDP2).

`main` is one process of several commands, one after the other.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.occupancy_worlds import write_pushes, write_tokenizer
from support.processes import Together

from foreact.checkpoints.format import build, load_checkpoint
from foreact.cli import run

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.skipif(
        torch.__version__ < "2.9", reason="refused there: see test_parallel.py"
    ),  # gloo's mean
]


def test_two_processes_do_what_one_does_with_twice_the_micro_batches(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    write_pushes(tmp_path / "pushes.zarr")
    write_tokenizer(tmp_path / "vq")
    command = (
        f"train voc --task cheetah-run --data {tmp_path}/pushes.zarr --tokenizer {tmp_path}/vq "
        "--actions --val-ratio 0.3 --model.width 16 --model.heads 2 --model.layers 2 "
        "--model.frames 2 --model.dropout 0 --model.attention-dropout 0 --model.gammas 0.5 0.9 "
        "--train.steps 3 --train.batch-size 4 --train.warmup 1 --train.workers 0 "
        "--train.precision fp32 --train.no-tensorboard --device cpu"
    )
    run(f"{command} --train.accumulate 2 --out {tmp_path}/one".split())
    ways = ("ddp", "fsdp")
    commands = [f"{command} --train.parallel {way} --out {tmp_path}/{way}" for way in ways]
    Together(main, commands).finish()
    alone = load_checkpoint(tmp_path / "one" / "weights").state
    for way in ways:
        together = load_checkpoint(tmp_path / way / "weights")
        build(together)
        assert together.card["steps"] == 3
        assert set(together.state) == set(alone)
        for name, tensor in together.state.items():
            torch.testing.assert_close(
                tensor, alone[name], atol=1e-5, rtol=1e-4, msg=f"{way}: {name}"
            )


def main(commands: list[str]) -> None:
    torch.distributed.init_process_group("gloo")
    for words in commands:
        run(words.split())
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
