"""NeuroNCAP: a recorded conversation with the model server, the score and its aggregation."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from parity.adapters.vavam_model import vavam
from parity.registry import Case, adapter
from torch import Tensor

from foreact.families.driving.evals.ncap import aggregate, ncap_score, read_runs
from foreact.families.driving.policy import DrivingPolicy, acting_spec
from foreact.serving.neuroncap import NeuroNCAP


class RecordingTokenizer:
    """The case's TorchScript tokenizer; keeps what it was asked and what it said."""

    def __init__(self, file: Path, vocab: int) -> None:
        self.module = torch.jit.load(file)
        self.vocab = vocab
        self.encoded: list[Tensor] = []

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        tokens = self.module(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        self.encoded += list(tokens.flatten(0, 1))
        return tokens

    def decode(self, z: Tensor) -> Tensor:
        raise AssertionError("a server draws no pictures")


@adapter("vavam", "neuroncap_server")
def neuroncap_server(case: Case) -> None:
    transcript = json.loads((case.folder / "transcript.json").read_text())
    weights = case.folder / Path(case.config["weights"]).parent / "case.json"
    model = vavam(case, json.loads(weights.read_text())["config"])
    # "image_tokenizer.jit (TorchScript; input float (T,3,288,512) in [-1,1], output ...)"
    found = re.match(r"(\S+).*\(T,3,(\d+,\d+)\)", case.config["tokenizer"])
    assert found is not None
    file, size = found.groups()
    tokenizer = RecordingTokenizer(case.folder / file, model.config.vavim.vocab)
    asked = iter([i for i, entry in enumerate(transcript) if f"step{i}.noise" in case.io])
    height, width = map(int, size.split(","))
    policy = DrivingPolicy(
        model,
        tokenizer,
        acting_spec((height, width)),
        noise=lambda seed, step: case.io[f"step{next(asked)}.noise"][0],
    )
    server = NeuroNCAP(lambda: policy)
    seen = 0
    for i, entry in enumerate(transcript):
        body = b"" if entry["request_json"] is None else json.dumps(entry["request_json"]).encode()
        status, reply = server.handle(entry["method"], entry["path"], body)
        assert status == entry["status"], (i, reply)
        expected = entry["response_json"]
        if status == 422:
            assert [problem["loc"] for problem in reply["detail"]] == expected["detail_locs"]
        elif entry["path"] != "/infer":
            assert reply == expected
            seen = len(tokenizer.encoded)
        else:
            assert list(reply) == list(expected)
            assert reply["aux_outputs"] == expected["aux_outputs"]
            trajectory = torch.tensor(reply["trajectory"])
            case.check(f"step{i}.trajectory", trajectory)
            case.check_value(
                trajectory, torch.tensor(expected["trajectory"]), f"response of step {i}"
            )
            context = torch.stack(tokenizer.encoded[seen:][-policy.context :])
            case.check(f"step{i}.visual_tokens", context)
    requests = sum(f"step{i}.noise" in case.io for i in range(len(transcript)))
    assert (
        len(tokenizer.encoded) == requests
    )  # each frame once, where the reference encodes its whole buffer each time


@adapter("vavam", "ncap")
def ncap(case: Case) -> None:
    atol = case.meta["tolerance"]["atol"]
    for run in case.meta["scores"]:
        assert (
            abs(ncap_score(run["impact_speed"], run["reference_speed"]) - run["score"]) <= atol
        ), run
    with tempfile.TemporaryDirectory() as folder:
        for run, metrics in case.meta["metrics_json_by_run"].items():
            file = Path(folder) / run / "metrics.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(metrics))
        runs = read_runs(Path(folder), sequences=case.meta["scenario_sequences"])
    compare(aggregate(runs, decimals=3).to_json(), case.meta["aggregate"], atol, "aggregate")


def compare(got: Any, expected: Any, atol: float, label: str) -> None:
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), label
        for name, value in expected.items():
            compare(got[name], value, atol, f"{label}.{name}")
    elif expected is None or math.isnan(expected):
        assert got is None, label
    else:
        assert abs(got - expected) <= atol, f"{label}: {got}, expected {expected}"
