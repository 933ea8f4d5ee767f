"""What `foreact data check` says of robomimic's and LIBERO's files, beside what it always says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.manipulation_files import (
    SITE,
    SIZE,
    arm_actions,
    hand,
    robomimic_demo,
    write_demos,
    write_libero,
    write_robomimic,
)

from foreact.data.formats.libero import open_libero
from foreact.data.formats.robomimic import open_robomimic
from foreact.data.inspect import check_store
from foreact.data.rotations import convert
from foreact.tasks import find_task

SPEC = dataclasses.replace(
    find_task("tool-hang").spec,
    cameras={"sideview_image": (SIZE, SIZE), "robot0_eye_in_hand_image": (SIZE, SIZE)},
)
Arrays = dict[str, np.ndarray]
QUATERNION = "obs/robot0_eef_quat"


def severe(path: Path) -> list[str]:
    """Findings of a file that are no mere notes."""
    found = open_robomimic(path, SPEC).findings()
    return [str(finding) for finding in found if finding.severity != "note"]


def test_good_files_have_no_findings_but_notes(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "image_abs.hdf5", masks={"train": ["demo_0", "demo_2"]})
    assert severe(path) == []
    report = str(check_store(path, SPEC, windows=5))
    assert "image_abs.hdf5 has the masks train (2)" in report
    assert "pictures are shown as they are stored" in report
    assert "env_args of 1 files, first image_abs.hdf5, say control_delta True, but by" in report
    assert "simulators need False" in report


def test_masks_of_what_is_not_there_are_told(tmp_path: Path) -> None:
    masks = {"train": ["demo_1", "demo_9", "demo_7"], "none": [], "valid": ["demo_0"]}
    path = write_robomimic(tmp_path / "image_abs.hdf5", masks=masks)
    absent, empty = sorted(severe(path))
    assert absent.endswith(
        "the mask 'train' of image_abs.hdf5 names 2 demonstrations that the file does not hold, "
        "such as 'demo_7'"
    )
    assert empty.endswith("the mask 'none' of image_abs.hdf5 names no demonstration")
    chosen = open_robomimic(path, SPEC, mask="valid").findings()
    assert {finding.severity for finding in chosen} == {"note"}


def test_good_libero_files_too(tmp_path: Path) -> None:
    for mode in ("absolute", "delta"):
        found = open_libero(write_libero(tmp_path / mode, mode=mode)).findings()
        assert {finding.severity for finding in found} == {"note"}
        assert any("stored upside down, and shown upright" in f.text for f in found)


def wxyz(demo: Arrays) -> None:
    demo[QUATERNION] = np.roll(demo[QUATERNION], 1, axis=1)


def halved(demo: Arrays) -> None:
    demo[QUATERNION] = demo[QUATERNION] / 2


def of_the_body(demo: Arrays) -> None:
    rotation = hand(0, len(demo["actions"]))[1]
    demo["actions"][:, 3:6] = convert(rotation, "matrix", "axis_angle")


def of_another_frame(demo: Arrays) -> None:
    half = convert(np.array([0.0, 2.0, 0.0]), "axis_angle", "matrix")
    rotation = half @ hand(0, len(demo["actions"]))[1] @ SITE
    demo["actions"][:, 3:6] = convert(rotation, "matrix", "axis_angle")


def open_is_one(demo: Arrays) -> None:
    demo["actions"][:, 6] = (1 - demo["actions"][:, 6]) / 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (wxyz, "error   'robot0_eef_quat' is in the order w x y z, robosuite's is x y z w"),
        (
            halved,
            "error   5 quaternions of 'robot0_eef_quat' have another norm than 1, such as 0.5",
        ),
        (of_the_body, "error   rotations of the actions are those of the hand's body"),
        (of_another_frame, "warning rotations of the actions are 115 degrees from 'robot0_eef_q"),
        (open_is_one, "warning commands of the gripper lie in 0 .. 1; robosuite's are -1 to open"),
    ],
)
def test_numbers_of_another_meaning_are_found(
    tmp_path: Path, change: Callable[[Arrays], None], sentence: str
) -> None:
    demo = robomimic_demo(0, 5)
    change(demo)
    found = severe(write_demos(tmp_path / "a.hdf5", {"demo_0": demo}))
    assert len(found) == 1
    assert found[0].startswith(sentence)


def test_episodes_with_actions_of_another_kind_are_named(tmp_path: Path) -> None:
    demos = {f"demo_{i}": robomimic_demo(i, 5) for i in range(3)}
    demos["demo_2"]["actions"] = arm_actions(2, 5, "delta")
    found = severe(write_demos(tmp_path / "a.hdf5", demos))
    assert found[0].startswith("error   actions of 1 episodes are not absolute")
    assert "'demo_2'" in found[0]


def test_signs_of_quaternions_that_jump_are_a_note(tmp_path: Path) -> None:
    demo = robomimic_demo(0, 6)
    demo[QUATERNION][2:4] *= -1
    path = write_demos(tmp_path / "a.hdf5", {"demo_0": demo})
    assert severe(path) == []
    notes = [finding.text for finding in open_robomimic(path, SPEC).findings()]
    assert any("change sign 2 times" in text for text in notes)


def test_nan_in_actions_and_states_is_found_where_it_is(tmp_path: Path) -> None:
    demos = {f"demo_{i}": robomimic_demo(i, 5) for i in range(2)}
    demos["demo_1"]["actions"][3, 1] = np.nan
    demos["demo_1"]["obs/robot0_gripper_qpos"][2, 0] = np.nan
    report = check_store(write_demos(tmp_path / "a.hdf5", demos), SPEC, windows=2)
    assert not report.ok
    assert "stream 'action' has 1 NaN or infinite values, the first in episode 1 at step 3" in str(
        report
    )
    assert "'robot0_gripper_qpos' has 1 NaN or infinite values, the first in episode 1" in str(
        report
    )


def test_without_the_hand_nothing_is_compared(tmp_path: Path) -> None:
    demo = {k: x for k, x in robomimic_demo(0, 5).items() if "eef" not in k}
    state = {"robot0_gripper_qpos": SPEC.state["robot0_gripper_qpos"]}
    path = write_demos(tmp_path / "a.hdf5", {"demo_0": demo})
    store = open_robomimic(path, dataclasses.replace(SPEC, state=state))
    assert any("nothing tells where the hand is" in f.text for f in store.findings())


def test_pictures_that_are_slow_to_read_are_a_note(tmp_path: Path) -> None:
    for name, chunk in (("a", 10), ("b", 1)):
        path = write_robomimic(
            tmp_path / f"{name}.hdf5", [12], compression="gzip", chunks=(chunk, SIZE, SIZE, 3)
        )
        notes = " ".join(finding.text for finding in open_robomimic(path, SPEC).findings())
        assert ("of 'sideview_image' are compressed 10 at a time" in notes) == (chunk == 10)
