"""The authors' configs, task by task, as the defaults of the published sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import told_world

from foreact.errors import UserError
from foreact.families.uva.recipes import recipe
from foreact.families.uva.train import VERB, train_uva
from foreact.families.uva.windows import window_of
from foreact.runs.stores import task_of

CLIP_SIZED = "support.text_encoders_512:ENCODER"
UMI_STATE_WIDTHS = [3, 6, 1, 6]


@pytest.mark.parametrize(
    ("task", "action_dim", "batch_size", "text_dim"),
    [
        ("pusht", 2, 32, None),
        ("pusht-m", 2, 32, None),
        ("tool-hang", 10, 32, None),
        ("libero10", 10, 32, 512),
        ("umi", 10, 56, 512),
    ],
)
def test_published_hyper_parameters(
    task: str, action_dim: int, batch_size: int, text_dim: int | None
) -> None:
    run = recipe(task, "base")
    model = run.model
    assert (model.frames, model.horizon, model.action_dim) == (4, 16, action_dim)
    assert (model.width, model.depth, model.heads, model.head) == (768, 12, 12, "diffusion")
    assert (model.dropout, model.mask_ratio_min, model.text_drop) == (0.1, 0.7, 0.1)
    assert (run.train.batch_size, run.train.lr, run.train.warmup) == (batch_size, 1e-4, 1000)
    assert (run.train.weight_decay, run.train.betas) == (0.02, (0.9, 0.95))
    assert model.text_dim == text_dim
    assert model.wrist_camera is None  # none of the released models watches one


def test_umis_two_stages() -> None:
    first = recipe("umi", "base", "video").model
    assert (first.predict_action, first.uneven_context, first.first_now) == (False, True, False)
    assert dict(first.modes) == {"video": 1.0}
    second = recipe("umi", "base").model
    assert list(second.proprioception.values()) == UMI_STATE_WIDTHS
    assert second.proprioception_steps == 4
    assert dict(second.proprioception_prediction) == {"robot0_eef_rot_axis_angle_wrt_start": 6}
    assert dict(second.modes) == {"policy": 1.0, "joint": 1.0}
    window = window_of(second, pixels=False)
    assert window.actions == tuple(range(1, 17))
    assert window.latents["camera0_rgb"] == (*range(-15, 1), 4, 8, 12, 16)


def test_the_encoder_decides_how_wide_an_instruction_is() -> None:
    assert recipe("umi", "base", text_encoder=CLIP_SIZED).model.text_dim == 512
    small = VERB.parse(["--task", "libero10", "--text-encoder", "support.told_world:ENCODER"])
    assert small.model.text_dim == told_world.DIM
    with pytest.raises(UserError, match="makes them with --text-encoder"):
        train_uva(recipe("libero10", "base"))


def test_what_data_are_of(tmp_path: Path) -> None:
    own = task_of(None, told_world.write_store(tmp_path / "told.zarr", episodes=1))
    assert (own.name, own.camera, own.env) == ("told", "front", None)
    assert task_of(None, None).name == "pusht"
    (tmp_path / "mix.json").write_text(json.dumps({"members": []}))
    with pytest.raises(UserError, match="does not say what it is of; name it with --task"):
        task_of(None, tmp_path / "mix.json")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"uneven_context": True, "proprioception": {"s": 1}}, "--model.uneven-context"),
        ({"modalities": {"force": 0}}, "--model.modalities of 'force' should have at least 1"),
    ],
)
def test_sizes_that_contradict_each_other(options: dict[str, Any], problem: str) -> None:
    from foreact.families.uva.config import UVAConfig

    with pytest.raises(UserError, match=problem):
        UVAConfig(**options)
