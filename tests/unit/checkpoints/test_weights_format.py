"""Our checkpoint folder and the strict way between config dataclasses and JSON."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from foreact.checkpoints import format as format_module
from foreact.checkpoints.configs import config_from_json, config_to_json
from foreact.checkpoints.format import (
    TokenizerRef,
    build,
    content_hash,
    load_checkpoint,
    load_tokenizer,
    save_checkpoint,
)
from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.plugs import FAMILIES, Family
from foreact.types import ActionSpec, StreamSpec

SPEC = StreamSpec(
    cameras={"img": (96, 96)},
    fps=10,
    action=ActionSpec(
        names=("x", "y"),
        units=("px", "px"),
        frame="world",
        mode="absolute",
        rate_hz=10,
        low=(0, 0),
        high=(512, 512),
    ),
    state={"state": ("a", "b")},
)


@dataclass(frozen=True, kw_only=True)
class Part:
    size: int
    name: str = "part"


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    width: int = 4
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    grid: tuple[int, int] = (2, 3)
    levels: tuple[float, ...] = (1.0, 2.0)
    scale: float | None = None
    weights: Mapping[str, float] = field(default_factory=lambda: {"x": 1.0})
    part: Part = field(default_factory=lambda: Part(size=1))
    where: Path | None = None


class Toy(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.width, 2)
        self.register_buffer("count", torch.tensor(3))
        self.tied = self.linear.weight


@pytest.fixture(autouse=True)
def toy_family(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(
        name="toy", title="a toy", config=f"{__name__}:ToyConfig", module=f"{__name__}:Toy"
    )
    monkeypatch.setitem(FAMILIES.added, "toy", family)


def save(path: Path, seed: int = 0, **options: Any) -> str:
    torch.manual_seed(seed)
    return save_checkpoint(
        path,
        family="toy",
        config=ToyConfig(),
        state=options.pop("state", Toy(ToyConfig()).state_dict()),
        **options,
    )


def edit(path: Path, change: Any) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


# --- configs --------------------------------------------------------------------------------------


def test_config_round_trip() -> None:
    config = ToyConfig(
        rate=1.25,
        grid=(5, 6),
        levels=(),
        scale=2.0,
        weights={"y": 0.5},
        part=Part(size=3, name="p"),
        where=Path("runs/x"),
    )
    raw = json.loads(json.dumps(config_to_json(config)))
    assert config_from_json(ToyConfig, raw, complete=True) == config
    assert config_from_json(ToyConfig, {}) == ToyConfig()
    assert config_from_json(ToyConfig, {"rate": 3}).rate == 3.0


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"widht": 3}, "config has an unknown entry 'widht'; did you mean 'width'?"),
        ({"zzz": 3}, "config has an unknown entry 'zzz'; known ones are width, rate, kind"),
        ({"width": "3"}, 'config.width should be a whole number, found "3".'),
        ({"width": 3.0}, "config.width should be a whole number, found 3.0."),
        ({"width": True}, "config.width should be a whole number, found true."),
        ({"rate": None}, "config.rate should be a number, found null."),
        ({"rate": float("nan")}, "config.rate should be a number, found NaN."),
        ({"kind": "c"}, "config.kind should be one of 'a', 'b', found \"c\"."),
        ({"grid": [1]}, "config.grid should be a list of 2, found [1]."),
        ({"grid": 1}, "config.grid should be a list, found 1."),
        ({"levels": [1, "x"]}, 'config.levels[1] should be a number, found "x".'),
        ({"scale": "x"}, 'config.scale should be a number, found "x".'),
        ({"weights": [1]}, "config.weights should be an object with named entries, found [1]."),
        ({"weights": {"x": "y"}}, 'config.weights.x should be a number, found "y".'),
        ({"part": {}}, "config.part lacks the entry 'size'; add it."),
        (
            {"part": {"size": 1, "nam": "x"}},
            "config.part has an unknown entry 'nam'; did you mean 'name'?",
        ),
        ({"where": 3}, "config.where should be a path in quotes, found 3."),
        ([], "config should be an object with named entries, found []."),
    ],
)
def test_config_errors(raw: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        config_from_json(ToyConfig, raw)
    assert message in str(caught.value)


def test_complete_refuses_a_missing_default() -> None:
    raw = config_to_json(ToyConfig())
    del raw["part"]["name"]
    with pytest.raises(UserError, match=r"config\.part lacks the entry 'name'"):
        config_from_json(ToyConfig, raw, complete=True)


def test_numbers_json_cannot_hold() -> None:
    with pytest.raises(UserError, match="cannot store"):
        config_to_json(ToyConfig(rate=float("inf")))


# --- checkpoints ----------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    stats = Normalizer.fit(
        {"action": np.array([[0.0, 1.0], [2.0, 5.0]], dtype=np.float32)}, {"action": "limits"}
    )
    tokenizer_hash = save(tmp_path / "tok", seed=1)
    card = {"command": "train", "scores": [1, 2.5]}
    got_hash = save(
        tmp_path / "a" / "model", spec=SPEC, stats=stats, tokenizer=tmp_path / "tok", card=card
    )
    checkpoint = load_checkpoint(tmp_path / "a" / "model")
    assert checkpoint.hash == got_hash == content_hash(tmp_path / "a" / "model")
    assert checkpoint.spec is not None
    checkpoint.spec.require_equal(SPEC, "the file", "the original")
    assert checkpoint.stats is not None
    assert checkpoint.stats.to_json() == stats.to_json()
    assert checkpoint.card == card
    assert checkpoint.tokenizer == TokenizerRef(family="toy", hash=tokenizer_hash)
    torch.manual_seed(0)
    expected = Toy(ToyConfig()).state_dict()
    got = build(checkpoint).state_dict()
    assert set(got) == set(expected)
    assert all(torch.equal(got[k], expected[k]) for k in got)
    torch.manual_seed(
        1
    )  # loading draws nothing, so the next module drawn here is the tokenizer again
    assert torch.equal(
        load_tokenizer(checkpoint).state_dict()["linear.weight"], Toy(ToyConfig()).linear.weight
    )
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["model"]


def test_half_precision_storage_keeps_integers_and_builds_float32(tmp_path: Path) -> None:
    save(tmp_path / "full")
    save(tmp_path / "half", dtype=torch.bfloat16)
    checkpoint = load_checkpoint(tmp_path / "half")
    assert checkpoint.state["linear.weight"].dtype == torch.bfloat16
    assert checkpoint.state["count"].dtype == torch.int64
    module = build(checkpoint)
    assert module.get_parameter("linear.weight").dtype == torch.float32
    full = load_checkpoint(tmp_path / "full").state["linear.weight"]
    assert torch.equal(module.get_parameter("linear.weight"), full.bfloat16().float())


def test_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = Toy(ToyConfig()).state_dict()
    views = {k: torch.stack([v, v], -1)[..., 0] for k, v in reversed(state.items())}
    reference = save(tmp_path / "a", state=state)
    assert save(tmp_path / "b", state=views, spec=SPEC, card={"x": 1}) == reference
    edit(
        tmp_path / "b" / "config.json",
        lambda raw: raw.update(config=dict(reversed(raw["config"].items()))),
    )
    assert content_hash(tmp_path / "b") == reference
    assert (
        save(tmp_path / "c", state=state | {"linear.bias": state["linear.bias"] + 1e-6})
        != reference
    )
    assert save(tmp_path / "d", state=state, dtype=torch.float16) != reference
    other = save_checkpoint(tmp_path / "e", family="toy", config=ToyConfig(rate=0.6), state=state)
    assert other != reference
    renamed = {("linear.gain" if k == "tied" else k): v for k, v in state.items()}
    assert save(tmp_path / "f", state=renamed) != reference


def test_replaces_an_older_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path / "model", seed=0)
    second = save(tmp_path / "model", seed=1)
    assert content_hash(tmp_path / "model") == second
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is no checkpoint"):
        save(tmp_path / "folder")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"task": "pusht"}')
    (tmp_path / "run" / "log.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is no checkpoint"):
        save(tmp_path / "run")
    assert (tmp_path / "run" / "log.txt").read_text() == "precious"
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="exists and is no checkpoint"):
        save(tmp_path / "file")
    for nameless in (Path(), tmp_path / ".."):
        with pytest.raises(UserError, match="does not name a new folder"):
            save(nameless)
    assert (
        (tmp_path / "folder" / "thesis.txt").read_text()
        == (tmp_path / "file").read_text()
        == "precious"
    )


@pytest.mark.parametrize("calls_before", [0, 1, 2])
def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_before: int
) -> None:
    first = save(tmp_path / "model", seed=0)
    calls = {"n": 0}

    def failing(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls["n"] += 1
            if calls["n"] > calls_before and calls["n"] <= calls_before + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args, **kwargs)

        return call

    # Call 1 writes the tensors, 2 retires the old folder, 3 moves the new one into its place.
    monkeypatch.setattr(format_module, "save_file", failing(format_module.save_file))
    monkeypatch.setattr(os, "rename", failing(os.rename))
    with pytest.raises(UserError, match=r"could not be written.*No space left"):
        save(tmp_path / "model", seed=1)
    assert content_hash(tmp_path / "model") == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_save_that_died_between_its_renames_is_mended_by_the_next(tmp_path: Path) -> None:
    save(tmp_path / "model", seed=0)
    os.rename(tmp_path / "model", tmp_path / ".model.old")
    with pytest.raises(UserError, match=r"an older one is whole at .*\.model\.old"):
        load_checkpoint(tmp_path / "model")
    second = save(tmp_path / "model", seed=1)
    assert content_hash(tmp_path / "model") == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_wrong_config_or_family(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown family 'toi'; did you mean 'toy'"):
        save_checkpoint(tmp_path / "x", family="toi", config=ToyConfig(), state={})
    with pytest.raises(UserError, match="needs a ToyConfig, found a Part"):
        save_checkpoint(tmp_path / "x", family="toy", config=Part(size=1), state={})
    assert list(tmp_path.iterdir()) == []


def test_missing_pieces(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no checkpoint at"):
        load_checkpoint(tmp_path / "none")
    save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_checkpoint(tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(UserError, match="There is no checkpoint at"):
        load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("keep", [0, 5, 100, -4])
def test_truncated_tensors(tmp_path: Path, keep: int) -> None:
    save(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_checkpoint(tmp_path / "m")


def unknown_family(raw: Any) -> None:
    raw["family"] = "toyy"


def newer_format(raw: Any) -> None:
    raw["format"] = 2


def unknown_entry(raw: Any) -> None:
    raw["config"]["dept"] = 3


def lost_entry(raw: Any) -> None:
    del raw["config"]["rate"]


def extra_top(raw: Any) -> None:
    raw["note"] = 1


def no_format(raw: Any) -> None:
    del raw["format"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unknown_family, "unknown family 'toyy'; did you mean 'toy'"),
        (newer_format, "has checkpoint format 2, this version reads up to 1; update foreact"),
        (unknown_entry, "config has an unknown entry 'dept'"),
        (lost_entry, "config lacks the entry 'rate'"),
        (extra_top, "should hold exactly family, format and config"),
        (no_format, "not a checkpoint of this project"),
    ],
)
def test_changed_config(tmp_path: Path, change: Any, message: str) -> None:
    save(tmp_path / "m")
    edit(tmp_path / "m" / "config.json", change)
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / "m")


def test_damaged_json(tmp_path: Path) -> None:
    save(tmp_path / "m", spec=SPEC)
    (tmp_path / "m" / "spec.json").write_text('{"cameras": {"img": 3}, "fps": 10}')
    with pytest.raises(UserError, match=r"spec\.json: The spec of the streams is damaged"):
        load_checkpoint(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"family": ')
    with pytest.raises(UserError, match="not readable JSON"):
        load_checkpoint(tmp_path / "m")


def test_build_is_strict(tmp_path: Path) -> None:
    state = Toy(ToyConfig()).state_dict()
    wrong = {k: v for k, v in state.items() if k != "linear.bias"} | {
        "extra": torch.ones(1),
        "tied": torch.ones(2, 5),
    }
    save(tmp_path / "m", state=wrong)
    with pytest.raises(UserError) as caught:
        build(load_checkpoint(tmp_path / "m"))
    for part in (
        "1 missing (linear.bias)",
        "1 left over (extra)",
        "1 of another shape (tied (2, 5) for (2, 4))",
    ):
        assert part in str(caught.value)


def test_the_wrong_tokenizer_is_refused(tmp_path: Path) -> None:
    right, wrong = save(tmp_path / "right", seed=1), save(tmp_path / "wrong", seed=2)
    save(tmp_path / "m", tokenizer=TokenizerRef(family="toy", hash=right))
    checkpoint = load_checkpoint(tmp_path / "m")
    with pytest.raises(UserError, match="does not embed it"):
        load_tokenizer(checkpoint)
    with pytest.raises(UserError) as caught:
        load_tokenizer(checkpoint, tmp_path / "wrong")
    assert right in str(caught.value)
    assert wrong in str(caught.value)
    assert isinstance(load_tokenizer(checkpoint, tmp_path / "right"), Toy)
    save(tmp_path / "n")
    with pytest.raises(UserError, match="names no tokenizer"):
        load_tokenizer(load_checkpoint(tmp_path / "n"))
