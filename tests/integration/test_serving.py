"""A driving policy from its checkpoint folder, alone and behind the served verb."""

from __future__ import annotations

import http.client
import json
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from processes import Forked

from foreact.checkpoints.format import TokenizerRef, save_checkpoint
from foreact.checkpoints.torchscript import TorchScriptTokenizer
from foreact.errors import UserError
from foreact.families.driving.policy import DrivingOptions, acting_spec, open_policy
from foreact.families.driving.serve_neuroncap import neuroncap
from foreact.families.driving.vavam import ExpertConfig, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViMConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.types import Observation

SIZE = (32, 48)
CONFIG = VaVAMConfig(
    vavim=VaViMConfig(width=16, heads=2, layers=2, vocab=16385, frames=3, grid=(2, 3), base_width=16),
    expert=ExpertConfig(width=8, horizon=4, base_width=8, base_attention=16),
)
VQ = VQConfig(channels=8, multipliers=(1, 1, 1, 1, 1), blocks=1, features=8, codes=32, norm_groups=4, image_size=SIZE)


class Encoder(nn.Module):
    """Sixteen levels of brightness, one per square of 16 pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((nn.functional.avg_pool2d(x.mean(1), 16) + 1) * 7.5).long()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoints `car` (with its tokenizer), `bare` (names none), `scripted` (names encoder.jit) and `vq`."""
    root = tmp_path_factory.mktemp("serving")
    torch.manual_seed(0)
    model, vq = VaVAM(CONFIG), VQTokenizer(VQ)
    nn.init.normal_(model.expert.decoder.weight)
    torch.jit.trace(Encoder(), torch.zeros(1, 3, *SIZE)).save(str(root / "encoder.jit"))  # pyright: ignore
    save_checkpoint(root / "vq", family="vq", config=VQ, state=vq.state_dict())
    script = TokenizerRef(family="torchscript", hash=TorchScriptTokenizer(root / "encoder.jit").hash)
    for name, tokenizer in (("car", root / "vq"), ("bare", None), ("scripted", script)):
        save_checkpoint(
            root / name, family="vavam", config=CONFIG, state=model.state_dict(), spec=acting_spec(SIZE),
            tokenizer=tokenizer,
        )  # fmt: skip
    return root


def named(path: Path | str | None) -> str | None:
    return None if path is None else str(path)


def plan(path: Path, tokenizer: Path | None = None) -> np.ndarray:
    policy = open_policy(path, DrivingOptions(tokenizer=named(tokenizer), samples=3, choose="medoid"))
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
        ("bare", None, r"bare names no tokenizer; give one with --tokenizer: a checkpoint folder or a TorchScript"),
        ("car", "encoder.jit", r"car was trained on the vq tokenizer sha256:\w+, .*encoder\.jit has the hash"),
        ("scripted", None, r"needs the torchscript tokenizer sha256:\w+ and does not embed it"),
        ("bare", "car", r"car, a 'vavam', is no tokenizer; give a kl_vae, a vq, a vqkd or a musik"),
        ("bare", "absent", r"absent' is neither a checkpoint folder nor"),
        ("bare", "bare/config.json", r"holds no config.json"),
        ("vq", None, r"vq holds weights of the family 'vq'; this takes those of vavam"),
    ],
)
def test_tokenizers_and_weights_that_do_not_fit(folder: Path, path: str, tokenizer: str | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_policy(folder / path, DrivingOptions(tokenizer=named(tokenizer and folder / tokenizer)))


def serve(weights: str) -> None:
    neuroncap(weights, port=0, device="cpu")


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
