"""A driving policy from its checkpoint folder, alone and behind the served verb."""

from __future__ import annotations

import http.client
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.processes import Forked
from torch import nn

import foreact
from foreact.checkpoints.format import TokenizerRef, save_checkpoint
from foreact.checkpoints.torchscript import TorchScriptTokenizer
from foreact.cli import run
from foreact.errors import UserError
from foreact.evals.closed_loop import read_closed_loop
from foreact.families.driving.policy import DrivingOptions, DrivingPolicy, acting_spec, open_policy
from foreact.families.driving.serve_neuroncap import ServeNeuroNCAP, neuroncap
from foreact.families.driving.vavam import ExpertConfig, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViMConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.types import Observation
from foreact.worlds import StepOut, Task

SIZE = (32, 48)
CONFIG = VaVAMConfig(
    vavim=VaViMConfig(
        width=16, heads=2, layers=2, vocab=16385, frames=3, grid=(2, 3), base_width=16
    ),
    expert=ExpertConfig(width=8, horizon=4, base_width=8, base_attention=16),
)
VQ = VQConfig(
    channels=8,
    multipliers=(1, 1, 1, 1, 1),
    blocks=1,
    features=8,
    codes=32,
    norm_groups=4,
    image_size=SIZE,
)


class Encoder(nn.Module):
    """Sixteen levels of brightness, one per square of 16 pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((nn.functional.avg_pool2d(x.mean(1), 16) + 1) * 7.5).long()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoints `car` (with its tokenizer), `bare` (names none),
    `scripted` (names encoder.jit) and `vq`.
    """
    root = tmp_path_factory.mktemp("serving")
    torch.manual_seed(0)
    model, vq = VaVAM(CONFIG), VQTokenizer(VQ)
    nn.init.normal_(model.expert.decoder.weight)
    traced: Any = torch.jit.trace(Encoder(), torch.zeros(1, 3, *SIZE))
    traced.save(str(root / "encoder.jit"))
    save_checkpoint(root / "vq", family="vq", config=VQ, state=vq.state_dict())
    script = TokenizerRef(
        family="torchscript", hash=TorchScriptTokenizer(root / "encoder.jit").hash
    )
    for name, tokenizer in (("car", root / "vq"), ("bare", None), ("scripted", script)):
        save_checkpoint(
            root / name,
            family="vavam",
            config=CONFIG,
            state=model.state_dict(),
            spec=acting_spec(SIZE),
            tokenizer=tokenizer,
        )
    return root


def named(path: Path | str | None) -> str | None:
    return None if path is None else str(path)


def plan(path: Path, tokenizer: Path | None = None) -> np.ndarray:
    policy = open_policy(
        path, DrivingOptions(tokenizer=named(tokenizer), samples=3, choose="medoid")
    )
    policy.reset([0])
    frame = np.random.default_rng(0).integers(0, 256, (1, 90, 160, 3), np.uint8)
    policy.observe(Observation({"front": frame}, {"command": np.ones((1, 1), np.float32)}))
    return policy.act().actions


def test_the_tokenizer_is_embedded_or_given(folder: Path) -> None:
    embedded = plan(folder / "car")
    assert embedded.shape == (1, 4, 2)
    np.testing.assert_array_equal(plan(folder / "bare", folder / "vq"), embedded)
    np.testing.assert_array_equal(plan(folder / "car", folder / "vq"), embedded)
    scripted = plan(folder / "bare", folder / "encoder.jit")
    np.testing.assert_array_equal(plan(folder / "scripted", folder / "encoder.jit"), scripted)
    assert not np.array_equal(scripted, embedded)


@pytest.mark.parametrize(
    ("path", "tokenizer", "sentence"),
    [
        (
            "bare",
            None,
            (
                r"bare names no tokenizer; give one with --tokenizer: a checkpoint folder "
                r"or a TorchScript"
            ),
        ),
        (
            "car",
            "encoder.jit",
            r"car was trained on the vq tokenizer sha256:\w+, .*encoder\.jit has the hash",
        ),
        ("scripted", None, r"needs the torchscript tokenizer sha256:\w+ and does not embed it"),
        ("bare", "car", r"car, a 'vavam', is no tokenizer; give a kl_vae, a vq, a vqkd or a musik"),
        ("bare", "absent", r"absent' is neither a checkpoint folder nor"),
        ("bare", "bare/config.json", r"holds no config.json"),
        ("vq", None, r"vq holds weights of the family 'vq'; this takes those of vavam"),
    ],
)
def test_tokenizers_and_weights_that_do_not_fit(
    folder: Path, path: str, tokenizer: str | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        open_policy(
            folder / path, DrivingOptions(tokenizer=named(tokenizer and folder / tokenizer))
        )


class Street:
    """A straight street that gets brighter the further the car
    is; the reward is how far it went.
    """

    spec = acting_spec(SIZE)
    max_steps = 3

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self.distance = float(seed % 7)
        return self._seen()

    def step(self, action: np.ndarray) -> StepOut:
        self.distance += float(action[0])
        return StepOut(self._seen(), self.distance, terminated=False)

    def _seen(self) -> dict[str, np.ndarray]:
        return {"front": self.render(), "command": np.array([2.0], np.float32)}

    def render(self) -> np.ndarray:
        return np.full((*SIZE, 3), int(np.clip(20 * self.distance, 0, 255)), np.uint8)

    def close(self) -> None:
        pass


TASK = Task(name="street", spec=Street.spec, camera="front", env=f"{__name__}:Street", score="sum")


def test_a_driving_model_acts_in_closed_loop_by_the_calls_of_every_family(
    folder: Path, tmp_path: Path
) -> None:
    policy = foreact.load_policy(folder / "car", device="cpu", samples=2, choose="medoid")
    assert isinstance(policy, DrivingPolicy)
    policy.reset([0])
    policy.observe(
        Observation({"front": Street().reset(0)["front"][None]}, {"command": np.full((1, 1), 2.0)})
    )
    assert policy.act().actions.shape == (1, 4, 2)
    run(
        f"eval closed-loop --weights {folder / 'car'} --task {__name__} --seeds 2 --videos 0 "
        "--workers 1 --samples 2 "
        f"--choose medoid --execute 2 --out {tmp_path} --device cpu".split()
    )
    result = read_closed_loop(tmp_path / "car")
    assert result.score.n == 2
    assert (result.protocol["policy"], result.protocol["samples"], result.protocol["execute"]) == (
        "vavam",
        2,
        2,
    )


def serve(weights: str) -> None:
    neuroncap(ServeNeuroNCAP(weights=weights, port=0, device="cpu"))


def test_the_verb_serves_until_interrupted(folder: Path) -> None:
    process = Forked(serve, str(folder / "car"))
    try:
        while not (found := re.search(r"Serving at http://127\.0\.0\.1:(\d+) ", process.output)):
            assert process.poll() is None, process.errors
            time.sleep(0.05)
        printed = process.output.splitlines()
        assert "NeuroNCAP server" in printed
        assert "  policy       vavam" in printed
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("GET", "/alive")
        assert json.loads(connection.getresponse().read()) is True
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait() != 0
        assert "KeyboardInterrupt" in process.errors  # the command line makes one word of it
    finally:
        process.kill()
