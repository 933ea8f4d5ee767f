"""A released training checkpoint goes on in our loop: weights and
AdamW's moments arrive where they belong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from foreact.commands.convert import Convert, convert
from foreact.errors import UserError
from foreact.families.driving.released.training_state import read_training_state
from foreact.train.checkpoint import Checkpoints, find_checkpoint
from foreact.train.optim import build_optimizer
from foreact.train.parallel import World

GOLDENS = Path(__file__).parents[1] / "parity/goldens/vavam"


def test_weights_and_moments_arrive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = GOLDENS / "lightning_training_checkpoint/step5.ckpt"
    convert(Convert(src=file, out=tmp_path / "run", to="training"), grid=(2, 3))
    assert "step-00000005" in capsys.readouterr().out
    found = find_checkpoint(tmp_path / "run")
    assert found is not None
    folder, step = found
    assert step == 5
    expected = read_training_state(file, grid=(2, 3))
    model = type(expected.reference.build())(expected.reference.config)
    optimizer = build_optimizer(model, lr=0.5, weight_decay=0.1, betas=(0.9, 0.95))
    Checkpoints(folder, World()).load_start(step, model, optimizer)
    for name, tensor in expected.reference.build().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    state: Any = get_optimizer_state_dict(model, optimizer)["state"]
    for name, moment in expected.first.items():
        assert torch.equal(state[name]["exp_avg"], moment), name
        assert torch.equal(state[name]["exp_avg_sq"], expected.second[name]), name
        assert state[name]["step"] == 5
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}


def test_weights_alone_are_no_training_state(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds weights but no state of an optimiser"):
        convert(
            Convert(src=GOLDENS / "weights_gpt/model.ckpt", out=tmp_path / "run", to="training"),
            grid=(3, 4),
        )
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        convert(
            Convert(
                src=GOLDENS / "lightning_training_checkpoint/step5.ckpt",
                out=tmp_path,
                to="training",
            ),
            grid=(2, 3),
        )
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
