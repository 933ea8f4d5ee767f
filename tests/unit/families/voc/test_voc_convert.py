"""A GPT of Video Occupancy Models from its authors' file to our checkpoint and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.occupancy_worlds import TOKENIZER, write_tokenizer
from torch import Tensor

from foreact.checkpoints.format import build, load_checkpoint
from foreact.cli import main
from foreact.errors import UserError
from foreact.families.voc.model import VOC
from foreact.released.convert import convert

GOLDEN = Path(__file__).parents[3] / "parity/goldens/voc/gpt2_lm/weights.safetensors"


@pytest.fixture
def state() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture
def file(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, tmp_path / "gamma_0.8_model_step_100.pth")
    return tmp_path / "gamma_0.8_model_step_100.pth"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    config = dataclasses.replace(TOKENIZER, codes=32, image_size=(16, 16))
    return write_tokenizer(tmp_path / "tokenizer", config)


def test_a_file_becomes_a_model_with_its_tokenizer_and_goes_back(
    tmp_path: Path,
    file: Path,
    tokenizer: Path,
    state: dict[str, Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "voc"
    main(
        [
            "weights",
            "convert",
            str(file),
            "--out",
            str(out),
            "--tokenizer",
            str(tokenizer),
            "--heads",
            "4",
        ]
    )
    assert "reward head (untrained)" in capsys.readouterr().out
    main(["weights", "verify", str(out)])
    checkpoint = load_checkpoint(out)
    model = build(checkpoint)
    assert isinstance(model, VOC)
    assert (model.config.frames, model.config.gammas, model.config.grid) == (3, (0.8,), (2, 2))
    assert checkpoint.tokenizer_path is not None
    torch.testing.assert_close(
        model.gpt.token_embedding.weight.detach(), state["transformer.wte.weight"]
    )
    for a, b in zip(model.gpt.parameters(), model.target.parameters(), strict=True):
        assert torch.equal(a, b)
    main(["weights", "convert", str(out), "--out", str(tmp_path / "back"), "--to", "reference"])
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(t, state[name]) for name, t in back.items())


def test_what_does_not_fit_is_refused_in_one_sentence(
    tmp_path: Path, file: Path, tokenizer: Path, state: dict[str, Tensor]
) -> None:
    facts: dict[str, Any] = {"tokenizer": str(tokenizer)}
    small = write_tokenizer(tmp_path / "small")
    torch.save({k: t for k, t in state.items() if "ln_f" not in k}, tmp_path / "cut.pth")
    refused: list[tuple[Path, tuple[int, ...], dict[str, Any], str]] = [
        (file, (4,), {}, "with --tokenizer"),
        (file, (4, 4), facts, "one number of heads"),
        (file, (5,), facts, "heads"),
        (file, (4,), {"tokenizer": str(small)}, "models 32 codes, the tokenizer .* makes 16"),
        (file, (4,), {**facts, "gamma": 1.0}, "gammas"),
        (file, (4,), {**facts, "frames": 9}, "positions"),
        (tmp_path / "cut.pth", (4,), facts, "not whole"),
    ]
    for source, heads, occupancy, problem in refused:
        with pytest.raises(UserError, match=problem):
            convert(source, tmp_path / "bad", heads=heads, **occupancy)
        assert not (tmp_path / "bad").exists()
    with pytest.raises(SystemExit):
        main(["weights", "convert", str(file), "--out", str(tmp_path / "bad"), "--gamma", "0.5"])
