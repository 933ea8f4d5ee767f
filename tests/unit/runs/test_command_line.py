"""The command in reports and cards is the whole one: it parses back to what was asked for."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import tyro

from foreact.cli import VERBS
from foreact.commands.closed_loop import ClosedLoop
from foreact.families.codes import train_kl_vae, train_musik, train_vq, train_vqkd
from foreact.families.driving import (
    evaluate_open_loop,
    evaluate_video,
    probe,
    score_ncap,
    train_vavam,
    train_vavim,
)
from foreact.families.driving import imagine as driving_imagine
from foreact.families.uva import imagine as uva_imagine
from foreact.families.uva import train as train_uva
from foreact.families.uva.policy import UVAOptions
from foreact.families.voc import control, evaluate_values
from foreact.families.voc import imagine as voc_imagine
from foreact.families.voc import train as train_voc
from foreact.families.voc.cloning import train as train_bc
from foreact.families.voc.policy import OccupancyOptions, PlanningConfig
from foreact.plugs import FAMILIES, load_object
from foreact.runs.command_line import arguments_of, command_line, options_of
from foreact.runs.parse import parse_parts
from foreact.runs.verb import TrainingVerb


@dataclass(frozen=True, kw_only=True)
class Inner:
    shares: Mapping[str, float] = field(default_factory=lambda: {"a": 1.0, "b": 0.0})
    extra: Mapping[str, int] = field(default_factory=dict)
    grid: tuple[int, int] = (2, 3)
    flag: bool = True


@dataclass(frozen=True, kw_only=True)
class Asked:
    data: Path
    gammas: tuple[float, ...] = ()
    kinds: tuple[Literal["x", "y"], ...] = ("x",)
    steps: int | str | None = None
    most: int | None = 256
    text: str = ""
    lr: float = 1e-4
    draw: bool = False
    inner: Inner = Inner()


CASES = [
    Asked(data=Path("my data/it's.zarr")),
    Asked(data=Path("d"), gammas=(0.5, 1e-5), kinds=(), steps="ddim20", most=None, text="-x $HOME"),
    Asked(data=Path("d"), steps=20, lr=-3e-5, draw=True, text="a 'b' \"c\" <d>"),
    Asked(
        data=Path("d"),
        inner=Inner(shares={"a": 0.25, "b": 2.0}, extra={"k": 3}, grid=(4, 5), flag=False),
    ),
]


def words(line: str, verb: str) -> list[str]:
    """What follows the verb of a command line."""
    head = ["foreact", *verb.split()]
    split = shlex.split(line)
    assert split[: len(head)] == head
    return split[len(head) :]


@pytest.mark.parametrize("asked", CASES)
def test_every_kind_of_option_parses_back(asked: Asked) -> None:
    line = command_line("eval it", options_of(asked))
    assert tyro.cli(Asked, args=words(line, "eval it")) == asked


DATACLASSES: list[tuple[str, Any]] = [
    (
        "eval video",
        evaluate_video.DrivingVideo(data=Path("a b.zarr"), stride=5, max_windows=None, top_k=3),
    ),
    (
        "eval open-loop",
        evaluate_open_loop.OpenLoop(weights="w", data="a@10", store_trajectories=True, steps=4),
    ),
    (
        "eval probe",
        probe.Probe(weights="w", data=Path("c"), task="depth", depth=Path("d"), reference=True),
    ),
    ("generate", driving_imagine.Imagining(weights="w", data=Path("d"), precision="int8")),
]


@pytest.mark.parametrize(("verb", "asked"), DATACLASSES)
def test_evaluations_with_their_options_in_a_dataclass(verb: str, asked: Any) -> None:
    line = command_line(verb, options_of(asked))
    again = tyro.cli(type(asked), args=words(line, verb))
    assert again == asked


@pytest.mark.parametrize(
    "options", [None, UVAOptions(steps="10,15", temperature=0.0), OccupancyOptions(prior="p")]
)
def test_a_closed_loop_with_its_policys_options(options: Any) -> None:
    asked = ClosedLoop(weights="runs/a b/weights", first_seed=7, execute=4, baselines=("random",))
    line = command_line("eval closed-loop", options_of(asked), options_of(options))
    defaults = [ClosedLoop(), *([] if options is None else [type(options)()])]
    again = parse_parts(defaults, words(line, "eval closed-loop"), prog="foreact")
    assert again == [asked, *([] if options is None else [options])]


FUNCTIONS: list[tuple[str, Any, dict[str, Any]]] = [
    ("eval values", evaluate_values.values, {"weights": "w", "data": Path("d"), "gammas": (0.8,)}),
    ("generate", voc_imagine.generate, {"weights": "w", "data": Path("d"), "all_episodes": True}),
    ("generate", uva_imagine.generate, {"mode": "inverse", "data": Path("x y")}),
    ("eval video", uva_imagine.video, {"episodes": 3, "seed": 4}),
    ("eval ncap", score_ncap.ncap, {"rootdir": Path("r"), "check": False}),
    (
        "eval control",
        control.control,
        {
            "policies": ("voc:runs/v/weights", "random"),
            "planning": PlanningConfig(candidates=7, gamma=0.5),
            "variant": "no-shadows",
        },
    ),
    ("demo", load_object("foreact.commands.demos.pusht:demo", "It"), {"seeds": 3}),
    ("demo voc", load_object("foreact.commands.demos.voc:demo", "It"), {"effort": 0.5}),
]


@pytest.mark.parametrize(("verb", "function", "given"), FUNCTIONS)
def test_evaluations_that_are_functions(verb: str, function: Any, given: dict[str, Any]) -> None:
    signature = inspect.signature(function)
    bound = signature.bind(**given)
    bound.apply_defaults()
    line = command_line(verb, arguments_of(function, bound.arguments))

    def parsed(*_: Any, **arguments: Any) -> dict[str, Any]:
        return arguments

    parsed.__signature__ = signature.replace(return_annotation=dict)  # type: ignore[attr-defined]
    parsed.__annotations__ = inspect.get_annotations(function, eval_str=True)
    again = tyro.cli(parsed, args=words(line, verb))
    assert again == bound.arguments


TRAININGS: list[tuple[TrainingVerb[Any], list[str]]] = [
    (train_uva.VERB, ["--stage", "video", "--train.lr", "0.0002", "--model.width", "512"]),
    (train_uva.VERB, ["--size", "base", "--pixels", "--model.modes.policy", "0.25"]),
    (
        train_uva.VERB,
        ["--model.proprioception.state", "1", "--data", "my data.zarr", "--task", "pusht"],
    ),
    (train_vq.VERB, ["--data", "x.zarr", "--model.image-size", "64", "64"]),
    (train_vqkd.VERB, ["--teacher", "t.pt", "--train.ema.enabled"]),
    (train_kl_vae.VERB, ["--train.steps", "7000"]),
    (train_musik.VERB, ["--task", "cheetah-run"]),
    (train_voc.VERB, ["--codes", "dino", "--model.gammas", "0.5", "0.9", "--actions"]),
    (train_bc.VERB, ["--train.best-k", "3", "--tokenizer", "a b"]),
    (train_vavim.VERB, ["--size", "S", "--stage", "finetune", "--data.sources", "a", "b@10"]),
    (train_vavam.VERB, ["--data.sources", "a", "--train.drop", "4"]),
]


@pytest.mark.parametrize(("verb", "args"), TRAININGS)
def test_trainings(verb: TrainingVerb[Any], args: list[str]) -> None:
    run = verb.parse(args)
    line = verb.command(run)
    assert verb.parse(words(line, verb.name)) == run
    for word in args:
        assert word in shlex.split(line)


def test_a_training_says_no_more_than_differs_from_its_recipe() -> None:
    run = train_uva.VERB.parse(["--train.lr", "0.5", "--size", "base"])
    line = train_uva.VERB.command(run)
    assert line == "foreact train uva --size base --stage joint --train.lr 0.5"


def test_families_from_elsewhere_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES.paths, "mine", "my_package.my_model")
    line = command_line("eval closed-loop", {"weights": ("w", "uva-pusht")})
    assert line == "foreact eval closed-loop --family my_package.my_model --weights w"


def test_the_verbs_of_these_tests_are_those_of_the_command_line() -> None:
    named = {verb for verb, *_ in [*DATACLASSES, *FUNCTIONS]} | {"eval closed-loop"}
    assert named <= set(VERBS)
    assert dataclasses.is_dataclass(ClosedLoop)
