"""LIBERO's files laid out by hand, and robosuite's scenes dressed as two of its tasks.

The physics is robosuite's: its controller, frames and gripper are those of LIBERO's scenes.
Importable by workers; needs robosuite only where a simulator is made.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from foreact.data.rotations import convert
from foreact.envs.libero import LIBERO_SPEC, LiberoEnv
from foreact.envs.libero_suite import LiberoTask
from foreact.types import ActionChunk, Observation
from foreact.worlds import Task

LIFT = "KITCHEN_SCENE1_lift_the_cube"
CAN = "LIVING_ROOM_SCENE12_put_the_can_into_its_bin"
SCENES = {LIFT: "Lift", CAN: "PickPlaceCan"}
SUITE = "FOREACT_TEST_LIBERO_SUITE"
"""Variable of the environment that tells `make` its suite."""
STATES = 3


def write_suite(folder: Path, states: dict[str, np.ndarray]) -> Path:
    """`bddl_files` and `init_files` of the tasks of these names."""
    for name, values in states.items():
        sentence = name.split("_", name.split("_").index(_scene(name)) + 1)[-1].replace("_", " ")
        bddl = folder / "bddl_files" / "libero_10" / f"{name}.bddl"
        bddl.parent.mkdir(parents=True, exist_ok=True)
        bddl.write_text(
            f"(define (problem LIBERO_{SCENES.get(name, 'Desk')})\n  (:domain robosuite)\n"
            f"  (:language {sentence})\n    (:regions\n    )\n)\n"
        )
        write_states(folder / "init_files" / "libero_10" / f"{name}.pruned_init", values)
    return folder


def write_states(path: Path, content: Any) -> Path:
    """As torch.save writes an array: one pickle in a zip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
        archive.writestr("archive/version", b"3\n")
    return path


def _scene(name: str) -> str:
    return next(word for word in name.split("_") if word.startswith("SCENE"))


# --- robosuite's scenes as LIBERO's ---------------------------------------------------------------


def build(task: LiberoTask) -> Any:
    """robosuite's scene of a task's problem; physics as before robosuite 1.5."""
    from foreact.envs.robosuite_world import build_simulator

    return build_simulator(task.problem.removeprefix("LIBERO_"), lite_physics=False)


def physical_suite(folder: Path) -> Path:
    """A suite of both tasks, whose initial states are those of seeds 0, 1, 2."""
    states = {}
    for name, scene in SCENES.items():
        task = LiberoTask(name, folder, folder, f"LIBERO_{scene}", "")
        simulator, rows = build(task), []
        for seed in range(STATES):
            simulator.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
            simulator.reset()
            rows.append(simulator.sim.get_state().flatten())
        simulator.close()
        states[name] = np.stack(rows)
    return write_suite(folder, states)


def make() -> LiberoEnv:
    """Both tasks, of the suite in the environment's variable."""
    return LiberoEnv(tasks=(LIFT, CAN), suite=Path(os.environ[SUITE]), simulator=build)


TASK = Task(
    name="dressed",
    spec=LIBERO_SPEC,
    camera="agentview_rgb",
    wrist_camera="eye_in_hand_rgb",
    env="support.libero_worlds:make",
)


def plan(env: LiberoEnv, length: int | None = None) -> Iterator[np.ndarray]:
    """The expert's actions (10,) for the present task, float32."""
    from foreact.envs import robosuite_experts as experts

    expert = experts.lift if "cube" in env.instruction else experts.can
    for step, action in enumerate(expert(env._world)):
        if step == length:
            return
        yield action.astype(np.float32)


def demonstrate(env: LiberoEnv, length: int | None = None) -> dict[str, np.ndarray]:
    """An episode from where the world is, as LIBERO's files hold it: key -> array."""
    rows: dict[str, list[Any]] = {}
    own = 1 + env._world._model.nq + env._world._model.nv
    for action in plan(env, length):
        before = env.state()[:own]
        out = env.step(action)
        row = {
            "actions": np.concatenate(
                [action[:3], convert(action[3:9], "rows_6d", "axis_angle"), action[9:]]
            ),
            "states": before,
            "rewards": out.reward,
            "obs/agentview_rgb": out.obs["agentview_rgb"][::-1],
            "obs/eye_in_hand_rgb": out.obs["eye_in_hand_rgb"][::-1],
            **{f"obs/{key}": out.obs[key] for key in LIBERO_SPEC.state},
        }
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
        if out.terminated:
            break
    return {key: np.stack(values) for key, values in rows.items()}


def write_demonstrations(
    folder: Path, suite: Path, *, restored: bool, lengths: Sequence[int | None]
) -> Path:
    """A folder with a file for each task, of one demonstration each.

    Args:
        restored: begin with controllers as after a reset to the first state; else as they are
            after an episode's start, which files do not tell.
        lengths: steps of each, None: to the end.
    """
    env = LiberoEnv(tasks=(LIFT, CAN), suite=suite, simulator=build)
    own = 1
    folder.mkdir()
    for seed, (name, length) in enumerate(zip((LIFT, CAN), lengths, strict=True)):
        env.reset(seed)
        if restored:
            own = 1 + env._world._model.nq + env._world._model.nv
            env.restore(env.state()[:own])
        with h5py.File(folder / f"{name}_demo.hdf5", "w") as file:
            data = file.create_group("data")
            data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
            data.attrs["problem_info"] = json.dumps({"language_instruction": env.instruction})
            data.attrs["macros_image_convention"] = "opengl"
            for key, values in demonstrate(env, length).items():
                data.create_dataset(f"demo_0/{key}", data=values)
    env.close()
    return folder


class Reciter:
    """A policy that knows one list of actions for each instruction; meets `Policy`."""

    spec = LIBERO_SPEC

    def __init__(self, known: dict[str, np.ndarray], execute: int = 4) -> None:
        self.known, self.execute = known, execute

    def reset(self, seeds: Sequence[int]) -> None:
        self.texts: dict[int, str] = {}
        self.steps = -1

    def observe(self, obs: Observation, ids: Sequence[int] | None = None) -> None:
        assert obs.text is not None
        self.texts |= dict(zip(ids or range(len(obs.text)), obs.text, strict=True))
        self.steps += 1

    def act(self, ids: Sequence[int] | None = None) -> ActionChunk:
        rows = []
        for i in ids or sorted(self.texts):
            actions = self.known[self.texts[i]]
            due = np.minimum(self.steps + np.arange(self.execute), len(actions) - 1)
            rows.append(actions[due])
        return ActionChunk(np.stack(rows), self.execute, self.steps, 0.0)

    def describe(self) -> dict[str, Any]:
        return {"policy": "reciter"}
