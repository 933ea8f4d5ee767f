"""LIBERO's simulators with absolute control, in robosuite 1.4.

LIBERO's own wrapper always loads delta control; robomimic's makes the scene from its class and a
configuration, which is also done here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from foreact.envs.libero_suite import LiberoTask
from foreact.envs.robosuite_world import CONTROL_HZ, OSC_POSE, load_robosuite
from foreact.errors import UserError, decoding

CONFIG_PATH = "LIBERO_CONFIG_PATH"


def build_libero(task: LiberoTask) -> Any:
    """The simulator of a task, which draws nothing itself.

    Goals are of the grip site in the world, as absolute control of robosuite 1.4 takes them.

    Raises:
        UserError: LIBERO cannot be imported, or does not know the problem.
    """
    scenes = _scenes(task.bddl.parents[2])
    key = task.problem.lower()
    if key not in scenes:
        raise UserError(
            f"LIBERO has no scene '{task.problem}', which {task.bddl} asks for; install the "
            "version of constraints-libero.txt."
        )
    with decoding(f"LIBERO could not build '{task.name}'", "see docs/libero.md for its assets"):
        return scenes[key](
            bddl_file_name=str(task.bddl),
            robots=["Panda"],
            controller_configs={**OSC_POSE, "control_delta": False},
            control_freq=CONTROL_HZ,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            ignore_done=True,
            hard_reset=False,
        )


@functools.cache
def _scenes(suite: Path) -> dict[str, Any]:
    """Name in lower case -> class of scenes."""
    load_robosuite()
    _avoid_questions(suite)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module("libero.libero.envs").TASK_MAPPING
    except ImportError as error:
        raise UserError(
            f"LIBERO could not be imported ({error}); install the packages of "
            "constraints-libero.txt."
        ) from error


def _avoid_questions(suite: Path) -> None:
    """Give LIBERO a configuration; without one it asks on the terminal when it is imported."""
    folder = Path(os.environ.get(CONFIG_PATH) or Path.home() / ".libero")
    if not (folder / "config.yaml").is_file():
        parts = {"bddl_files": "bddl_files", "init_states": "init_files", "assets": "assets"}
        paths = {"benchmark_root": str(suite), "datasets": str(suite.parent / "datasets")}
        paths |= {key: str(suite / part) for key, part in parts.items()}
        folder = Path(tempfile.mkdtemp(prefix="libero-"))
        (folder / "config.yaml").write_text(json.dumps(paths))  # JSON is YAML, too
        os.environ[CONFIG_PATH] = str(folder)
