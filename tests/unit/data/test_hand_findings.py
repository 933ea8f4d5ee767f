"""`foreact data check` of recorded hands: units, jumps, start poses, and mixtures of sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from support.umi_files import SIZE, write_umi

from foreact.commands.data import check
from foreact.data.inspect import check_store
from foreact.data.stores.opening import open_episodes
from foreact.data.stores.store import open_store
from foreact.data.windows.hand_findings import hand_findings
from foreact.data.windows.hand_poses import umi_hands
from foreact.errors import UserError
from foreact.tasks.umi import umi_spec

SPEC, HANDS = umi_spec(size=SIZE), umi_hands()
LENGTHS = (20, 24)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_umi(tmp_path / "cup.zarr", LENGTHS)


def spoil(path: Path, stream: str, change: Callable[[np.ndarray], object]) -> None:
    array = zarr.open_group(str(path), mode="r+", zarr_format=2)[f"data/robot0_{stream}"]
    assert isinstance(array, zarr.Array)
    values = np.array(array[:])
    change(values)
    array[:] = values


def told(path: Path) -> list[tuple[str, str]]:
    found = hand_findings(open_store(path, SPEC), HANDS)
    return [(finding.severity, finding.text) for finding in found]


def test_good_recordings_have_no_findings(path: Path) -> None:
    assert told(path) == []


def millimetres(values: np.ndarray) -> None:
    values *= 1000


def jump(values: np.ndarray) -> None:
    values[25:] += 0.4


def turn(values: np.ndarray) -> None:
    values[30] = [0.0, 0.0, -2.0]


FAULTS = {
    "positions in millimetres": ("eef_pos", millimetres, "error", "; metres are expected"),
    "angles in degrees": (
        "eef_rot_axis_angle",
        lambda v: np.multiply(v, 57.3, out=v),
        "error",
        "; radians are expected",
    ),
    "openings in millimetres": (
        "gripper_width",
        millimetres,
        "error",
        "'robot0_gripper_width' lies in 57 .. 80; openings in metres are expected",
    ),
    "lost tracking": (
        "eef_pos",
        jump,
        "warning",
        "jumps by more than 0.25 m at 1 steps, as where tracking was lost, first step 5 of '1'",
    ),
    "a hand that flips over": (
        "eef_rot_axis_angle",
        turn,
        "warning",
        "jumps by more than 60 degrees at 2 steps, as where tracking was lost, first step 10 of",
    ),
    "a start that moves": (
        "demo_start_pose",
        lambda v: np.add(v[3:9], 0.1, out=v[3:9]),
        "error",
        "should be one pose an episode, it changes at step 3 of '0'",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_it_finds(path: Path, case: str) -> None:
    stream, change, severity, sentence = FAULTS[case]
    spoil(path, stream, change)
    ((found, text),) = told(path)
    assert found == severity
    assert sentence in text


def mixture(root: Path, *members: dict[str, object]) -> Path:
    file = root / "mixture.json"
    file.write_text(json.dumps({"members": members}))
    return file


def test_the_members_of_a_mixture_are_checked(path: Path) -> None:
    towel = write_umi(path.parent / "towel.zarr", LENGTHS)
    file = mixture(path.parent, {"path": "cup.zarr"}, {"path": "towel.zarr", "mirror_mask": True})
    assert check_store(file, SPEC, windows=3, hands=HANDS).ok
    spoil(towel, "eef_pos", millimetres)
    (error,) = [
        finding.text
        for finding in check_store(file, SPEC, windows=3, hands=HANDS).findings
        if finding.severity == "error"
    ]
    assert "metres are expected" in error


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"stride": 0}, "The stride of 'cup' should be 1 or more, found 0"),
        ({"instruction": " "}, "The instruction of 'cup' is empty; write it, or leave it out"),
        ({"episodes": [0, 2]}, "The list of 'cup' names episode 2, and the data set has 0..1"),
        ({"fps": 30}, "The policy's steps come at 19.98 Hz in 'towel' and at 10 Hz in 'cup'"),
    ],
)
def test_mixtures_that_do_not_fit(path: Path, entries: dict[str, object], sentence: str) -> None:
    write_umi(path.parent / "towel.zarr", LENGTHS)
    file = mixture(path.parent, {"path": "cup.zarr", **entries}, {"path": "towel.zarr"})
    with pytest.raises(UserError, match=sentence):
        check_store(file, SPEC, hands=HANDS)


def test_a_mixture_needs_a_task(path: Path) -> None:
    with pytest.raises(UserError, match="does not say what it is of; name it with --task"):
        check_store(mixture(path.parent, {"path": "cup.zarr"}))


def test_a_mixture_is_no_store(path: Path) -> None:
    with pytest.raises(UserError, match=r"is no store but JSON, as mixtures .* one of its members"):
        open_episodes(mixture(path.parent, {"path": "cup.zarr"}), SPEC)


def test_the_command_knows_the_hands_of_a_task(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(path, "eef_pos", millimetres)
    with pytest.raises(UserError, match="has errors, listed above"):
        check(path, "support.small_tasks:UMI", windows=3)
    assert "metres are expected" in capsys.readouterr().out
