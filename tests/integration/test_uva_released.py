"""Files in the layout of UVA's released weights, converted, act and imagine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.uva_files import MICRO, reference_like

import foreact
from foreact.checkpoints.format import load_checkpoint
from foreact.errors import UserError
from foreact.families.uva.model import UVAConfig
from foreact.released.convert import convert
from foreact.released.pickles import read_torch_file
from foreact.runs.stores import policy_spec
from foreact.tasks import find_task
from foreact.types import Observation, Seen, StreamSpec

REFERENCE_FILE = (
    Path(__file__).parents[1] / "parity/goldens/uva/checkpoint_pusht/reference_format.ckpt"
)
UMI = policy_spec(find_task("umi"))
LIBERO = find_task("libero10").spec
ENCODER = "support.text_encoders_512:ENCODER"
RELEASED: dict[str, tuple[StreamSpec, dict[str, Any], int]] = {
    "umi": (
        UMI,
        {
            "text_dim": 512,
            "action_dim": 10,
            "proprioception": {name: len(dims) for name, dims in UMI.state.items()},
            "proprioception_steps": 4,
            "proprioception_prediction": {"robot0_eef_rot_axis_angle_wrt_start": 6},
            "uneven_context": True,
            "first_now": False,
            "modes": {"policy": 1.0, "joint": 1.0},
        },
        224,
    ),
    "libero10": (LIBERO, {"text_dim": 512, "action_dim": 10}, 128),
}


@pytest.fixture(scope="module")
def payload() -> dict[str, Any]:
    return read_torch_file(REFERENCE_FILE)


def observation(spec: StreamSpec, step: int, text: str) -> Observation:
    return Observation(
        cameras={
            name: np.full((1, *size, 3), 10 * step, np.uint8) for name, size in spec.cameras.items()
        },
        state={name: np.full((1, len(d)), 0.1, np.float32) for name, d in spec.state.items()},
        text=[text],
    )


@pytest.mark.parametrize("task", RELEASED)
def test_a_released_file_acts_and_imagines(
    task: str, payload: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, options, size = RELEASED[task]
    config = UVAConfig(**(MICRO | options))
    content = reference_like(config, payload, uneven=config.uneven_context, size=size)
    # As initialised, the heads answer nothing but noise, whatever they are told.
    torch.manual_seed(1)
    state = content["state_dicts"]["model"]
    state |= {k: v + 0.1 * torch.randn_like(v) for k, v in state.items() if k.startswith("model.")}
    # The reference keeps statistics of actions for its simulators, and none for UMI.
    scaled = {"action": 10, **{name: len(dims) for name, dims in spec.state.items()}}
    state |= identity(scaled)
    torch.save(content, tmp_path / f"{task}.ckpt")
    weights = tmp_path / "weights"
    convert(tmp_path / f"{task}.ckpt", weights, raw=True, heads=(2, 1), spec=spec)
    with pytest.raises(UserError, match="brings no instructions; name its text encoder"):
        foreact.load_policy(weights, device="cpu")
    policy: Any = foreact.load_policy(
        weights, device="cpu", text_encoder=ENCODER, steps=2, batch_size=1
    )
    policy.reset([3])
    for step in range(3):
        policy.observe(observation(spec, step, "fold the towel"))
    chunk = policy.act()
    assert chunk.actions.shape == (1, 16, 10)
    assert np.isfinite(chunk.actions).all()
    # UMI's first action is the pose to be reached at the next step.
    assert chunk.t0 == (3 if task == "umi" else 2)
    policy.observe(observation(spec, 3, "fold the towel"))
    other: Any = foreact.load_policy(
        weights, device="cpu", text_encoder=ENCODER, steps=2, batch_size=1, instruction="wait"
    )
    other.reset([3])
    for step in range(3):
        other.observe(observation(spec, step, "fold the towel"))
    assert (other.act().actions != chunk.actions).any()
    frames = {name: np.zeros((1, 4, *spec.cameras[name], 3), np.uint8) for name in policy.cameras}
    imagined = policy.predict_video(
        Seen(frames=frames, text=["fold the towel"]), rng=torch.Generator().manual_seed(0)
    )
    assert {name: x.shape for name, x in imagined.items()} == {
        name: (1, 4, *spec.cameras[name], 3) for name in policy.foreseen
    }
    assert load_checkpoint(weights).spec == spec


def identity(widths: dict[str, int]) -> dict[str, torch.Tensor]:
    """Statistics of the reference's normaliser that change nothing."""
    state = {}
    for name, width in widths.items():
        prefix = f"normalizer.params_dict.{name}"
        state[f"{prefix}.scale"], state[f"{prefix}.offset"] = torch.ones(width), torch.zeros(width)
        for entry, value in (("min", -1.0), ("max", 1.0), ("mean", 0.0), ("std", 1.0)):
            state[f"{prefix}.input_stats.{entry}"] = torch.full((width,), value)
    return state
