"""What LIBERO's package says of its tasks: problems in BDDL, instructions, initial states.

Tasks are known by the names of their files. Their numbers differ between versions and projects.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from foreact.envs.libero_states import read_initial_states
from foreact.errors import UserError, did_you_mean

LIBERO10 = (
    "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it",
    "KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it",
    "KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it",
    "KITCHEN_SCENE8_put_both_moka_pots_on_the_stove",
    "LIVING_ROOM_SCENE1_put_both_the_alphabet_soup_and_the_cream_cheese_box_in_the_basket",
    "LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket",
    "LIVING_ROOM_SCENE2_put_both_the_cream_cheese_box_and_the_butter_in_the_basket",
    "LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate_and_put_the_yellow_and_white_mug_on_"
    "the_right_plate",
    "LIVING_ROOM_SCENE6_put_the_white_mug_on_the_plate_and_put_the_chocolate_pudding_to_the_right_"
    "of_the_plate",
    "STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy",
)
"""The ten tasks, in alphabetical order."""

TextForm = Literal["task", "file"]
"""Instructions as the benchmark words them, or with the scene's name before them, as UVA's released
weights know them."""

_LANGUAGE = re.compile(r"\(:language\s+([^()]+)\)")
_PROBLEM = re.compile(r"\(problem\s+([^\s()]+)\s*\)")


@dataclass(frozen=True)
class LiberoTask:
    """One task.

    Attributes:
        name: of its BDDL file, without ending.
        bddl: that file.
        states_file: of its official initial states.
        problem: the class of scenes that simulates it, in LIBERO.
        sentence: the instruction in the BDDL file.
    """

    name: str
    bddl: Path
    states_file: Path
    problem: str
    sentence: str

    def instruction(self, form: TextForm) -> str:
        """What is to be done, in words."""
        return self.sentence if form == "task" else self.name.replace("_", " ")

    @cached_property
    def initial_states(self) -> np.ndarray:
        """The official ones, float64 (N, D)."""
        return read_initial_states(self.states_file)


def installed_suite() -> Path:
    """The folder of the installed package that holds `bddl_files`, `init_files` and `assets`.

    Raises:
        UserError: LIBERO is not installed, or its assets are missing.
    """
    found = importlib.util.find_spec("libero")  # importing it would ask questions on the terminal
    folders = [] if found is None else list(found.submodule_search_locations or ())
    roots = [Path(folder) / "libero" for folder in folders]
    root = next((root for root in roots if (root / "bddl_files").is_dir()), None)
    if root is None:
        raise UserError(
            "This task needs LIBERO, which is not installed; in an environment of its own install "
            "the packages of constraints-libero.txt, see docs/libero.md."
        )
    if not (root / "assets").is_dir():
        raise UserError(
            f"LIBERO's scenes and meshes are missing: they should lie in {root / 'assets'}, and "
            "its package comes without them; see docs/libero.md."
        )
    return root


def read_tasks(suite: Path, names: Sequence[str], benchmark: str = "libero_10") -> list[LiberoTask]:
    """The tasks of those names.

    Args:
        suite: folder with `bddl_files` and `init_files`.
        names: of BDDL files, without ending.
        benchmark: folder in both.

    Raises:
        UserError: no names; a task is not there, or its file says no problem or instruction.
    """
    if not names:
        raise UserError("LIBERO should be played with at least one task, found none; name some.")
    return [_read_task(suite, name, benchmark) for name in names]


def _read_task(suite: Path, name: str, benchmark: str) -> LiberoTask:
    folder = suite / "bddl_files" / benchmark
    bddl = folder / f"{name}.bddl"
    if not bddl.is_file():
        known = sorted(file.stem for file in folder.glob("*.bddl"))
        raise UserError(f"{folder} has no task '{name}'{did_you_mean(name, known)}")
    text = bddl.read_text(errors="replace")
    problem, sentence = _PROBLEM.search(text), _LANGUAGE.search(text)
    if problem is None or sentence is None:
        raise UserError(
            f"{bddl} should say (problem ...) and (:language ...); install hf-libero again."
        )
    return LiberoTask(
        name=name,
        bddl=bddl,
        states_file=suite / "init_files" / benchmark / f"{name}.pruned_init",
        problem=problem[1],
        sentence=" ".join(sentence[1].split()),
    )


def task_told(tasks: Sequence[LiberoTask], instruction: str) -> LiberoTask:
    """The task of an instruction in either form.

    Raises:
        UserError: it is of none.
    """
    forms: tuple[TextForm, ...] = get_args(TextForm)
    told = {task.instruction(form): task for form in forms for task in tasks}
    if instruction not in told:
        raise UserError(
            f"No task of LIBERO's is told '{instruction}'{did_you_mean(instruction, told)}"
        )
    return told[instruction]
