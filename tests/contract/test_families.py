"""Every plug of ours leads somewhere: each import path of a
family, a simulator and a format is loaded.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import foreact
from foreact.checkpoints.shipped import names
from foreact.cli import main
from foreact.errors import UserError
from foreact.plugs import (
    FAMILIES,
    FORMATS,
    SIMULATORS,
    Family,
    add_family,
    families_with,
    load_object,
)
from foreact.released.layouts import Layout
from foreact.types import Seen


@pytest.mark.parametrize("name", FAMILIES.built_in)
def test_every_path_of_a_family_leads_somewhere(name: str) -> None:
    family = FAMILIES.find(name)
    assert family.name == name
    assert dataclasses.is_dataclass(family.get("config"))
    assert issubclass(family.get("module"), nn.Module)
    for entry in ("train", "policy", "generate", "video", "write"):
        if getattr(family, entry) is not None:
            assert callable(family.get(entry)), entry
    if family.policy is not None:
        options = family.get("policy_options")()
        assert list(inspect.signature(family.get("policy")).parameters) == [
            "path",
            "options",
            "execute",
            "device",
        ]
        assert options == type(options)()
    if family.layouts is not None:
        for layout in family.get("layouts"):
            assert isinstance(layout, Layout)
            assert all(f.metadata["help"] for f in dataclasses.fields(layout.options))


@pytest.mark.parametrize("name", SIMULATORS.built_in)
def test_every_path_of_a_simulator_leads_somewhere(name: str) -> None:
    simulator = SIMULATORS.find(name)
    assert (
        next(iter(inspect.signature(load_object(simulator.collect, "The collection")).parameters))
        == "env"
    )
    for path in (simulator.make, simulator.expert):
        assert path is None or callable(load_object(path, "It"))


@pytest.mark.parametrize("name", FORMATS.built_in)
def test_every_path_of_a_format_leads_somewhere(name: str) -> None:
    found = FORMATS.find(name)
    assert callable(load_object(found.recognise, "It"))
    assert callable(load_object(found.open, "It"))


def test_what_a_family_lacks_is_one_sentence() -> None:
    with pytest.raises(UserError, match="family 'musik' cannot act; name others"):
        FAMILIES.find("musik").get("policy")


def test_a_path_that_leads_nowhere_is_one_sentence() -> None:
    family = Family(name="x", title="x", config="foreact.types:NoSuch", module="no_such_module:M")
    with pytest.raises(
        UserError, match=r"config of the family 'x', 'foreact.types:NoSuch' cannot be imported"
    ):
        family.get("config")
    with pytest.raises(UserError, match="No module named 'no_such_module'"):
        family.get("module")


@pytest.mark.parametrize("name", names())
def test_shipped_weights_open_by_the_two_calls(name: str) -> None:
    assert isinstance(foreact.load(name), nn.Module)
    if name.startswith("uva"):
        policy = foreact.load_policy(name, device="cpu", execute=3, steps=2)
        assert policy.describe()["execute"] == 3
        with pytest.raises(UserError, match="no option 'stepz'; did you mean 'steps'"):
            foreact.load_policy(name, stepz=3)
    else:
        with pytest.raises(UserError, match="cannot act"):
            foreact.load_policy(name)


def test_the_shipped_model_foresees_from_frames_alone() -> None:
    policy: Any = foreact.load_policy("uva-pusht", device="cpu", steps=2)
    frames = np.full((1, policy.frames, 96, 96, 3), 255, np.uint8)

    def rng() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    seen = Seen(frames={"img": frames})
    future = policy.predict_video(seen, rng=rng())
    assert (future["img"].shape, future["img"].dtype) == (frames.shape, np.uint8)
    actions = policy.predict_inverse(seen, future, rng=rng())
    assert policy.predict_dynamics(seen, actions, rng=rng())["img"].shape == frames.shape
    with pytest.raises(UserError, match="reads state 'state' of shape"):
        policy.predict_video(Seen(frames={"img": frames}, state={"other": frames}), rng=rng())


@dataclasses.dataclass
class Entry:
    """An entry point of an installed package."""

    name: str
    value: str


def test_a_broken_package_takes_nothing_else_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [Entry("broken", "no_such_package.model:FAMILY")]
    monkeypatch.setattr("foreact.plugs.entry_points", lambda group: broken)
    main(["--help"])
    assert "train broken" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="'broken', 'no_such_package.model:FAMILY' cannot be im"):
        assert "uva" in families_with("policy")
    with pytest.raises(SystemExit):
        main(["train", "broken"])
    assert "No module named 'no_such_package'" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["..x", "a/b.py", ".", "foreact."])
def test_what_names_no_module_is_one_sentence(path: str) -> None:
    with pytest.raises(UserError, match=r"cannot be imported|There is no family called"):
        add_family(path)
