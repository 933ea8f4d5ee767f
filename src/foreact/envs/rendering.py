"""Headless drawing with MuJoCo: which OpenGL library works, or one sentence why none does."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import textwrap
from typing import Any, Literal

from foreact.errors import UserError

HEADLESS = ("egl", "osmesa")  # in order of preference; both draw the same pixels
# Environment variable: the MUJOCO_GL that was seen to work, for worker processes.
CHECKED = "FOREACT_DRAWS_WITH"
PROBE_SECONDS = 120
PROBES = {
    "dm_control": """
from dm_control import mujoco
mujoco.Physics.from_xml_string("<mujoco><worldbody><light/></worldbody></mujoco>").render(8, 8)
""",
    "mujoco": """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 8, 8)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
renderer.close()
""",
}
"""Package that draws -> a program that draws one picture with it."""
CONTEXTS = {"dm_control": "dm_control._render", "mujoco": "mujoco.rendering.classic.gl_context"}
"""Package that draws -> its module that reads MUJOCO_GL when it is imported."""


@functools.cache
def load_suite() -> Any:
    """`dm_control.suite`, after a picture was drawn to see that drawing works.

    Where MUJOCO_GL is unset and no display can be drawn on, it is set to the first of egl and
    osmesa that works, and processes started later inherit it. dm_control reads it when it is
    imported: whoever did so before has chosen.

    Raises:
        UserError: dm_control is not installed, or no picture can be drawn.
    """
    for package in ("dm_control", "mujoco"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"DeepMind Control needs its simulator, and the package {package} is missing; "
                'run `pip install "foreact[dmc]"`.'
            )
    choose_library()
    from dm_control import suite

    return suite


def choose_library(package: Literal["dm_control", "mujoco"] = "dm_control") -> str:
    """See to it that drawing works, set MUJOCO_GL where that takes it, and return its value.

    Args:
        package: what draws.

    Raises:
        UserError: no picture can be drawn.
    """
    setting = os.environ.get("MUJOCO_GL", "")
    if setting and os.environ.get(CHECKED) == setting:
        return setting
    chosen = bool(setting) or CONTEXTS[package] in sys.modules
    failures = {}
    for name in (setting,) if chosen else HEADLESS if _headless() else ("", *HEADLESS):
        if (failure := _try(name, PROBES[package])) is None:
            if name:
                os.environ["MUJOCO_GL"] = os.environ[CHECKED] = name
            return name
        failures[name] = failure
    reasons = "; ".join(
        why if name == setting else f"{name}: {why}" for name, why in failures.items()
    )
    raise UserError(
        f"MuJoCo cannot draw with MUJOCO_GL {f'set to {setting}' if setting else 'unset'} "
        f"({reasons}); install an OpenGL library, `apt-get install libegl1 libegl-mesa0 "
        "libgl1-mesa-dri` for egl or `apt-get install libosmesa6` for osmesa, and set MUJOCO_GL "
        f"to egl or osmesa accordingly before {package} is imported."
    )


def _headless() -> bool:
    return sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _try(name: str, probe: str) -> str | None:
    """Draw in a child process, as a failure may crash it; returns why it failed, or None."""
    guarded = (
        f"try:{textwrap.indent(probe, '    ')}"
        "except Exception as error:\n"
        '    print(f"{type(error).__name__}: {error}")\n'
        "    raise SystemExit(1)\n"
    )
    environment = {**os.environ, **({"MUJOCO_GL": name} if name else {})}
    try:
        child = subprocess.run(
            [sys.executable, "-c", guarded],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no picture within {PROBE_SECONDS} s"
    if child.returncode == 0:
        return None
    output = " ".join(child.stdout.split())
    return (
        output[:119] + "…"
        if len(output) > 120
        else output or f"a trial ended with exit code {child.returncode}"
    )
