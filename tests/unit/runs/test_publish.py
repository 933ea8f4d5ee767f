"""The end of a training: which exported weights become the
run's result, and what goes with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from foreact.checkpoints.format import TokenizerRef, load_checkpoint, save_checkpoint
from foreact.runs.inputs import Inputs
from foreact.runs.training import publish
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.train.config import TrainConfig
from foreact.train.loop import TrainResult

CONFIG = VQConfig(
    channels=4,
    multipliers=(1, 1),
    blocks=1,
    features=4,
    codes=8,
    code_dim=4,
    norm_groups=2,
    image_size=(8, 8),
)


@dataclass(frozen=True)
class Run:
    free_on_resume: ClassVar[tuple[str, ...]] = ()
    out: Path
    train: TrainConfig = field(default_factory=TrainConfig)


def export(path: Path, value: float, **beside: Any) -> Path:
    """Weights that are all `value`."""
    state = {
        name: torch.full_like(t, value) for name, t in VQTokenizer(CONFIG).state_dict().items()
    }
    save_checkpoint(path, family="vq", config=CONFIG, state=state, **beside)
    return path


def trained(folder: Path, **beside: Any) -> TrainResult:
    """A training whose newest weights are 1 and whose best are 2."""
    return TrainResult(
        step=4,
        finished=True,
        interrupted=False,
        checkpoint=folder,
        weights=export(folder / "newest", 1.0, **beside),
        best=export(folder / "best", 2.0, **beside),
        best_value=0.5,
        metrics={"val/loss": 0.123456},
    )


NONE = Inputs(None, seed=0)


def values(folder: Path) -> set[float]:
    return {
        v for tensor in load_checkpoint(folder).state.values() for v in tensor.unique().tolist()
    }


def test_the_newest_weights_or_the_best_with_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, result = Run(tmp_path / "run"), trained(tmp_path)
    final = publish(run, result, config=CONFIG, inputs=NONE, card={"recipe": "by hand"})
    assert final == tmp_path / "run" / "weights"
    assert values(final) == {1.0}
    assert load_checkpoint(final).card == {
        "recipe": "by hand",
        "data": [],
        "weights": {},
        "learned_before": [],
        "steps": 4,
        "val/loss": 0.123456,
    }
    digest = load_checkpoint(final).hash
    said = f"Done\n  weights      {final}\n  hash         {digest}\n"
    assert capsys.readouterr().out == said + "  val/loss     0.1235\n"
    publish(run, result, config=CONFIG, inputs=NONE, card={}, facts={"steps": 4})
    assert capsys.readouterr().out == said + "  steps        4\n"
    assert values(publish(run, result, config=CONFIG, inputs=NONE, card={}, best=True)) == {2.0}


def test_without_a_ranking_the_newest_are_the_best(tmp_path: Path) -> None:
    result = TrainResult(
        step=4,
        finished=True,
        interrupted=False,
        checkpoint=tmp_path,
        weights=export(tmp_path / "newest", 1.0),
        best=None,
        best_value=None,
    )
    assert values(
        publish(Run(tmp_path / "run"), result, config=CONFIG, inputs=NONE, card={}, best=True)
    ) == {1.0}


def test_the_tokenizer_stays_or_is_embedded(tmp_path: Path) -> None:
    run, tokenizer = Run(tmp_path / "run"), export(tmp_path / "tokenizer", 3.0)
    named = TokenizerRef(family="vq", hash=load_checkpoint(tokenizer).hash)
    inside = trained(tmp_path / "inside", tokenizer=tokenizer)
    beside = trained(tmp_path / "beside", tokenizer=named)
    for result, given, embedded in (
        (inside, None, True),
        (beside, None, False),
        (beside, tokenizer, True),
    ):
        found = load_checkpoint(
            publish(run, result, config=CONFIG, inputs=NONE, card={}, tokenizer=given)
        )
        assert (found.tokenizer, found.tokenizer_path is not None) == (named, embedded)


def test_what_only_the_training_needs_is_left_out(tmp_path: Path) -> None:
    final = publish(
        Run(tmp_path / "run"),
        trained(tmp_path),
        config=CONFIG,
        inputs=NONE,
        card={},
        leave_out=("encoder.",),
    )
    names = set(VQTokenizer(CONFIG).state_dict())
    assert (
        set(load_checkpoint(final).state)
        == {name for name in names if not name.startswith("encoder.")}
        < names
    )


def test_only_the_main_process_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not publish(
        Run(tmp_path / "run"), trained(tmp_path), config=CONFIG, inputs=NONE, card={}
    ).exists()
