"""LIBERO-10 under absolute control: ten long tasks in one world, told apart by their instructions.

Streams have the names of LIBERO's files. Pictures are upright, as the readers of those files show
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from foreact.data.formats.robomimic_actions import pose_action
from foreact.envs.libero_simulator import build_libero
from foreact.envs.libero_suite import (
    LIBERO10,
    LiberoTask,
    TextForm,
    installed_suite,
    read_tasks,
    task_told,
)
from foreact.envs.robosuite import OPEN, RobosuiteEnv, Scene
from foreact.envs.robosuite_world import CONTROL_HZ
from foreact.errors import UserError
from foreact.types import StreamSpec
from foreact.worlds import StepOut

Starts = Literal["official", "seeds"]
"""Begin at one of the benchmark's initial states, or where the simulator's seed puts everything."""

CAMERAS = {"agentview": "agentview_rgb", "robot0_eye_in_hand": "eye_in_hand_rgb"}
"""Camera of the simulator -> stream."""
SIZE = 128
MAX_STEPS = 500
SETTLE = 5
"""Steps in which objects fall into place, before an episode begins."""
PLACEMENT = 0
"""Seed of what states do not hold, such as where a stove stands."""

LIBERO_SPEC = StreamSpec(
    cameras=dict.fromkeys(CAMERAS.values(), (SIZE, SIZE)),
    fps=float(CONTROL_HZ),
    action=pose_action(float(CONTROL_HZ)),
    state={
        "ee_pos": ("x", "y", "z"),
        "ee_ori": ("rx", "ry", "rz"),
        "gripper_states": ("finger_0", "finger_1"),
    },
    has_text=True,
)


class LiberoEnv:
    """Tasks of LIBERO, one at a time; meets `foreact.worlds.Env`, `Restorable` and `Told`.

    Of n tasks, episode `seed` plays task `seed % n` in the order of `tasks`. It begins at the
    task's initial state `seed // n` (modulo their number, 50), or with the simulator's seed
    `seed // n`; then the hand holds still for 5 steps. So seeds a..b with a and b + 1 multiples of
    n play all tasks equally often.

    An action is a pose of the grip site in the world and what the gripper shall do, as in
    `RobosuiteEnv`. The reward is 1 where the task is fulfilled, else 0, and ends the episode.

    The scene is built anew where the task changes, which takes seconds. LIBERO draws from numpy's
    global generator, which `reset` and `restore` seed.

    Args:
        tasks: names of BDDL files, without ending.
        text: form of the instructions.
        starts: how episodes begin.
        suite: folder with `bddl_files` and `init_files`; None: of the installed package.
        simulator: makes the simulator of a task, under absolute control in the world.
        image: whether observations hold pictures.

    Raises:
        UserError: LIBERO or its assets are not there, there are no tasks, or an option is unknown.
    """

    spec = LIBERO_SPEC
    max_steps = MAX_STEPS

    def __init__(
        self,
        *,
        tasks: Sequence[str] = LIBERO10,
        text: TextForm = "task",
        starts: Starts = "official",
        suite: Path | None = None,
        simulator: Callable[[LiberoTask], Any] = build_libero,
        image: bool = True,
    ) -> None:
        for name, value, known in (("text", text, TextForm), ("starts", starts, Starts)):
            if value not in get_args(known):
                raise UserError(f"'{name}' should be one of {get_args(known)}, found '{value}'.")
        self.tasks = read_tasks(installed_suite() if suite is None else suite, tasks)
        self.text: TextForm = text
        self.starts: Starts = starts
        self._build, self._image = simulator, image
        self._task = self.tasks[0]
        self._inner: RobosuiteEnv | None = None

    @property
    def instruction(self) -> str:
        """What is to be done now."""
        return self._task.instruction(self.text)

    def choose(self, instruction: str) -> None:
        """Go to the task of an instruction, in either form, where `restore` then begins.

        Raises:
            UserError: it is of none of the tasks.
        """
        self._go_to(task_told(self.tasks, instruction))

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        number, turn = divmod(seed, len(self.tasks))
        world = self._go_to(self.tasks[turn])
        if self.starts == "official":
            states = self._task.initial_states
            placement, state = PLACEMENT, states[number % len(states)]
        else:
            placement = number
            self._place(world, placement)
            world.simulator.reset()
            state = world.simulator.sim.get_state().flatten()
        self._begin(world, placement, state)
        seen = {}
        for _ in range(SETTLE):
            seen = world.step(world.hold(OPEN)).obs
        return _named(seen)

    def state(self) -> np.ndarray:
        """float64 (D,), as `restore` takes it; the task is not part of it."""
        return self._world.state()

    def restore(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """Begin an episode of the present task at a state, without settling.

        Args:
            state: see `RobosuiteEnv.restore`. Fixtures stand where the seed 0 puts them.

        Raises:
            UserError: it is of another task, or not finite.
        """
        return _named(self._begin(self._world, PLACEMENT, state))

    def step(self, action: np.ndarray) -> StepOut:
        """Act for one control step; see `RobosuiteEnv.step`."""
        out = self._world.step(action)
        return StepOut(_named(out.obs), out.reward, out.terminated, out.info)

    def render(self) -> np.ndarray:
        return self._world.render()

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
        self._inner = None

    @property
    def _world(self) -> RobosuiteEnv:
        return self._go_to(self._task)

    def _go_to(self, task: LiberoTask) -> RobosuiteEnv:
        if self._inner is None or task is not self._task:
            self.close()
            self._task = task
            scene = Scene(name=task.name, cameras=tuple(CAMERAS), size=SIZE, max_steps=MAX_STEPS)
            self._inner = RobosuiteEnv(
                scene, shadows=True, image=self._image, simulator=self._build(task)
            )
        return self._inner

    def _begin(
        self, world: RobosuiteEnv, placement: int, state: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Reset, then set the state: the other way round the reset would undo it."""
        self._place(world, placement)
        return world.restore(state)

    def _place(self, world: RobosuiteEnv, seed: int) -> None:
        """Decide what the next reset draws."""
        np.random.seed(seed)
        if (rng := getattr(world.simulator, "rng", None)) is not None:  # robosuite from 1.5 on
            rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state


def _named(seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A robosuite observation as LIBERO names it."""
    pictures = {stream: seen[camera] for camera, stream in CAMERAS.items() if camera in seen}
    return {
        "ee_pos": seen["robot0_eef_pos"],
        "ee_ori": rotation_vector(seen["robot0_eef_quat"]),
        "gripper_states": seen["robot0_gripper_qpos"],
        **pictures,
    }


def rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """Axis-angle (3,) of a quaternion (4,), real part last, with an angle in 0..2 pi, float32.

    Without the usual change of sign beyond half a turn, since LIBERO's files have none and hands
    that point down are always near it.
    """
    axis, real = quaternion[:3].astype(np.float64), float(np.clip(quaternion[3], -1.0, 1.0))
    length = np.linalg.norm(axis)
    if length == 0.0:
        return np.zeros(3, np.float32)
    return (axis / length * 2.0 * np.arccos(real)).astype(np.float32)


make_libero10 = LiberoEnv
"""All ten tasks, from the official initial states."""
make_libero10_seeds = partial(LiberoEnv, starts="seeds")
"""All ten tasks, where seeds put things, as UVA measures."""
make_libero10_released = partial(LiberoEnv, text="file")
"""As `make_libero10`, in the words of UVA's released weights."""
make_libero10_released_seeds = partial(LiberoEnv, text="file", starts="seeds")
"""As `make_libero10_seeds`, in the words of UVA's released weights."""

(
    make_stove_moka_pot,
    make_bowl_drawer,
    make_mug_microwave,
    make_moka_pots,
    make_soup_cheese,
    make_soup_sauce,
    make_cheese_butter,
    make_two_mugs,
    make_mug_pudding,
    make_book_caddy,
) = (partial(LiberoEnv, tasks=(name,)) for name in LIBERO10)
"""One task each, in the order of `LIBERO10`, from its 50 official initial states."""
