"""Evaluators during training: averaged weights, ranking of checkpoints, interruptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import training_toy as toy
from torch import nn

from foreact.errors import UserError
from foreact.train import TrainResult, train
from foreact.train.logs import read_log


class Score:
    """Gives the scripted value of each step, and remembers what it was shown."""

    def __init__(self, values: dict[int, float], every: int | None = None) -> None:
        self.name, self.every, self.values = "score", every, values
        self.shown: dict[int, torch.Tensor] = {}

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        self.shown[step] = model.get_parameter("body.weight").clone()
        return {"mean": self.values[step]}


def run(run_dir: Path, score: Score, model: nn.Module | None = None, **changes: Any) -> TrainResult:
    settings = toy.config(
        **{"best_metric": "score/mean", "eval_every": 1, "save_every": 100, "keep": 1, **changes}
    )
    model = toy.toy_model() if model is None else model
    return train(
        model,
        toy.toy_batches,
        settings,
        run_dir,
        evaluators=[score],
        export=toy.toy_export,
        device="cpu",
    )


def kept(run_dir: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in (run_dir / "checkpoints").iterdir())


def test_best_and_newest_are_kept_also_across_a_resume(tmp_path: Path) -> None:
    values = {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.2, 5: 0.8, 6: 0.9}
    first = run(tmp_path, Score(values), steps=4, best_k=1)
    assert kept(tmp_path) == [2, 4]
    assert (first.best, first.best_value) == (
        tmp_path / "checkpoints" / "step-00000002" / "weights",
        0.9,
    )
    second = run(tmp_path, Score(values), steps=6, best_k=1)
    assert kept(tmp_path) == [2, 6]
    assert (second.best_value, second.metrics) == (0.9, {"score/mean": 0.9})
    assert second.best == first.best


def test_least_is_best_in_min_mode(tmp_path: Path) -> None:
    run(
        tmp_path,
        Score({1: 3.0, 2: 1.0, 3: 2.0, 4: float("nan"), 5: 4.0}),
        steps=5,
        best_mode="min",
        best_k=2,
    )
    assert kept(tmp_path) == [2, 3, 5]


def test_evaluator_sees_the_average_and_training_goes_on_from_its_own_weights(
    tmp_path: Path,
) -> None:
    model = toy.toy_model()
    score = Score(dict.fromkeys(range(9), 0.0), every=4)
    result = run(tmp_path / "a", score, model, steps=8, best_metric=None)
    assert sorted(score.shown) == [4, 8]
    assert not torch.equal(score.shown[8], model.get_parameter("body.weight"))
    assert result.weights is not None
    assert torch.equal(score.shown[8], torch.load(result.weights / "weights.pt")["body.weight"])
    assert model.training
    alone = toy.toy_model()
    toy.run(tmp_path / "b", model=alone, steps=8)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), alone.parameters(), strict=True)
    )


def test_without_averaging_the_weights_themselves_are_shown_and_exported(tmp_path: Path) -> None:
    from foreact.train import EMAConfig

    model = toy.toy_model()
    score = Score({4: 0.0})
    result = run(tmp_path, score, model, eval_every=4, ema=EMAConfig(enabled=False))
    assert torch.equal(score.shown[4], model.get_parameter("body.weight"))
    assert result.weights is not None
    assert torch.equal(torch.load(result.weights / "weights.pt")["body.weight"], score.shown[4])
    again = toy.toy_model()
    run(tmp_path, Score({}), again, eval_every=4, ema=EMAConfig(enabled=False))
    assert torch.equal(again.get_parameter("body.weight"), score.shown[4])


def test_evaluation_left_out_by_an_interruption_is_made_up_for_once(tmp_path: Path) -> None:
    from support.training_toy import Interrupting

    score = Score({2: 0.5, 4: 0.1})
    settings = toy.config(eval_every=2, best_metric="score/mean")
    stopped = train(
        toy.toy_model(), Interrupting(1), settings, tmp_path, evaluators=[score], device="cpu"
    )
    assert (stopped.step, stopped.interrupted, score.shown) == (2, True, {})
    result = run(tmp_path, score, eval_every=2)
    assert sorted(score.shown) == [2, 4]
    assert result.best_value == 0.5
    run(tmp_path, score, eval_every=2)
    log = read_log(tmp_path / "log.jsonl")
    assert [(e["step"], e["score/mean"]) for e in log if "score/mean" in e] == [(2, 0.5), (4, 0.1)]


def test_unknown_best_metric_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--train.best-metric 'fvd/mean' belongs to no evaluator"):
        run(tmp_path, Score({}), best_metric="fvd/mean")
    with pytest.warns(UserWarning, match=r"'score/median' was not measured"):
        run(tmp_path, Score({4: 0.0}), best_metric="score/median", eval_every=4)


def test_a_run_that_diverged_ends_in_a_sentence_and_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nan = float("nan")
    score = Score({1: 0.5, 2: nan, 3: 0.4, 4: nan})
    for _ in range(2):  # a second start says the same, and writes nothing twice
        with pytest.raises(UserError, match=r"diverged: after step 4 score/mean is nan.*-00000001"):
            run(tmp_path, score)
    assert capsys.readouterr().err.count("step 2: score/mean is nan; the training has") == 1
    assert [entry["step"] for entry in read_log(tmp_path / "log.jsonl") if "diverged" in entry] == [
        4
    ]
    record = json.loads((tmp_path / "checkpoints" / "step-00000004" / "train.json").read_text())
    assert record["metrics"] == {"score/mean": None}


def test_a_finished_run_that_is_started_again_still_knows_its_metrics(tmp_path: Path) -> None:
    first = run(tmp_path, Score(dict.fromkeys(range(5), 0.5)))
    assert run(tmp_path, Score({})).metrics == first.metrics == {"score/mean": 0.5}
